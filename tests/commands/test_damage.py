"""What is damaged, swapped, gone or in use is noticed and named."""

import json
import shutil
import signal
import zipfile
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from sdunroll.cache import WriteError
from sdunroll.commands import saving
from sdunroll.lock import held
from sdunroll.runs import Run, RunError
from sdunroll.training import Training
from sdunroll.training.steps import Steps
from tests.conftest import TINY

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def run(train_once):
    return train_once(*TINY)


def error_of(outcome):
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    assert outcome.status == 1
    return line


def weights(run, name="last"):
    return torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    """Flip the lowest bit of a digit (which leaves a digit) or, in a checkpoint, of a weight."""
    data = bytearray(path.read_bytes())
    if path.suffix == ".pt":
        with zipfile.ZipFile(path) as archive:
            largest = max(archive.infolist(), key=lambda record: record.file_size)
        place = largest.header_offset + largest.file_size // 2 + 200
    else:
        place = max(index for index, byte in enumerate(data) if chr(byte).isdigit()) - 3
        place = next(index for index in range(place, 0, -1) if chr(data[index]).isdigit())
    data[place] ^= 1
    path.write_bytes(data)


FILES = ("config.yaml", "provenance.json", "checkpoints/best.pt")


@pytest.mark.parametrize("damage", [truncate, flip])
def test_damage_is_noticed_and_named(sdunroll, run, damage):
    for name in FILES:
        whole = (run / name).read_bytes()
        damage(run / name)
        line = error_of(sdunroll("eval", f"run={run}"))
        named = "provenance.json" if (damage, name) == (truncate, FILES[0]) else name
        assert named in line or name in line
        (run / name).write_bytes(whole)
    assert sdunroll("eval", f"run={run}").status == 0
    for name in ("summary.json", "eval/metrics.json"):
        damage(run / name)
    outcome = sdunroll("report", f"runs={run}")
    assert "summary.json: damaged" in outcome.err
    assert "metrics.json: damaged or not readable" in outcome.err
    assert "call eval again" in outcome.err


def test_swapped_files_are_noticed(sdunroll, run):
    """Between two runs, and within one."""
    other = sdunroll("train", *TINY, "problem.alpha=0.2").run
    pairs = [(other / name, run / name) for name in (*FILES, "checkpoints/last.pt")]
    pairs += [(run / "checkpoints" / "last.pt", run / "checkpoints" / "best.pt")]
    for source, target in pairs:
        whole = target.read_bytes()
        shutil.copy(source, target)
        command = "train" if source.parent == other / "checkpoints" else "eval"
        (run / "checkpoints" / "previous.pt").unlink(missing_ok=True)
        key = "resume" if target.name == "last.pt" else "run"
        command = "train" if key == "resume" else "eval"
        line = error_of(sdunroll(command, f"{key}={run}"))
        named = "provenance.json" if target.name == "config.yaml" else target.name
        assert named in line
        assert "run's" in line or "another run" in line
        target.write_bytes(whole)


def test_a_damaged_row_of_the_history_is_named_and_left_out(run, caplog):
    whole = Run(run).history()
    path = run / "history.csv"
    header, first, second = path.read_text().splitlines()
    path.write_text("\n".join([header, first.replace("1,", "3,", 1), second, second[:9]]))
    assert Run(run).history() == whole[1:]
    assert "history.csv: row 1 is damaged and left out" in caplog.text
    assert "row 3" not in caplog.text  # an interruption cuts the last one off
    assert "check" not in whole[0]


def test_a_setting_may_be_changed_on_purpose_if_it_leaves_the_run_what_it_is(sdunroll, run):
    path = run / "config.yaml"
    text = path.read_text().replace("cuda_graph: false", "cuda_graph: true")
    lines = text.replace("threads: null", "threads: 1").splitlines()
    path.write_text("\n".join(lines))
    assert "remove its last line" in error_of(sdunroll("eval", f"run={run}"))
    path.write_text("\n".join(lines[:-1]))
    assert sdunroll("eval", f"run={run}").status == 0
    path.write_text("\n".join(lines[:-1]).replace("num_layers: 3", "num_layers: 4"))
    assert "provenance.json" in error_of(sdunroll("eval", f"run={run}"))


