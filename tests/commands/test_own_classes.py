"""Mistakes in classes of one's own: one line that names the method, and nothing is written."""

import sys

import pytest

from tests.commands.test_failures import check
from tests.conftest import TINY

OWN = """
import torch
from torch import nn

from sdunroll.constraints import DescentConstraint, Distance
from sdunroll.data import Batch, Source
from sdunroll.networks import UnrolledNetwork
from sdunroll.perturbations import Perturbation
from sdunroll.problems import SparseCoding


class Own(UnrolledNetwork):
    def __init__(self, problem, generator):
        super().__init__(num_layers=3)
        self.dictionary = problem.dictionary
        self.step = nn.Parameter(torch.full((3,), 0.01))

    def initial(self, obs, generator):
        return torch.zeros(len(obs), self.dictionary.shape[1])

    def layer(self, index, y, shared):
        return y - self.step[index - 1] * (y @ self.dictionary.T - shared) @ self.dictionary


class Forgets(Own):
    def layer(self, index, y, shared):
        super().layer(index, y, shared)


class Sums(Own):
    def layer(self, index, y, shared):
        return super().layer(index, y, shared).sum(1)


class Narrow(Own):
    def initial(self, obs, generator):
        return torch.zeros_like(obs)


class Fixed(Own):
    def __init__(self, problem, generator):
        super().__init__(problem, generator)
        self.step.requires_grad_(False)


class Broken(Own):
    def __init__(self, problem, generator):
        super().__init__(problem, generator)
        len(3)


class Plain(nn.Linear):
    def __init__(self, problem, generator):
        super().__init__(2, 2)


class NotANumber(Distance):
    def measure(self, problem, y, batch):
        return super().measure(problem, y, batch) * float("nan")


class Whole(Source):
    def signals(self, split):
        return torch.ones(16, 36, dtype=torch.int64)


class Empty(Source):
    def signals(self, split):
        return torch.ones(0, 36)


class Nothing(Source):
    def signals(self, split):
        pass


class Wider(Source):
    def signals(self, split):
        return torch.randn(96, 49 if split == "test" else 36, generator=torch.Generator().manual_seed(0))


class Pair(SparseCoding):
    def instances(self, signals, clean=None, *, keep=True):
        return tuple(super().instances(signals, clean, keep=keep))


class Fewer(SparseCoding):
    def instances(self, signals, clean=None, *, keep=True):
        obs, target = super().instances(signals, clean, keep=keep)
        return Batch(obs, target[1:])


def problem(source, cache, state, *, kind):
    dictionary = torch.eye(36) if state is None else state["dictionary"]
    return {"Pair": Pair, "Fewer": Fewer, "SparseCoding": SparseCoding}[kind](dictionary, alpha=0.1)


class Still(Perturbation):
    def disturb(self, signals, generator, value_range):
        pass
"""
FAILING = OWN.splitlines().index("        len(3)") + 1


def network(name):
    return ["~network", f"+network._target_=own.{name}", "+network._partial_=true"]


def data(name):
    small = ["problem.learner.passes=1", "problem.num_atoms=36"]
    return ["~data", f"+data._target_=own.{name}", *small]


def problem(kind):
    given = ["_target_=own.problem", "_partial_=true", f"kind={kind}"]
    return ["~problem", *(f"+problem.{item}" for item in given)]


@pytest.fixture(autouse=True)
def _own(sdunroll, tmp_path, monkeypatch):
    (tmp_path / "work" / "own.py").write_text(OWN)
    monkeypatch.delitem(sys.modules, "own", raising=False)


def test_they_work_without_mistakes(sdunroll):
    tiny = [item for item in TINY if item.partition(".")[0] in ("data", "training")]
    own = [*network("Own"), *problem("SparseCoding")]
    first = sdunroll("train", *tiny, *own, "training.stop_after=1")
    command = first.out.splitlines()[-2].partition("go on with: sdunroll ")[2]
    assert command.endswith(" trust=[own]")
    assert sdunroll(*command.split()).status == 0


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (network("Forgets"), ["Forgets.layer: expected a tensor of shape", "got a NoneType"]),
        (network("Sums"), ["Sums.layer: expected a tensor of shape (2, 43), got (2,)"]),
        (network("Narrow"), ["Narrow.initial", "shape of the targets", "(2, 43), got (2, 36)"]),
        (network("Fixed"), ["network: expected weights to train, got none from Fixed"]),
        (network("Broken"), [f"network: own.Broken failed in own.py, line {FAILING}: TypeError: obj"]),
        (network("Plain"), ["own.Plain to make a UnrolledNetwork", "got a Plain", "derive its class"]),
        (network("Own")[:2], ["network: ", "problem", "is _partial_: true missing"]),
        (
            ["~network", "+network.num_layers=3"],
            ["network: expected _target_", "got num_layers", "add it to the yaml"],
        ),
        (
            ["+constraint._partial_=true"],
            ["Distance to make a DescentConstraint, got what is still to be called", "leave _partial_"],
        ),
        (
            ["constraint._target_=own.NotANumber"],
            ["NotANumber.measure: expected finite numbers", "got nan"],
        ),
        (problem("Pair"), ["problem: expected Pair.instances to give a Batch, got a tuple"]),
        (
            problem("Fewer"),
            ["the targets of the train split: expected a float32 tensor of 96 rows", "(95, 36)"],
        ),
    ],
)  # fmt: skip
def test_train_refuses(sdunroll, tmp_path, overrides, parts):
    tiny = [item for item in TINY if item.partition(".")[0] in ("data", "training")]
    check(sdunroll("train", *tiny, *overrides), *parts)
    assert not list((tmp_path / "work").rglob("config.yaml"))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "Whole",
            ["data: the train split: expected a float32 tensor", "got a int64 tensor (16, 36)"],
        ),
        ("Empty", ["expected a float32 tensor of some rows", "(0, 36)"]),
        ("Nothing", ["data: the train split: expected a tensor, got a NoneType"]),
        ("Wider", ["data: the test split", "expected a tensor of shape (96, 36), got (96, 49)"]),
    ],
)
def test_train_refuses_a_source(sdunroll, tmp_path, name, parts):
    overrides = [f"+data._target_=own.{name}", "training.epochs=1", *problem("SparseCoding")]
    check(sdunroll("train", "~data", *overrides, *network("Own")), *parts)
    assert not list((tmp_path / "work").rglob("config.yaml"))


def test_perturb_refuses_a_disturbance_that_returns_nothing(sdunroll):
    run = sdunroll("train", *TINY).run
    outcome = sdunroll(
        "perturb", f"run={run}", "levels=[1]", "name=still", "perturbation._target_=own.Still",
        "~perturbation.mode",
    )  # fmt: skip
    check(outcome, "Still.disturb: expected a tensor of shape", "got a NoneType")
    assert not (run / "perturb" / "still.json").exists()
