import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sdunroll import cli
from sdunroll.suggest import explain, known_keys


def test_known_keys_cover_every_choice_of_every_group():
    keys = known_keys(cli.config_folder(), "train")
    for key in (
        "constraint.epsilon",
        "dual.k_i",
        "dual.rate",
        "data.snr_db",
        "problem.learner.passes",
    ):
        assert key in keys
    assert not any(key.startswith("hydra") for key in keys)


def test_choices_of_the_users_own_configs_are_known(tmp_path):
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "step_sizes.yaml").write_text("num_layers: 3")
    error = ValueError("Could not find 'network/step_size'\n\nAvailable options ...")
    arguments = ["--config-dir", str(tmp_path), "network=step_size"]
    text = explain(error, cli.config_folder(), "train", arguments)
    assert ", lista, " in text
    assert "step_sizes" in text.split("got")[0]
    assert "did you mean network=step_sizes?" in text


def test_an_error_it_does_not_know_is_passed_on_in_one_line():
    text = explain(ValueError("something\n  else"), cli.config_folder(), "train", [])
    assert text == "something else (see sdunroll train --help)"


def explained(command, work):
    with pytest.raises((HydraException, OmegaConfBaseException)) as raised:
        work()
    return explain(raised.value, cli.config_folder(), command, [])


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("run=out/lr=1e-3", """run: expected a value that Hydra can read, got out/lr=1e-3; quote text """
         """for Hydra and for the shell: 'run="out/lr=1e-3"'"""),
        ("constraint.epsilon=[0.4,0.3", "constraint.epsilon: expected a value that Hydra can read, got "
         "[0.4,0.3; a list is written 'constraint.epsilon=[1,2]'"),
        ("out/run", "out/run: expected key=value; did you mean run=out/run?"),
        ("a b=1", "override 'a b=1': expected key=value, got something else"),
    ],
)  # fmt: skip
def test_what_hydra_cannot_read(typed, line):
    parser = OverridesParser.create()
    assert explained("eval", lambda: parser.parse_overrides([typed])).startswith(line)


def test_what_an_interpolation_refers_to_is_no_unknown_key():
    config = OmegaConf.create({"training": {"lr": "${oc.env:NOT_THERE}"}})
    text = explained("train", lambda: config.training.lr)
    assert text.startswith("training.lr: ")
    assert "Environment variable 'NOT_THERE' not found" in text
    OmegaConf.set_struct(config, True)
    unknown = explained("train", lambda: config.training.lrx)
    assert unknown.startswith("lrx: no such key")


def test_a_choice_in_a_group_that_is_not_there():
    error = ValueError("Could not find 'planet/mars'\n\nAvailable options ...")
    text = explain(error, cli.config_folder(), "train", [])
    assert text == "planet/mars: no such config; see --help for the groups"


def test_a_launcher_that_is_not_installed():
    error = ValueError("Could not find 'hydra/launcher/joblib'\n\nAvailable options ...")
    text = explain(error, cli.config_folder(), "train", [])
    assert text == (
        "launcher=local: expected a plugin of Hydra's that is not installed; "
        "pip install 'sdunroll[sweep]'"
    )
    error = ValueError("Could not find 'hydra/launcher/other'\n\nAvailable options ...")
    assert "hydra/launcher/other" in explain(error, cli.config_folder(), "train", [])
