"""Bad input: one line that says expected, got, remedy; exit status 1; nothing half written."""

import json
import shutil

import pytest
from omegaconf import OmegaConf

from sdunroll.checks import UserError
from sdunroll.commands.assemble import working_in
from sdunroll.commands.instantiate import instantiate
from sdunroll.lock import held
from sdunroll.runs import Run
from sdunroll.training import Training
from tests.conftest import TINY


def check(outcome, *parts):
    """One line of error and nothing like a traceback."""
    assert outcome.status == 1
    told = ("optima: ", "cache: ")  # progress, before the failure
    lines = [line for line in outcome.err.splitlines() if line and not line.startswith(told)]
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("error:")
    assert lines[0].count("error:") == 1
    for part in parts:
        assert part in lines[0], lines[0]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["constraint.epsilom=0.1"], ["constraint.epsilom", "did you mean constraint.epsilon?"]),
        (["epsilon=0.1"], ["epsilon: no such key", "did you mean constraint.epsilon?"]),
        (["epochs=3"], ["error: epochs: no such key; did you mean training.epochs?"]),
        (["dual.rate=0.1"], ["dual.rate: belongs to dual=ascent"]),
        (
            ["data=synthetic"],
            ["data.size: belongs to data=faces or data=image_folder or data=photos"],
        ),
        (["network.layers=3"], ["network.layers", "did you mean network.num_layers?"]),
        (["constraned=true"], ["did you mean constrained?"]),
        (["network=listo"], ["network: expected one of", "lista", "did you mean network=lista?"]),
        (["constraint=distanze"], ["did you mean constraint=distance?"]),
        (["problem=xyz"], ["problem: expected one of", "got 'xyz'"]),
        (["--bogus"], ["unrecognized arguments: --bogus", "sdunroll train --help"]),
        (["constraint.epsilon=abc"], ["constraint.epsilon", "got 'abc'"]),
        (["constraint.epsilon=[]"], ["constraint.epsilon", "got []"]),
        (["constraint.first_layer=9"], ["constraint.first_layer", "got 9"]),
        (["training.clip_norm=0"], ["training.clip_norm", "got 0"]),
        (["nonsense"], ["nonsense", "expected key=value"]),
        (["constraint.epsilon=0"], ["constraint.epsilon: expected a number > 0 and < 1, got 0"]),
        (["constraint.epsilon=1.5"], ["constraint.epsilon", "got 1.5"]),
        (
            ["constraint.epsilon=[0.1,2]"],
            ["constraint.epsilon: expected a number > 0 and < 1, got 2"],
        ),
        (["constraint.form=square"], ["constraint.form: expected one of ratio"]),
        (["network.num_layers=0"], ["network.num_layers", "at least 1, got 0"]),
        (["data.num_train=-5"], ["data.num_train", "got -5"]),
        (["data.size=500"], ["data.size: ", "no room for crops of 500"]),
        (["training.epochs=ten"], ["training.epochs: expected a whole number", "got 'ten'"]),
        (["training.lr=-1"], ["training.lr: expected a number > 0"]),
        (["training.batch_size=1.5"], ["training.batch_size", "got 1.5"]),
        (["problem.alpha=0"], ["alpha: expected a number > 0, got 0"]),
        (["dual.k_i=0"], ["dual.k_i"]),
        (["seed=-1"], ["seed", "got -1"]),
        (["seed=abc"], ["seed", "got 'abc'"]),
        (["constrained=maybe"], ["constrained: expected true or false, got 'maybe'"]),
        (["threads=0"], ["threads"]),
        (["device=tpu"], ["device: expected one of auto, cpu, cuda"]),
        (["device=cuda"], ["device: expected a CUDA device"]),
        (["resume=nowhere"], ["nowhere: expected the directory of a run", "does not exist"]),
    ],
)
def test_train_refuses(sdunroll, tmp_path, overrides, parts):
    if overrides == ["device=cuda"]:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("there is a CUDA device")
    outcome = sdunroll("train", *TINY, *overrides)
    check(outcome, *parts)
    written = [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert all(path.name == "train.log" for path in written)


def test_the_traceback_is_in_the_log_of_the_failed_job(sdunroll, tmp_path):
    check(sdunroll("train", *TINY, "problem.alpha=0"), "alpha")
    (log,) = (tmp_path / "work").rglob("train.log")
    assert "Traceback" in log.read_text()


def test_the_traceback_is_shown_when_asked_for(sdunroll, monkeypatch):
    monkeypatch.setenv("SDUNROLL_TRACEBACK", "1")
    with pytest.raises(Exception, match="alpha"):
        sdunroll("train", *TINY, "problem.alpha=0")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["eval"], ["run: expected a value", "run=..."]),
        (["eval", "run=nowhere"], ["nowhere", "does not exist"]),
        (["perturb", "run=nowhere"], ["nowhere", "does not exist"]),
        (["perturb", "run=x", "levels=3"], ["levels: expected a list of numbers"]),
        (["perturb", "run=x", "levels=[]"], ["levels: expected a list of numbers"]),
        (["perturb", "run=x", "levels=[-1]"], ["levels", "got -1"]),
        (["perturb", "run=x", "perturbation=noise"], ["perturbation: expected one of"]),
        (["perturb", "run=x", "name=../../out"], ["name: expected letters", "got '../../out'"]),
        (["eval", "run=x", "sead=1"], ["did you mean seed?"]),
        (["eval", "outputs/x"], ["did you mean run=outputs/x?"]),
        (["report", "outputs/x"], ["did you mean runs=outputs/x?"]),
    ],
)
def test_eval_and_perturb_refuse(sdunroll, tmp_path, arguments, parts):
    check(sdunroll(*arguments), *parts)
    assert not list((tmp_path / "work").rglob("*"))


