"""The same command, seed, machine and number of threads give the same bits."""

import csv
import json
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY_OF

pytestmark = pytest.mark.usefixtures("undrawn")

# large enough that torch divides the work among its threads
SIZES = {
    "lista": ["data.size=16", "data.num_train=512", "training.batch_size=256"],
    "synthetic": ["network=lista", "network.init=analytic", "problem.num_features=125",
                  "data.num_atoms=250", "data.num_train=512", "training.batch_size=256"],
    "glow_prox": ["data.size=32", "operator.size=12", "network.proximal.width=16"],
}  # fmt: skip
PERTURB = {
    "lista": ["perturbation=adversarial", "perturbation.steps=5", "levels=[0.1]"],
    "synthetic": ["perturbation=snr", "levels=[20]"],
    "glow_prox": ["perturbation=layer_noise", "levels=[1]"],
}
TIMES = ("check", "seconds", "training_seconds", "evaluated", "revision", "cost")


def without_times(value):
    """Results as they are saved, but for what a clock says."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def everything(sdunroll, problem, threads, folder, monkeypatch):
    """What train, eval and perturb come to; of a report, test_report knows that it is the same."""
    monkeypatch.setenv("SDUNROLL_CACHE", str(Path(folder).absolute() / "cache"))
    own = [f"threads={threads}"]
    for arguments in (
        ["train", *TINY_OF[problem], *SIZES[problem], f"hydra.run.dir={folder}/run", *own],
        ["eval", f"run={folder}/run", *own],
        ["perturb", f"run={folder}/run", *PERTURB[problem], *own],
    ):
        outcome = sdunroll(*arguments)
        assert outcome.status == 0, outcome.err
    run = Path(folder) / "run"
    last = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    with (run / "history.csv").open() as file:
        history = [without_times(row) for row in csv.DictReader(file)]
    results = {
        str(path.relative_to(run)): without_times(json.loads(path.read_text()))
        for path in [
            run / "summary.json",
            *run.glob("eval/metrics.json"),
            *run.glob("perturb/*.json"),
        ]
    }
    assert len(results) == 3
    return last, history, results


@pytest.mark.parametrize(("threads", "problem"), [(1, "lista"), *((2, name) for name in SIZES)])
def test_every_command_gives_the_same_bits_again(sdunroll, problem, threads, monkeypatch):
    first, again = (
        everything(sdunroll, problem, threads, name, monkeypatch) for name in ("first", "again")
    )
    weights, weights_again = first[0]["network"], again[0]["network"]
    assert weights.keys() == weights_again.keys()
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)
    assert first[1:] == again[1:]
