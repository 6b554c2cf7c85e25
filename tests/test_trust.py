"""A run directory from elsewhere runs no code that nobody chose."""

import json
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sdunroll import cli, trust
from sdunroll.checks import InvalidValue, UserError
from sdunroll.runs import Run, RunError
from tests.conftest import TINY

MARK = "here.txt"  # what the hostile targets would write
PLANTED = f"open({MARK!r}, 'w').close()\nimport os\nclass Net:\n    pass\n"


def targets(node):
    """Every ``_target_`` of a config."""
    if OmegaConf.is_dict(node):
        for name in node:
            if name == "_target_":
                yield node._get_node(name)._value()
            else:
                yield from targets(node._get_node(name))


def test_every_target_of_the_configs_is_allowed():
    paths = list(cli.config_folder().rglob("*.yaml"))
    found = {target for path in paths for target in targets(OmegaConf.load(path))}
    assert len(found) > 20
    for target in found:
        trust.check(OmegaConf.create({"part": {"_target_": target}}), [], "config.yaml")


HOSTILE = {
    "a function of the system": {"network": {"_target_": "os.system", "_args_": ["touch here.txt"]}},
    "nested": {"training": {"optimizer": {"deep": [{"x": {"_target_": "subprocess.run"}}]}}},
    "a key with dots hides none": {
        "a.b": {"_target_": "os.system"},
        "a": {"b": {"_target_": "sdunroll.networks.Lista"}},
    },
    "hydra's own functions": {"data": {"_target_": "hydra.utils.get_method", "path": "os.system"}},
    "partial": {"data": {"_target_": "builtins.eval", "_partial_": True, "_args_": ["1"]}},
    "a built-in without a module": {"data": {"_target_": "eval"}},
    "not a name": {"data": {"_target_": "sdunroll.data.Faces; import os"}},
    "not a string": {"data": {"_target_": ["sdunroll", "data"]}},
    "missing": {"data": {"_target_": "???"}},
    "torch's loader": {"data": {"_target_": "torch.load"}},
    "a module that only begins alike": {"data": {"_target_": "sdunroll.data_planted.Net"}},
    "the package's files": {"data": {"_target_": "sdunroll.cache.write_atomically"}},
    "the package's commands": {"data": {"_target_": "sdunroll.commands.assemble.instantiate"}},
    "through a module's imports": {"data": {"_target_": "sdunroll.data.cifar10.tarfile.os.system"}},
    "through one import": {"data": {"_target_": "sdunroll.data.cifar10.tarfile"}},
    "a class from elsewhere": {"data": {"_target_": "sdunroll.data.image_folder.ThreadPoolExecutor"}},
    "a class of a closed room": {"data": {"_target_": "sdunroll.problems.sparse_coding.Cache"}},
    "no class": {"data": {"_target_": "sdunroll.data.cifar10.ARCHIVE"}},
    "a lazy import": {"data": {"_target_": "sdunroll.data.base.np.f2py"}},
}  # fmt: skip


def test_parts_of_a_network_and_optimizers_may_be_trusted_and_stand_for_themselves():
    network = {"_target_": "my_network.Net", "act": {"_target_": "torch.nn.ReLU"}}
    config = OmegaConf.create({"network": network, "o": {"_target_": "torch.optim.Rprop"}})
    with pytest.raises(UserError, match=r"add trust=\[my_network,torch.nn,torch.optim\]$"):
        trust.check(config, [], "run/config.yaml")
    with pytest.raises(UserError, match=r"network.act._target_ .*add trust=\[my_network,torch.nn,"):
        trust.check(config, ["my_network"], "run/config.yaml")
    config.bad = {"_target_": "os.system"}
    with pytest.raises(UserError, match=r"bad._target_ names 'os.system', which no run"):
        trust.check(config, ["my_network"], "run/config.yaml")
    del config.bad, config.network._target_
    trust.check(config, ["torch.nn", "torch.optim"], "run/config.yaml")


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_run_may_not_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    with pytest.raises(UserError, match=r"^run/config\.yaml: .*_target_") as caught:
        trust.check(OmegaConf.create(HOSTILE[name]), [], "run/config.yaml")
    assert "trust=" not in str(caught.value)
    assert not {module for module in set(sys.modules) - before if "sdunroll" not in module}
    assert not Path(MARK).exists()


