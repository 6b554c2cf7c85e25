"""The commands as a user calls them, and the files they leave."""

import csv
import json
import os
import signal

import numpy as np
import pytest
import torch

from sdunroll import metrics
from sdunroll.commands.assemble import load_best
from sdunroll.randomness import generator
from sdunroll.report import figures
from sdunroll.training import Training
from tests.conftest import TINY


@pytest.fixture
def trained(train_once):
    return train_once(*TINY)


def read(path):
    return json.loads(path.read_text())


def test_train_leaves_a_run_directory(trained):
    files = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert files == {
        "checkpoints/best.pt",
        "checkpoints/last.pt",
        "checkpoints/previous.pt",
        "config.yaml",
        "history.csv",
        "provenance.json",
        "summary.json",
        "train.log",
    }
    summary = read(trained / "summary.json")
    assert summary["epochs"] == 2
    assert len(summary["slack"]) == 3
    assert summary["feasible"] == all(slack <= 0 for slack in summary["slack"])
    assert summary["final_distance"] > 0
    assert summary["seconds"] > 0
    with (trained / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    numbered = [f"{name}_{layer}" for name in ("slack", "multiplier") for layer in (1, 2, 3)]
    expected = ["epoch", "train_loss", "val_loss", "val_distance", *numbered, "lr", "seconds"]
    assert list(rows[0])[: len(expected)] == expected
    assert [row["epoch"] for row in rows] == ["1", "2"]
    provenance = read(trained / "provenance.json")
    assert provenance["seed"] == 0
    assert provenance["wall_seconds"] > 0
    assert provenance["peak_memory_bytes"] > 10**6
    assert (provenance["peak_gpu_memory_bytes"] is None) == (provenance["device"] == "cpu")
    assert provenance["overrides"] == TINY
    for name in ("best", "last"):
        state = torch.load(trained / "checkpoints" / f"{name}.pt", weights_only=True)
        assert "network" in state


def test_eval(trained, sdunroll):
    outcome = sdunroll("eval", f"run={trained}")
    assert outcome.status == 0, outcome.err
    result = read(trained / "eval" / "metrics.json")
    assert result["num_samples"] == 48
    assert result["epoch"] == read(trained / "summary.json")["best_epoch"]
    assert result["epsilon"] == 0.1
    assert result["measure"] == "distance"
    assert [row["layer"] for row in result["layers"]] == [0, 1, 2, 3]
    for row in result["layers"]:
        names = {"layer", "distance", "objective_gap", "gradient_norm", "l1_norm", "measured"}
        names |= {"slack", "descent_frequency"} if row["layer"] else set()
        assert set(row) == names
        for name in names - {"layer"}:
            low, high = row[name]["ci95"]
            assert low <= row[name]["mean"] <= high
            assert row[name]["std"] >= 0
    summary = read(trained / "summary.json")
    last = result["layers"][-1]["distance"]["mean"]
    assert last == pytest.approx(summary["final_distance"], rel=1e-5)
    slacks = [row["slack"]["mean"] for row in result["layers"][1:]]
    assert slacks == pytest.approx(summary["slack"], abs=1e-5)
    assert set(result["baselines"]) == {"ista", "fista"}
    assert result["optimum_relative_gap"] <= 1e-5
    figures = sorted(path.name for path in (trained / "eval" / "figures").iterdir())
    names = ["l1_histograms", "per_layer", "reconstructions", "theory", "training"]
    assert figures == [f"{name}.png" for name in names]
    theory = result["theory"]
    norms = [row["gradient_norm"]["mean"] for row in result["layers"]]
    assert theory["measured"] == pytest.approx(norms, rel=1e-5)
    assert theory["holds"] == [
        value <= bound for value, bound in zip(theory["measured"], theory["bound"], strict=True)
    ]
    assert "the paper's bound" in outcome.out
    table = outcome.out.splitlines()[2:6]
    verdicts = ["", *("ok" if slack <= 0 else "violated" for slack in slacks)]
    assert [
        line.split()[-1] if verdict else "" for line, verdict in zip(table, verdicts, strict=True)
    ] == verdicts
    assert [float(line.split()[1]) for line in table] == pytest.approx(
        [row["distance"]["mean"] for row in result["layers"]], rel=1e-3
    )


@pytest.mark.usefixtures("undrawn")
def test_the_pictured_instances_start_where_they_were_measured_from(trained, sdunroll, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        figures, "images", lambda columns, path, labels, **_: drawn.update(columns, labels=labels)
    )
    monkeypatch.setattr("sdunroll.commands.eval.BASELINE_SAMPLES", 40)
    outcome = sdunroll("eval", f"run={trained}")
    assert outcome.status == 0, outcome.err
    _, one = load_best(trained, torch.device("cpu"), [])
    test = one.instances("test")
    found = metrics.evaluate(one.network, one.problem, one.constraint, test, seed=0)
    distances = found.states["distance"][-1]
    worst = int(distances.argmax())
    start = one.network.initial(test.obs, generator(0, "evaluation/start"))[worst]
    assert drawn["labels"][0] == f"error {float(distances[worst]):.2f}"
    np.testing.assert_allclose(
        drawn["start"][0].ravel(), one.problem.reconstruct(start).numpy(), atol=1e-6
    )
    assert "solvers: on the first 40 of 48 instances" in outcome.out
    assert read(trained / "eval" / "metrics.json")["baseline_samples"] == 40


@pytest.mark.usefixtures("undrawn")
def test_eval_is_the_same_twice(trained, sdunroll):
    sdunroll("eval", f"run={trained}")
    first = (trained / "eval" / "metrics.json").read_text()
    sdunroll("eval", f"run={trained}")
    assert (trained / "eval" / "metrics.json").read_text() == first


@pytest.mark.usefixtures("undrawn")
def test_eval_needs_no_cache(trained, sdunroll, monkeypatch, tmp_path):
    """The dictionary is in the checkpoint; the optima are solved again."""
    sdunroll("eval", f"run={trained}")
    first = (trained / "eval" / "metrics.json").read_text()
    monkeypatch.setenv("SDUNROLL_CACHE", str(tmp_path / "another"))
    sdunroll("eval", f"run={trained}")
    assert (trained / "eval" / "metrics.json").read_text() == first


@pytest.mark.usefixtures("undrawn")
def test_eval_of_signals_that_are_no_pictures(sdunroll):
    run = sdunroll(
        "train",
        "data=synthetic",
        "data.num_features=10",
        "data.num_atoms=15",
        "data.num_train=64",
        "data.num_val=32",
        "data.num_test=32",
        "network.num_layers=2",
        "training.epochs=1",
    ).run
    outcome = sdunroll("eval", f"run={run}")
    assert outcome.status == 0, outcome.err
    assert not (run / "eval" / "figures" / "reconstructions.png").exists()


def test_perturb(trained, sdunroll):
    outcome = sdunroll("perturb", f"run={trained}", "levels=[1,0,1]")
    assert outcome.status == 0, outcome.err
    result = read(trained / "perturb" / "layer_noise.json")
    assert result["perturbation"] == "layer_noise"
    assert result["settings"]["mode"] == "relative"
    assert result["epoch"] in (1, 2)
    zero, one = result["levels"]
    assert set(zero) >= {
        "level",
        "final_distance",
        "objective_gap",
        "l1_norm",
        "descent_frequency",
    }
    assert len(one["descent_frequency"]) == 3
    summary = read(trained / "summary.json")
    assert zero["final_distance"] == pytest.approx(summary["final_distance"], rel=1e-5)
    assert one["final_distance"] > zero["final_distance"]
    assert (trained / "perturb" / "figures" / "layer_noise.png").stat().st_size > 1000


def test_shifted_inputs_are_compared_with_their_own_optimum(trained, sdunroll):
    """The figure by hand: noise, optimum of the shifted problem, distance to that one."""
    sdunroll("perturb", f"run={trained}", "perturbation=input_noise", "levels=[0.5]")
    (shifted,) = read(trained / "perturb" / "input_noise.json")["levels"]
    _, experiment = load_best(trained, torch.device("cpu"))
    clean = experiment.instances("test")
    noise = torch.randn(clean.obs.shape, generator=generator(0, "perturb/observation"))
    obs = (clean.obs + 0.5 * noise).clamp(0, 1)
    start = generator(0, "evaluation/start")
    with torch.no_grad():
        final = experiment.network(obs, generator=start).states[-1]
    own = experiment.reference.optimum(obs)
    expected = (final - own).norm(dim=1).mean().item()
    assert shifted["final_distance"] == pytest.approx(expected, rel=1e-5)
    assert (final - clean.target).norm(dim=1).mean().item() != pytest.approx(expected, rel=1e-2)


def test_perturb_refuses_a_run_on_another_problem(trained, sdunroll):
    other = sdunroll("train", *TINY, "problem.alpha=0.2").run
    outcome = sdunroll("perturb", f"run={trained}", f"against={other}")
    assert outcome.status == 1
    assert "against: expected a run on the same data and problem" in outcome.err
    assert not (trained / "perturb" / "layer_noise.json").exists()


def test_perturb_against_another_run(trained, sdunroll):
    other = sdunroll("train", *TINY, "constrained=false").run
    outcome = sdunroll("perturb", f"run={trained}", f"against={other}", "levels=[0,2]")
    assert outcome.status == 0, outcome.err
    result = read(trained / "perturb" / "layer_noise.json")
    alone = sdunroll("perturb", f"run={other}", "levels=[0,2]")
    assert alone.status == 0
    own = read(other / "perturb" / "layer_noise.json")["levels"]
    assert result["against"]["levels"] == own
    assert "ratio" in outcome.out


def test_resumed_run_equals_the_uninterrupted_one(trained, sdunroll):
    first = sdunroll("train", *TINY, "training.stop_after=1")
    assert first.status == 0
    assert "go on with: sdunroll train resume=" in first.out
    assert not (first.run / "summary.json").exists()
    second = sdunroll("train", f"resume={first.run}")
    assert second.status == 0, second.err
    assert second.run == first.run
    for name in ("last", "best"):
        one, other = (
            torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)
            for run in (trained, first.run)
        )
        assert str(one) == str(other)
        for key, weight in one["network"].items():
            assert torch.equal(weight, other["network"][key]), key
    whole, resumed = read(trained / "summary.json"), read(first.run / "summary.json")
    own = {"seconds": 0, "check": ""}
    assert whole | own == resumed | own
    columns = []
    for run in (trained, first.run):
        with (run / "history.csv").open() as file:
            columns.append([{**row, "seconds": "", "check": ""} for row in csv.DictReader(file)])
    assert columns[0] == columns[1]


