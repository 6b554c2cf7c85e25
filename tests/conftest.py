"""Shared fixtures: a small problem, its batch, and the command line in a folder of its own."""

import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# tests run beside each other, so threads that wait spin less than in a command
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

import pytest
import torch
from hydra._internal.hydra import Hydra
from torch.utils._python_dispatch import TorchDispatchMode

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


READ_BACK = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten._linalg_check_errors.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.repeat_interleave.Tensor,
    torch.ops.aten._unique2.default,
}


def reads_back(func: object, args: Sequence[object]) -> bool:
    """Whether an operation has the host wait for a GPU, by what it reads from there."""
    places = args[1] if func is torch.ops.aten.index.Tensor else []
    masks = [one for one in places if one is not None and one.dtype == torch.bool]  # type: ignore[attr-defined]
    return func in READ_BACK or bool(masks)


class Transfers(TorchDispatchMode):
    """Counts what would have the host wait for a GPU: values read back, lists made tensors. What goes
    around the dispatcher, as ``Tensor.tolist``, is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if reads_back(func, args) or func is torch.ops.aten.lift_fresh.default:
            self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


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


@pytest.fixture(scope="session")
def _trained() -> dict[tuple[str, ...], tuple[Path, Path]]:
    """Of :func:`train_once`, by the overrides: the run directory and where a copy is kept."""
    return {}


@pytest.fixture
def train_once(
    sdunroll: Callable[..., Outcome],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    _trained: dict[tuple[str, ...], tuple[Path, Path]],
) -> Callable[..., Path]:
    """The run directory of a training with these overrides. Only the first call of the session trains; the
    others get copies of its run directory and its cache."""

    def call(*overrides: str) -> Path:
        if overrides not in _trained:
            outcome = sdunroll("train", *overrides)
            assert outcome.status == 0, outcome.err
            kept = tmp_path_factory.mktemp("trained")
            for made in (Path("work") / outcome.run, Path("cache")):
                if (tmp_path / made).exists():  # of faces nothing is cached
                    shutil.copytree(tmp_path / made, kept / made)
            _trained[overrides] = outcome.run, kept
            return outcome.run
        run, kept = _trained[overrides]
        shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
        return run

    return call
