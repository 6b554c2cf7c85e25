"""`sdunroll train dry_run=true` says what a training would take, and leaves nothing behind."""

import re
from pathlib import Path

import pytest
import torch

from sdunroll.runs import Run
from tests.conftest import TINY, TINY_OF


def rows(outcome):
    """The table that it prints."""
    assert outcome.status == 0, outcome.err
    return dict(re.split(r"\s{2,}", line, maxsplit=1) for line in outcome.out.strip().splitlines())


def test_it_counts_what_the_training_has(sdunroll):
    table = rows(sdunroll("train", *TINY, "constrained=false", "dry_run=true"))
    assert not list(Path().iterdir())
    run = Run(sdunroll("train", *TINY, "constrained=false").run)
    state = run.load_checkpoint("last")
    parameters = sum(value.numel() for value in state["network"].values())
    assert table["parameters"] == f"{parameters:,}"
    adam = 4 * (2 * parameters + len(state["network"]))  # two moments and a count each
    assert f"weights {4 * parameters / 1000:.3g} kB" in table["memory"]
    assert f"optimizer {adam / 1000:.3g} kB" in table["memory"]
    assert table["steps"].startswith("6 (3 in each of 2 epochs")
    batch, layers, m, n = 32, 3, 36, 43
    observed = 2 * layers * 2 * batch * m * n  # W2 x and its weights' gradient
    iterated = (3 * layers - 1) * 2 * batch * n * n  # W1 y, and both its gradients but for y_0's
    assert float(table["FLOP per step"].split()[0]) == float(f"{observed + iterated:.3g}")
    assert re.match(r"[\d.]+ ms \(median of 6\)", table["time per step"])
    assert re.match(r"0 min \d s, validation included", table["estimated time"])


@pytest.mark.parametrize("problem", ["glow_prox", "synthetic"])
def test_every_problem_and_schedule(sdunroll, problem):
    table = rows(sdunroll("train", *TINY_OF[problem], "dry_run=true"))
    assert float(table["FLOP per step"].split()[0]) > 0
    assert not list(Path().iterdir())


def test_it_tries_the_precision_that_is_asked_for(sdunroll):
    outcome = sdunroll("train", *TINY_OF["glow_prox"], "precision=bf16", "dry_run=true")
    assert outcome.status == 1
    assert "precision: expected fp32 for layers that invert a map" in outcome.err


def test_it_refuses_what_training_does(sdunroll):
    decay = ["training=layerwise", "training.epochs=3", "+training.optimizer.weight_decay=0.1"]
    outcome = sdunroll("train", *TINY, *decay, "dry_run=true")
    assert outcome.status == 1
    assert "training.optimizer.weight_decay: expected 0" in outcome.err


def test_more_epochs_take_longer(sdunroll):
    table = rows(sdunroll("train", *TINY, "training.epochs=10000000", "dry_run=true"))
    step = float(table["time per step"].split()[0]) / 1000
    hours = int(table["estimated time"].split(" h ")[0])
    assert hours >= int(3e7 * step / 3600)


def test_a_directory_that_was_typed_is_not_left(sdunroll):
    rows(sdunroll("train", *TINY, "dry_run=true", "hydra.run.dir=mine"))
    assert not list(Path().iterdir())
    Path("mine").mkdir()
    Path("mine/notes").write_text("kept")
    rows(sdunroll("train", *TINY, "dry_run=true", "hydra.run.dir=mine"))
    assert [path.name for path in Path("mine").iterdir()] == ["notes"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["-m", "seed=0,1", "dry_run=true"], "dry_run: expected one run, got a sweep"),
        (["resume=somewhere", "dry_run=true"], "dry_run: expected a new run, got resume=somewhere"),
        (["dry_run=perhaps"], "dry_run: expected true or false, got 'perhaps'"),
        (["dry_run=true", "training.lr=1e30"], "training stopped in epoch 1"),
    ],
)
def test_refusals(sdunroll, arguments, line):
    outcome = sdunroll("train", *arguments, *TINY)
    assert outcome.status == 1
    assert line in outcome.err
    assert len([text for text in outcome.err.splitlines() if not text.startswith("optima")]) == 1
    if "dry_run=true" in arguments:
        assert not list(Path().iterdir())


def test_the_global_random_state_is_not_touched(sdunroll):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    sdunroll("train", *TINY, "dry_run=true")
    assert torch.equal(torch.get_rng_state(), before)