@pytest.fixture
def planted(tmp_path, monkeypatch):
    (tmp_path / "planted_code.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("planted_code", None)


def test_code_of_others_is_named_with_the_override_and_not_imported(planted):
    config = OmegaConf.create(
        {"network": {"_target_": "planted_code.Net"}, "data": {"_target_": "mine.Data"}}
    )
    with pytest.raises(UserError, match=r"network\._target_ names 'planted_code\.Net'.*"
                       r"add trust=\[mine,planted_code\]$"):  # fmt: skip
        trust.check(config, ["mine"], "config.yaml")
    assert "planted_code" not in sys.modules
    assert not Path(MARK).exists()
    del config["data"]
    trust.check(config, ["planted_code"], "config.yaml")


@pytest.mark.parametrize(
    "name", ["planted_code.os.system", "planted_code.os", "planted_code.absent"]
)
def test_trust_reaches_no_further_than_the_package(planted, name):
    with pytest.raises(UserError, match="expected"):
        trust.check(OmegaConf.create({"x": {"_target_": name}}), ["planted_code"], "config.yaml")


def test_a_trusted_package_that_is_not_there():
    config = OmegaConf.create({"x": {"_target_": "nowhere_at_all.Net"}})
    with pytest.raises(
        UserError, match="No module named 'nowhere_at_all'; call this in the folder"
    ):
        trust.check(config, ["nowhere_at_all"], "config.yaml")


@pytest.mark.parametrize("given", ["my_network", None, [1], ["my-network"], [""]])
def test_trust_is_a_list_of_packages(given):
    with pytest.raises(InvalidValue, match="trust: expected a list of packages"):
        trust.packages(OmegaConf.create({"trust": given}).trust)


@pytest.fixture
def run(train_once):
    return train_once(*TINY, "training.epochs=3", "training.stop_after=1")


def put(run, key, value):
    """Change a setting, as somebody would who can also forge checksums: in the format without."""
    config = OmegaConf.load(run / "config.yaml")
    OmegaConf.update(config, key, value)
    OmegaConf.save(config, run / "config.yaml")
    path = run / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))


@pytest.mark.parametrize("key", ["network._target_", "training.optimizer._target_"])
def test_no_command_calls_what_a_run_names(planted, sdunroll, run, key):
    put(run, key, "planted_code.Net")
    for command in (["eval", f"run={run}"], ["perturb", f"run={run}"], ["train", f"resume={run}"]):
        outcome = sdunroll(*command)
        assert outcome.status == 1
        (line,) = [line for line in outcome.err.splitlines() if line.startswith("error:")]
        assert key in line
        assert "trust=[planted_code]" in line
    assert "planted_code" not in sys.modules


def test_a_report_calls_nothing(planted, sdunroll, run):
    assert sdunroll("train", f"resume={run}").status == 0
    put(run, "network._target_", "planted_code.Net")
    assert sdunroll("report", f"runs={run}").status == 0
    assert "planted_code" not in sys.modules


NOT_PLAIN = {
    "seed: ${oc.env:HOME}": "an interpolation",
    "seed: ${sdunroll.run_dir:a,b}": "an interpolation",
    "a: &a [1, 1]\nb: [*a, *a]": "an alias",
    "a: !!python/object/apply:os.system [touch here.txt]": "could not determine a constructor",
    "a: " + "[" * 5000: "nested",
    "a: " + "1" * 2**20: "larger than",
}


def test_yaml_that_does_more_than_say(tmp_path):
    for text, reason in NOT_PLAIN.items():
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(RunError, match=r"config\.yaml: damaged") as caught:
            Run(tmp_path)
        assert reason in str(caught.value)
    assert not Path(MARK).exists()


def test_the_run_s_own_word_for_whom_to_trust_is_not_heard(planted, sdunroll, run):
    put(run, "trust", ["planted_code"])
    put(run, "network._target_", "planted_code.Net")
    assert "trust=[planted_code]" in sdunroll("eval", f"run={run}").err
    assert "planted_code" not in sys.modules


def test_trust_is_not_saved(sdunroll):
    run = sdunroll("train", *TINY, "training.epochs=1", "trust=[mine]").run
    assert "trust" not in OmegaConf.load(run / "config.yaml")


def test_what_is_told_to_trust_is_what_is_needed():
    config = OmegaConf.create(
        {"network": {"_target_": "mine.Network"}, "data": {"_target_": "torch.optim.Adam"}}
    )
    assert trust.override(config) == " trust=[mine]"
    with pytest.raises(UserError, match=r"add trust=\[mine\]$"):
        trust.check(config, ["mein"], "config.yaml")
    del config["network"]
    assert trust.override(config) == ""