@pytest.fixture
def run(train_once):
    return train_once(*TINY)


def test_a_file_of_a_run_is_no_run(sdunroll, run):
    check(
        sdunroll("eval", f"run={run}/config.yaml"),
        "config.yaml: expected the directory",
        "is a file",
    )


def test_a_folder_without_a_run(sdunroll, tmp_path):
    (tmp_path / "work" / "empty").mkdir()
    check(sdunroll("eval", "run=empty"), "empty", "holds no config.yaml")
    assert not list((tmp_path / "work" / "empty").iterdir())


@pytest.mark.parametrize(
    ("name", "damage", "parts"),
    [
        ("checkpoints/best.pt", lambda path: path.unlink(), ["best.pt", "missing"]),
        ("checkpoints/best.pt", lambda path: path.write_bytes(b""), ["best.pt", "damaged"]),
        (
            "checkpoints/best.pt",
            lambda path: path.write_bytes(path.read_bytes()[:-500]),
            ["best.pt", "damaged"],
        ),
        ("config.yaml", lambda path: path.write_text("a: [1"), ["config.yaml", "damaged"]),
        ("provenance.json", lambda path: path.write_text("{"), ["provenance.json", "damaged"]),
    ],
)
def test_a_damaged_run(sdunroll, run, name, damage, parts):
    damage(run / name)
    check(sdunroll("eval", f"run={run}"), *parts)
    (log,) = (run / "eval").iterdir()  # the traceback, and nothing else
    assert log.name == "eval.log"
    assert "Traceback" in log.read_text()


def test_a_run_of_another_version(sdunroll, run):
    path = run / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    check(sdunroll("eval", f"run={run}"), "format 2 or 1, got format 99")


def test_checkpoint_and_configuration_that_do_not_belong_together(sdunroll, run):
    other = sdunroll("train", *TINY, "network.num_layers=2").run
    shutil.copy(other / "checkpoints" / "best.pt", run / "checkpoints" / "best.pt")
    check(sdunroll("eval", f"run={run}"), "best.pt", "does not belong here")


def test_resume_refuses_changes_that_would_make_it_another_run(sdunroll):
    run = sdunroll("train", *TINY, "training.stop_after=1").run
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    outcome = sdunroll("train", f"resume={run}", "constraint.epsilon=0.2")
    check(outcome, "resume", "got constraint.epsilon=0.2")
    check(sdunroll("train", f"resume={run}", "~device"), "resume", "got ~device")
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    before.pop(run / "train.log", None), after.pop(run / "train.log", None)
    assert before == after


