"""Undisturbed commands, and what must hold after a fault: for ``withstand.py``."""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from faults import call

from sdunroll.cache import load_checked
from sdunroll.runs import Run

TINY = [
    "data.size=6", "data.num_train=96", "data.num_val=32", "data.num_test=48", "threads=1",
    "problem.learner.passes=1", "network.num_layers=3", "training.epochs=3", "training.batch_size=32",
]  # fmt: skip
TRAIN = ["train", *TINY, "hydra.run.dir=run"]
RESUME = ["train", "resume=run", "threads=1"]
EVAL = ["eval", "run=run", "threads=1"]
REPORT = ["report", "runs=run", "hydra.run.dir=report"]
OWN = ("seconds", "check")  # what differs between two trainings of the same
LEFT_OVER = (".tmp", ".lock")
SECONDS = "cost.json"


class Stand:
    """Undisturbed results, and folders for trials.

    Args:
        room: where all of them are.
        quick: leave out evaluation and report.

    Attributes:
        trained: a folder with a run, evaluated with another seed and reported.
        expected: what the training leaves; see :func:`trained_result`.
        evaluation, report: the files of either, made anew.
        operations: of each command, the files that it operates on.
        seconds: that each takes.
    """

    def __init__(self, room: Path, quick: bool) -> None:
        self.room = room
        self.trained = room / "trained"
        self.trained.mkdir()
        self.operations: dict[str, list[str]] = {}
        self.seconds: dict[str, float] = {}
        self._do("train", TRAIN)
        self.expected = trained_result(self.trained)
        if quick:
            return
        self._do("eval", [*EVAL, "seed=1"])
        self._do("report", REPORT)
        with self.folder() as folder:
            assert call(folder, EVAL).status == 0
            self.evaluation = contents(folder / "run" / "eval")
        with self.folder() as folder:
            shutil.rmtree(folder / "run" / "eval")
            assert call(folder, REPORT).status == 0
            self.report = contents(folder / "report")

    def _do(self, name: str, arguments: list[str]) -> None:
        began = time.monotonic()
        done = call(self.trained, arguments)
        assert done.status == 0, done.said
        self.operations[name] = done.operations
        self.seconds[name] = time.monotonic() - began

    @contextmanager
    def folder(self, *, empty: bool = False) -> Iterator[Path]:
        """A folder for a trial: empty, or with the run."""
        folder = Path(tempfile.mkdtemp(dir=self.room)) / "work"
        if empty:
            folder.mkdir()
        else:
            shutil.copytree(self.trained, folder)
        yield folder
        shutil.rmtree(folder.parent)


def trained_result(folder: Path) -> dict:
    """All that a training leaves, but for what differs between two of the same."""
    run = Run(folder / "run")
    summary = run.read_json("summary.json")
    return {
        "history": [{name: row[name] for name in row if name not in OWN} for row in run.history()],
        "summary": {name: summary[name] for name in summary if name not in OWN},
        **{name: run.load_checkpoint(name) | {"path": ""} for name in ("best", "last", "previous")},
        "cache": {path.name: load_checked(path) for path in (folder / "cache").glob("*.pt")},
    }


def same(one: object, two: object) -> bool:
    """Bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(same(one[name], two[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, but for logs, locks and what killed writers left; of a file of seconds, which
    are never twice the same, only that it is whole."""
    return {
        str(path.relative_to(folder)): _whole(path) if path.name == SECONDS else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith((".log", *LEFT_OVER))
    }


def _whole(path: Path) -> bytes:
    stamped = json.loads(path.read_text(encoding="utf-8"))
    assert {"threads", "rows", "check"} == set(stamped), f"{path} is not whole"
    return b"whole"


def not_whole(folder: Path) -> str | None:
    """What is wrong with the files of the run and of the cache, each of which is whole or not there."""
    try:
        for path in (folder / "cache").glob("[!.]*.pt"):
            load_checked(path)
        if (folder / "run" / "config.yaml").exists():
            run = Run(folder / "run")
            for path in run.folder.glob("*.json"):
                run.read_json(path.name)
            for path in (run.folder / "checkpoints").glob("[!.]*.pt"):
                run.load_checkpoint(path.stem)
    except Exception as error:
        return f"not whole: {error}"
    return None


def goes_on(stand: Stand, folder: Path) -> str | None:
    """What is wrong with going on to the end after a fault."""
    begun = (folder / "run" / "checkpoints" / "last.pt").exists()
    done = call(folder, RESUME if begun else TRAIN)
    if done.status:
        return f"does not go on: {done.said}"
    if not same(trained_result(folder), stand.expected):
        return "another result"
    left = [path.name for path in folder.rglob("*") if path.name.endswith(".tmp")]
    return f"left over: {left}" if left else None


def unclear(said: str, status: int) -> str | None:
    """What is wrong with what a command that could not go on said."""
    lines = [line for line in said.splitlines() if line.startswith(("error: ", "interrupted"))]
    clear = len(lines) == 1 and "Traceback" not in said and "SDUNROLL_TRACEBACK" not in said
    return None if status == 0 or clear else f"unclear, status {status}: {said}"