def test_a_run_directory_of_the_format_before_is_read(sdunroll, run):
    """It had no checksums."""
    config = OmegaConf.load(run / "config.yaml")
    OmegaConf.save(config, run / "config.yaml")
    new = Run(run)
    provenance = new.provenance | {"format": 1}
    for path in (run / "checkpoints").iterdir():
        state = weights(run, path.stem) | {"format": 1}
        del state["run"], state["name"]
        torch.save(state, path)
    new.write_json("provenance.json", provenance)
    (run / "provenance.json").write_text(
        (run / "provenance.json").read_text().replace("check", "x")
    )
    (run / "summary.json").unlink()
    for arguments in (
        ["train", f"resume={run}"],
        ["eval", f"run={run}"],
        ["report", f"runs={run}"],
    ):
        outcome = sdunroll(*arguments)
        assert outcome.status == 0, outcome.err


def test_a_history_of_the_format_before_grows_in_its_own_columns(run):
    """A resumed run of format 1 keeps its rows: they have no checksums."""
    history = run / "history.csv"
    header, *lines = history.read_text().splitlines()
    bare = [line.rpartition(",")[0] for line in (header, *lines)]
    history.write_text("\n".join(bare) + "\n")
    provenance = json.loads((run / "provenance.json").read_text())
    del provenance["check"]
    (run / "provenance.json").write_text(json.dumps(provenance | {"format": 1}))
    old = Run(run)
    before = old.history()
    assert len(before) == len(lines)
    old.append_history(before[-1] | {"epoch": 99})
    assert [row["epoch"] for row in old.history()] == [*(row["epoch"] for row in before), 99]


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_a_checkpoint_falls_back_to_the_one_before(sdunroll, run, damage):
    whole = weights(run)
    (run / "summary.json").unlink()
    damage(run / "checkpoints" / "last.pt")
    outcome = sdunroll("train", f"resume={run}")
    assert outcome.status == 0
    assert "last.pt: " in outcome.err
    assert "goes on from the one before" in outcome.err
    again = weights(run)
    assert (weights(run, "previous")["epochs_done"], again["epochs_done"]) == (1, 2)
    assert str(again) == str(whole)
    for name, value in whole["network"].items():
        assert torch.equal(again["network"][name], value)
    for path in (run / "checkpoints").glob("[lp]*.pt"):
        path.write_bytes(b"")
    assert "last.pt: damaged" in error_of(sdunroll("train", f"resume={run}"))


@pytest.mark.parametrize(
    ("lock", "command"),
    [
        ("train.lock", ["train", "resume={}"]),
        ("train.lock", ["train", *TINY, "hydra.run.dir={}"]),
        ("eval/eval.lock", ["eval", "run={}"]),
        ("perturb/layer_noise.lock", ["perturb", "run={}"]),
    ],
)
def test_two_at_once(sdunroll, run, lock, command):
    (run / lock).parent.mkdir(exist_ok=True)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with held(run / lock):
        line = error_of(sdunroll(*(part.format(run) for part in command)))
        assert "in use by process" in line
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after == before


def test_evaluating_while_it_trains(sdunroll):
    run = sdunroll("train", *TINY, "training.stop_after=1").run
    with held(run / "train.lock"):
        assert sdunroll("eval", f"run={run}").status == 0
        assert sdunroll("perturb", f"run={run}", "levels=[0]").status == 0


def test_a_directory_that_vanishes_is_not_made_again(sdunroll, monkeypatch, tmp_path):
    save = saving.save

    def vanish(training, experiment, run, epoch, labels):
        save(training, experiment, run, epoch, labels)
        run.folder.rename(tmp_path / "moved")

    monkeypatch.setattr(saving, "save", vanish)
    line = error_of(sdunroll("train", *TINY, "hydra.run.dir=outputs/gone"))
    assert "outputs/gone: the run directory is gone; put it back and go on with" in line
    assert not Path("outputs/gone").exists()
    monkeypatch.setattr(saving, "save", save)
    (tmp_path / "moved").rename("outputs/gone")
    assert sdunroll("train", "resume=outputs/gone").status == 0