def test_resume_stays_in_the_directory_of_the_run(sdunroll):
    run = sdunroll("train", *TINY, "training.stop_after=1").run
    check(sdunroll("train", f"resume={run}", "hydra.run.dir=other"), "got hydra.run.dir=other")
    with held(run / "train.lock"):  # of a sweep, the directory of the job is another
        outcome = sdunroll("train", "-m", f"resume={run}", "hydra.sweep.dir=sweep")
        assert outcome.status == 1
        assert f"{run}: in use by process" in outcome.err
    assert sdunroll("train", "-m", f"resume={run}", "hydra.sweep.dir=sweep").status == 0
    assert (run / "summary.json").is_file()


def test_a_network_that_overflows_is_named_by_level(sdunroll, run):
    check(
        sdunroll("perturb", f"run={run}", "levels=[1,1e38]"), "levels: at level 1e+38", "not finite"
    )
    assert not (run / "perturb" / "layer_noise.json").exists()


def test_a_directory_whose_run_saved_no_epoch_can_be_trained_in(sdunroll, monkeypatch):
    folder = "outputs/again"
    with monkeypatch.context() as patched:
        patched.setattr(Training, "_train_epoch", lambda self: 1 / 0)
        check(sdunroll("train", *TINY, f"hydra.run.dir={folder}"), "ZeroDivisionError")
    assert sdunroll("train", *TINY, f"hydra.run.dir={folder}").status == 0


def test_a_run_directory_is_not_overwritten(sdunroll, run):
    outcome = sdunroll("train", *TINY, f"hydra.run.dir={run}")
    check(outcome, "holds a finished run; take another hydra.run.dir")
    (run / "summary.json").unlink()
    outcome = sdunroll("train", *TINY, f"hydra.run.dir={run}")
    check(
        outcome,
        f"holds a run already; take another hydra.run.dir, or go on with `sdunroll train resume={run}`",
    )
    (run / "checkpoints" / "last.pt").unlink()  # which the one before can stand in for
    check(sdunroll("train", *TINY, f"hydra.run.dir={run}"), "holds a run already")


def test_what_the_end_of_a_resumed_training_needs_is_looked_at_before(sdunroll):
    run = sdunroll("train", *TINY, "training.stop_after=1").run
    history = (run / "history.csv").read_text()
    best = (run / "checkpoints" / "best.pt").rename(run / "elsewhere.pt")
    check(sdunroll("train", f"resume={run}"), "best.pt", "missing")
    best.rename(run / "checkpoints" / "best.pt")
    state = Run(run).load_checkpoint("last")
    del state["path"]
    state["instances"]["train"] += 10
    Run(run).save_checkpoint("last", state)
    check(sdunroll("train", f"resume={run}"), "the train split: expected 106 instances", "got 96")
    assert (run / "history.csv").read_text() == history


def test_unknown_command(sdunroll):
    outcome = sdunroll("trian")
    assert outcome.status == 2
    assert "did you mean train?" in outcome.err


def test_a_configuration_without_a_group():
    config = OmegaConf.create({"problem": 3})
    with pytest.raises(UserError, match="expected settings under 'problem', found 3"):
        instantiate(config, "problem")


def test_weights_of_another_shape(sdunroll, run):
    """A checkpoint that belongs to the run by its seals, but whose weights do not fit."""
    saved = Run(run)
    state = saved.load_checkpoint("best")
    state["network"] = {name: value[..., :-1] for name, value in state["network"].items()}
    del state["path"]
    saved.save_checkpoint("best", state)
    check(sdunroll("eval", f"run={run}"), "best.pt: does not fit the network", "config.yaml")


def test_results_that_cannot_be_written(sdunroll, run):
    (run / "eval").write_text("a file where a folder should be")
    check(sdunroll("eval", f"run={run}"), "eval: could not be written")


def test_settings_that_a_class_of_ones_own_does_not_take(sdunroll):
    check(
        sdunroll("train", *TINY, "+network.depth=3"),
        "network: expected settings that make sdunroll.networks.Lista",
        "depth",
    )


def test_settings_that_data_do_not_take(sdunroll):
    check(
        sdunroll("train", *TINY, "+data.depth=3"),
        "data: expected settings that make sdunroll.data.Photos",
        "depth",
    )


def test_nothing_is_written_into_a_folder_that_is_no_runs(tmp_path):
    with working_in(tmp_path, "eval/eval"):
        assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_an_optimizer_that_is_none(sdunroll):
    check(sdunroll("train", *TINY, "training.optimizer=3"), "training.optimizer", "got 3")