def test_resume_drops_history_that_no_checkpoint_stands_for(sdunroll):
    run = sdunroll("train", *TINY, "training.stop_after=1").run
    with (run / "history.csv").open("a") as file:
        file.write("2,0.5,half a row")
    assert sdunroll("train", f"resume={run}").status == 0
    assert "half a row" not in (run / "history.csv").read_text()
    with (run / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(None not in row for row in rows)  # no row has more cells than the header


def test_resume_of_a_finished_run_changes_nothing(trained, sdunroll):
    def contents():
        return {path: path.read_bytes() for path in trained.rglob("*") if path.suffix != ".log"
                and path.is_file()}  # fmt: skip

    before = contents()
    outcome = sdunroll("train", f"resume={trained}")
    assert outcome.status == 0
    assert outcome.run == trained
    assert contents() == before


def test_stop_after_an_epoch_that_is_done_trains_no_further(sdunroll):
    run = sdunroll("train", *TINY, "training.epochs=3", "training.stop_after=2").run
    again = sdunroll("train", f"resume={run}", "training.stop_after=1")
    assert again.status == 0
    assert (
        "2 epochs are done already, and training.stop_after=1 asks for no more; go on" in again.out
    )
    assert len((run / "history.csv").read_text().splitlines()) == 3


def test_sweep_goes_on_past_a_failed_job(sdunroll, tmp_path):
    outcome = sdunroll("train", "-m", *TINY, "constraint.epsilon=0.1,2,0.2")
    assert outcome.status == 1
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    assert "job 1" in line
    assert "constraint.epsilon: expected a number > 0 and < 1, got 2" in line
    (sweep,) = (tmp_path / "work" / "outputs" / "train").iterdir()
    assert (sweep / "0" / "summary.json").exists()
    assert (sweep / "2" / "summary.json").exists()
    assert "Traceback" in (sweep / "1" / "train.log").read_text()
    assert not (sweep / "1" / "config.yaml").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_keeps_its_last_epoch_and_says_how_to_go_on(
    sdunroll, monkeypatch, number, status
):
    epoch = Training._epoch

    def interrupted(self):
        if self.epochs_done == 1:
            os.kill(os.getpid(), number)
        return epoch(self)

    monkeypatch.setattr(Training, "_epoch", interrupted)
    outcome = sdunroll("train", *TINY)
    assert outcome.status == status
    assert "Traceback" not in outcome.err
    assert "interrupted\n" not in outcome.err
    (line,) = [line for line in outcome.err.splitlines() if "resume=" in line]
    run = line.split("resume=")[1]
    monkeypatch.setattr(Training, "_epoch", epoch)
    assert sdunroll("train", f"resume={run}").status == 0


def test_no_room_on_the_disk_keeps_the_checkpoint_before(sdunroll, monkeypatch):
    save = torch.save

    def full(state, path):
        if isinstance(state, dict) and state.get("epochs_done") == 2:
            path.write_bytes(b"half")
            raise RuntimeError("No space left on device")  # what torch.save raises then
        save(state, path)

    monkeypatch.setattr(torch, "save", full)
    outcome = sdunroll("train", *TINY)
    assert outcome.status == 1
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    assert "No space left on device" in line
    run = line.split("resume=")[1]
    monkeypatch.setattr(torch, "save", save)
    assert sdunroll("train", f"resume={run}").status == 0
