"""Mistakes in classes of one's own: one line that names the method, and nothing is written."""

import sys

import pytest
import torch

from sdunroll.runs import Run
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


class FirstPass(Own):
    # scales itself by the first batch that it sees, and draws from torch's own generator
    scale = None

    def initial(self, obs, generator):
        if self.scale is None:
            self.scale = 1 / len(obs) + float(torch.rand(()))
        return super().initial(obs, generator) + self.scale


class Uncopied(Own):
    # holds a tensor that cannot be copied, as torch.nn.utils.weight_norm makes them
    def __init__(self, problem, generator):
        super().__init__(problem, generator)
        self.twice = 2 * self.step


def compiled(problem, generator):
    return torch.compile(Own(problem, generator), backend="eager")


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


class Barrier(Distance):
    # infinite at the start alone, as an indicator function can be
    def measure(self, problem, y, batch):
        measured = super().measure(problem, y, batch)
        return torch.where(y.abs().sum(-1) > 0, measured, torch.inf)


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


class Flat(Source):
    def signals(self, split):
        return torch.tensor(1.0)


class Lacks(Nothing):
    def __init__(self):
        torch.load("nowhere.pt")


class WiderVal(Source):
    def signals(self, split):
        return torch.ones(96, 49 if split == "val" else 36)


class NoTest(Source):
    def signals(self, split):
        return None if split == "test" else torch.ones(96, 36)


class Sizes(Source):
    # pictures that are larger in the test split, which is no fault
    channels, value_range = 1, (0.0, 1.0)

    def signals(self, split):
        size = 16 if split == "test" else 8
        return torch.rand(24, 1, size, size, generator=torch.Generator().manual_seed(size))


class Counts(Source):
    calls = []

    def signals(self, split):
        self.calls.append(split)
        return torch.randn(96, 36, generator=torch.Generator().manual_seed(len(split)))


class Signs(SparseCoding):
    # observations that are no floating point numbers
    def instances(self, signals, clean=None, *, keep=True):
        return Batch((signals.flatten(1) > 0).to(torch.int8), super().instances(signals, clean).target)

    def objective(self, y, obs):
        return super().objective(y, obs.to(y))

    def gradient(self, y, obs):
        return super().gradient(y, obs.to(y))


class OfSigns(Own):
    def layer(self, index, y, shared):
        return super().layer(index, y, shared.to(y))


class Pair(SparseCoding):
    def instances(self, signals, clean=None, *, keep=True):
        return tuple(super().instances(signals, clean, keep=keep))


class Fewer(SparseCoding):
    def instances(self, signals, clean=None, *, keep=True):
        obs, target = super().instances(signals, clean, keep=keep)
        return Batch(obs, target[1:])


def problem(source, cache, state, *, kind):
    dictionary = torch.eye(36) if state is None else state["dictionary"]
    return {"Pair": Pair, "Fewer": Fewer, "Signs": Signs, "Plain": SparseCoding}[kind](
        dictionary, alpha=0.1
    )


class Still(Perturbation):
    def __init__(self, level=1.0):
        super().__init__(level)

    def disturb(self, signals, generator, value_range):
        pass