def test_nothing_is_written_where_the_run_is_gone(run):
    there = Run(run)
    shutil.rmtree(run)
    for write in (
        lambda: there.write_json("summary.json", {}),
        lambda: there.save_checkpoint("last", {}),
        lambda: there.append_history({}),
    ):
        with pytest.raises(RunError, match="the run directory is gone"):
            write()
    assert not run.exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_waits_for_the_end_of_the_step(sdunroll, monkeypatch, number, status):
    step, epoch = Steps.take, Training._epoch
    begun, steps = [], []

    def recorded(self):
        begun.append(self.epochs_done)
        return epoch(self)

    def interrupted(self, batch):
        if len(steps) == 4:  # in the second epoch of three steps
            signal.raise_signal(number)
        done = step(self, batch)
        steps.append(begun[-1])
        return done

    monkeypatch.setattr(Training, "_epoch", recorded)
    monkeypatch.setattr(Steps, "take", interrupted)
    outcome = sdunroll("train", *TINY)
    assert outcome.status == status
    assert steps == [0, 0, 0, 1, 1]
    (line,) = [line for line in outcome.err.splitlines() if "interrupted" in line]
    assert "in epoch 2, whose steps are lost; go on with: sdunroll train resume=" in line


def test_a_second_interruption_does_not_wait(sdunroll, monkeypatch):
    def interrupted(self, batch):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("waited")

    monkeypatch.setattr(Steps, "take", interrupted)
    assert sdunroll("train", *TINY).status == 130


@pytest.mark.parametrize("name", ["provenance.json", "summary.json"])
def test_results_that_are_no_mapping(sdunroll, run, name):
    (run / name).write_text("[1]")
    with pytest.raises(RunError, match=rf"{name}: damaged .*not a mapping"):
        Run(run).read_json(name)


def test_a_checkpoint_of_another_format(run):
    path = run / "checkpoints" / "best.pt"
    torch.save(torch.load(path, weights_only=True) | {"format": 7}, path)
    with pytest.raises(RunError, match=r"best.pt: damaged .*not a checkpoint of format 2"):
        Run(run).load_checkpoint("best")


def test_a_configuration_that_is_no_mapping(sdunroll, run):
    (run / "config.yaml").write_text("- 1\n- 2\n")
    assert "config.yaml: damaged" in error_of(sdunroll("eval", f"run={run}"))


def test_a_history_that_is_missing_or_cannot_be_written(sdunroll, run):
    saved = Run(run)
    row = saved.history()[-1]
    (run / "history.csv").unlink()
    assert saved.history() == []
    saved.truncate_history(1)  # nothing to leave out
    assert not (run / "history.csv").exists()
    (run / "history.csv").mkdir()
    with pytest.raises(WriteError, match=r"history.csv"):
        saved.append_history(row)


def test_a_file_system_without_links_keeps_a_copy_of_the_checkpoint_before(run, monkeypatch):
    def refuse(self, target):
        raise OSError("no links here")

    saved = Run(run)
    before = (run / "checkpoints" / "last.pt").read_bytes()
    state = saved.load_checkpoint("last")
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    saved.save_checkpoint("last", {"epochs_done": 9} | {"network": state["network"]})
    assert (run / "checkpoints" / "previous.pt").read_bytes() == before
    assert saved.load_checkpoint("last")["epochs_done"] == 9


def test_an_interruption_after_the_last_epoch_loses_nothing(sdunroll, monkeypatch):
    """While the best network is measured on the test split."""

    def interrupted(training, experiment, run):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(saving, "summarise", interrupted)
        outcome = sdunroll("train", *TINY, "hydra.run.dir=late")
    assert outcome.status == 130
    assert "after the last epoch; go on with: sdunroll train resume=late" in outcome.err
    assert sdunroll("train", "resume=late").status == 0
    assert (Path("late") / "summary.json").exists()
