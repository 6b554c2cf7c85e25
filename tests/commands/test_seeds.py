"""The parts of the seed, set one by one."""

import json
from pathlib import Path

import pytest
import torch

from sdunroll.report.collect import Record, find
from sdunroll.report.grouping import methods
from tests.conftest import TINY

pytestmark = pytest.mark.usefixtures("undrawn")

PARTS = ("weights", "order", "noise")
STREAM = {"order": ["order_rng"], "noise": ["start_rng", "noise_rng"], "weights": []}


def last(run):
    return torch.load(run / "checkpoints" / "last.pt", weights_only=True)


def weights(run):
    return torch.cat([value.flatten() for value in last(run)["network"].values()])


@pytest.fixture
def train(sdunroll):
    def call(*seeds):
        outcome = sdunroll(
            "train", *TINY, "training.noise_level=0.5", "network.init=random", *seeds
        )
        assert outcome.status == 0, outcome.err
        return outcome.run

    return call


def test_a_report_names_the_parts_that_have_a_seed_of_their_own():
    parts = {"weights": None, "order": 5, "noise": 1}  # null is the run's
    assert Record(Path("run"), {"seed": 5, "seeds": parts}, {}).seeds == (
        ("seed", 5), ("seeds.noise", 1),
    )  # fmt: skip


def test_the_parts_together_are_the_seed(train):
    whole, parts = train(), train("seed=5", *(f"seeds.{part}=0" for part in PARTS))
    assert torch.equal(weights(whole), weights(parts))
    assert not torch.equal(weights(whole), weights(train("seed=5")))


def test_each_part_moves_its_own_stream_alone(train):
    before = last(train())
    for part in PARTS:
        run = train(f"seeds.{part}=1")
        after = last(run)
        moved = [
            name
            for name in ("order_rng", "start_rng", "noise_rng")
            if not torch.equal(before[name], after[name])
        ]
        assert moved == STREAM[part]
        assert any(
            not torch.equal(before["network"][name], value)
            for name, value in after["network"].items()
        ), part


def test_the_start_and_the_disturbance_of_a_perturbation(sdunroll, train):
    run = train()

    def finals(*seeds):
        outcome = sdunroll("perturb", f"run={run}", "levels=[0,1]", *seeds)
        assert outcome.status == 0, outcome.err
        levels = json.loads((run / "perturb" / "layer_noise.json").read_text())["levels"]
        return [row["final_distance"] for row in levels]

    calm, noisy = finals()
    other_noise = finals("seeds.disturbance=1")
    assert other_noise[0] == calm
    assert other_noise[1] != noisy
    assert finals("seeds.start=1")[0] != calm
    assert finals("seed=1", "seeds.start=0", "seeds.disturbance=0") == [calm, noisy]


def test_a_run_of_before_there_were_parts(sdunroll, train):
    """Its configuration has none; it goes on and is evaluated by its one seed."""
    run = train("~seeds", "training.stop_after=1")
    assert "seeds:" not in (run / "config.yaml").read_text()
    assert sdunroll("train", f"resume={run}").status == 0
    assert torch.equal(weights(run), weights(train()))
    assert sdunroll("perturb", f"run={run}", "levels=[1]").status == 0


def test_runs_that_differ_in_a_part_alone_are_one_method(sdunroll, train):
    for seeds in (["seed=0"], ["seeds.weights=3"], ["seed=1"]):
        train(*seeds)
    (method,) = methods(find(["outputs"]))
    found = [record.seeds for record in method.records]
    assert found == [(("seed", 0),), (("seed", 0), ("seeds.weights", 3)), (("seed", 1),)]
    assert sdunroll("report", "runs=outputs").status == 0
    (page,) = method.records[0].folder.parents[2].glob("outputs/**/index.html")
    assert "seeds.weights=3" in page.read_text()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seeds.noise=-1", "seeds.noise: expected"),
        ("seeds.weights=a", "seeds.weights: expected"),
        ("seeds=3", "seeds: expected a number for each part"),
    ],
)
def test_parts_that_cannot_be(sdunroll, override, said):
    outcome = sdunroll("train", *TINY, override)
    assert outcome.status == 1
    assert outcome.err.startswith(f"error: {said}"), outcome.err