"""
SMALL = [item for item in TINY if item.partition(".")[0] in ("data", "training")]
FAILING = OWN.splitlines().index("        len(3)") + 1


def network(name):
    return ["~network", f"+network._target_=own.{name}", "+network._partial_=true"]


def problem(kind):
    given = ["_target_=own.problem", "_partial_=true", f"kind={kind}"]
    return ["~problem", *(f"+problem.{item}" for item in given)]


@pytest.fixture(autouse=True)
def _own(sdunroll, tmp_path, monkeypatch):
    (tmp_path / "work" / "own.py").write_text(OWN)
    monkeypatch.delitem(sys.modules, "own", raising=False)


def test_they_work_without_mistakes(sdunroll):
    own = [*network("Own"), *problem("Plain")]
    first = sdunroll("train", *SMALL, *own, "training.stop_after=1")
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
            ["NotANumber.measure: expected numbers", "got nan"],
        ),
        (problem("Pair"), ["problem: expected Pair.instances to give a Batch, got a tuple"]),
        (
            problem("Fewer"),
            ["problem: expected as many targets as observations in the train split, 96, got 95"],
        ),
    ],
)  # fmt: skip
def test_train_refuses(sdunroll, tmp_path, overrides, parts):
    check(sdunroll("train", *SMALL, *overrides), *parts)
    assert not list((tmp_path / "work").rglob("config.yaml"))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("Whole", ["data: the train split: expected a float32 tensor", "a int64 tensor of shape"]),
        ("Empty", ["expected a float32 tensor with an instance a row", "(0, 36)"]),
        ("Flat", ["expected a float32 tensor with an instance a row", "shape ()"]),
        ("Nothing", ["data: the train split: expected a tensor, got a NoneType"]),
        ("NoTest", ["data: the test split: expected a tensor, got a NoneType"]),
        ("Wider", ["data: the test split: expected signals of shape (36,)", "got (49,)"]),
        ("WiderVal", ["data: the val split: expected signals of shape (36,)", "got (49,)"]),
        ("Lacks", ["data: own.Lacks failed in own.py", "nowhere.pt"]),
    ],
)
def test_train_refuses_a_source(sdunroll, tmp_path, name, parts):
    overrides = [f"+data._target_=own.{name}", "training.epochs=1", *problem("Plain")]
    check(sdunroll("train", "~data", *overrides, *network("Own")), *parts)
    assert not list((tmp_path / "work").rglob("config.yaml"))


def test_train_refuses_larger_test_pictures_where_the_dictionary_is_bound_to_a_size(
    sdunroll, tmp_path
):
    own = ["~data", "+data._target_=own.Sizes", "training.batch_size=8", "training.epochs=1"]
    few = ["problem.overcompleteness=0.3", "problem.learner.passes=1", "network.num_layers=3"]
    check(
        sdunroll("train", *own, *few),
        "data: the test split: expected signals of 64 features, as the dictionary's, got 256",
        "bring them to one size",
    )
    assert not list((tmp_path / "work").rglob("config.yaml"))


def test_train_tries_nothing_that_moves_the_training(sdunroll, monkeypatch):
    """What a network keeps of its first batch, and torch's own generator, are the training's."""
    losses = []
    for tried in (True, False):
        if not tried:
            monkeypatch.setattr("sdunroll.commands.opening._try_out", lambda *_: None)
        torch.manual_seed(0)
        run = sdunroll("train", *SMALL, *network("FirstPass")).run
        losses.append([row["val_loss"] for row in Run(run).history()])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "overrides",
    [
        network("Uncopied"),
        ["constraint._target_=own.Barrier"],
        [*problem("Signs"), *network("OfSigns")],
        network("compiled"),
    ],
)
def test_train_takes_what_is_unusual_but_right(sdunroll, overrides):
    outcome = sdunroll("train", *SMALL, *overrides)
    assert outcome.status == 0, outcome.err


def test_each_split_is_made_once(sdunroll):
    own = ["~data", "+data._target_=own.Counts", "training.epochs=1", "training.batch_size=32"]
    learned = ["problem.learner.passes=1", "network.num_layers=3"]
    outcome = sdunroll("train", *own, *learned)
    assert outcome.status == 0, outcome.err
    assert sorted(sys.modules["own"].Counts.calls) == ["test", "train", "val"]


def test_test_pictures_may_be_of_another_size(sdunroll):
    own = ["~data", "+data._target_=own.Sizes", "problem=glow_prox", "operator=denoising"]
    cnn = ["network=prox_cnn", "network.proximal.width=4", "training.epochs=1"]
    outcome = sdunroll("train", *own, *cnn)
    assert outcome.status == 0, outcome.err


def test_perturb_refuses_a_disturbance_that_returns_nothing(sdunroll):
    run = sdunroll("train", *TINY).run
    outcome = sdunroll(
        "perturb", f"run={run}", "levels=[1]", "name=still", "perturbation._target_=own.Still",
        "~perturbation.mode",
    )  # fmt: skip
    check(outcome, "Still.disturb: expected a tensor of shape", "got a NoneType")
    outcome = sdunroll(
        "perturb", f"run={run}", "levels=[1]", "name=still", "perturbation._target_=own.Still",
        "~perturbation.mode", "~perturbation._partial_",
    )  # fmt: skip
    check(outcome, "perturbation: expected _partial_: true beside _target_, since level come later")
    assert not (run / "perturb" / "still.json").exists()
