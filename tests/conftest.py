"""Shared fixtures: a small problem, its batch, and the command line in a folder of its own."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

import pytest
import torch
from hydra._internal.hydra import Hydra

from sdunroll import cli
from sdunroll.data import Batch
from sdunroll.problems import SparseCoding
from sdunroll.randomness import generator

TINY = [
    "data.size=6",
    "data.num_train=96",
    "data.num_val=32",
    "data.num_test=48",
    "problem.learner.passes=1",
    "network.num_layers=3",
    "training.epochs=2",
    "training.batch_size=32",
]

# the same for each problem's bundle
TINY_OF = {
    "synthetic": [
        "problem=synthetic",
        "problem.num_features=25",
        "problem.snr_db=20",
        "data.num_atoms=50",
        "data.num_train=96",
        "data.num_val=32",
        "data.num_test=48",
        "network.num_layers=3",
        "training.epochs=9",
        "training.batch_size=32",
    ],
    "lista": ["problem=lista", *TINY],
    "glow_prox": [
        "problem=glow_prox",
        "data.size=8",
        "operator.size=4",
        "data.num_train=48",
        "data.num_val=16",
        "data.num_test=24",
        "network.num_layers=3",
        "network.proximal.depth=1",
        "network.proximal.levels=1",
        "network.proximal.width=4",
        "training.epochs=2",
        "training.batch_size=16",
    ],
}


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(1 if workers > 1 else min(2, os.cpu_count() or 1))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDUNROLL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not drawn, which takes most of the time of a small eval or report."""
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda _, path, **settings: Path(path).write_text("")
    )


def make_problem(
    features: int = 12, atoms: int = 16, alpha: float = 0.1, dtype: torch.dtype = torch.float64
) -> SparseCoding:
    rng = generator(7, "dictionary")
    dictionary = torch.randn(features, atoms, generator=rng, dtype=dtype)
    return SparseCoding(dictionary / dictionary.norm(dim=0), alpha=alpha)


def make_batch(problem: SparseCoding, count: int = 20, seed: int = 3) -> Batch:
    rng = generator(seed, "obs")
    features = problem.dictionary.shape[0]
    return problem.instances(
        torch.randn(count, features, generator=rng, dtype=problem.dictionary.dtype)
    )


@pytest.fixture(scope="session")
def problem() -> SparseCoding:
    return make_problem()


@pytest.fixture(scope="session")
def batch(problem: SparseCoding) -> Batch:
    return make_batch(problem)


class Outcome(NamedTuple):
    """What a call of the command line came to."""

    status: int
    out: str
    err: str

    @property
    def run(self) -> Path:
        """The run directory: the last line that `train` prints."""
        return Path(self.out.strip().splitlines()[-1])


@pytest.fixture
def sdunroll(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Call the command line in ``tmp_path / "work"``, in this process.

    Hydra composes each configuration twice, the first time to see whether it asks for a sweep by itself, as
    a launcher or a sweeper does; for the others that is left out, half of the time of a small command.
    """
    get_mode = Hydra.get_mode

    def mode_of(hydra: Hydra, config_name: str, overrides: list[str]) -> object:
        asks = any(item.startswith(("launcher=", "sweeper=")) for item in overrides)
        return get_mode(hydra, config_name, overrides) if asks else None

    monkeypatch.setattr(Hydra, "get_mode", mode_of)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr("sys.argv", ["sdunroll", *arguments])
        monkeypatch.setattr("sys.path", list(sys.path))
        capfd.readouterr()
        status = cli.main()
        for name in (None, "sdunroll.traceback"):  # Hydra leaves its log files open
            for handler in list(logging.getLogger(name).handlers):
                if isinstance(handler, logging.FileHandler):
                    logging.getLogger(name).removeHandler(handler)
                    handler.close()
        return Outcome(status, *capfd.readouterr())

    return call
