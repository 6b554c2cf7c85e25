"""A long training: its memory, its open files, its directory and its time an epoch stay as they are.

For ``withstand.py``; Linux alone, as it reads /proc.
"""

import contextlib
import csv
import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from faults import finish, start
from stand import TINY

MEMORY = 4 * 2**20  # bytes that may be added after the warm-up; a leak of 3 KiB an epoch is 5 MiB


@dataclass(frozen=True, slots=True)
class Sample:
    """What a training process holds after some epochs.

    Attributes:
        epochs: rows of history.csv.
        memory: resident, bytes.
        open_files: their number.
        files: in the run directory but for history.csv and the log, name -> bytes.
    """

    epochs: int
    memory: int
    open_files: int
    files: dict[str, int]


def take_sample(process: int, run: Path) -> Sample:
    """What the process holds now. Errors: OSError while files come and go."""
    with (run / "history.csv").open() as file:
        epochs = sum(1 for _ in file) - 1
    resident = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    growing = ("history.csv", "train.log")
    return Sample(
        epochs,
        resident * os.sysconf("SC_PAGE_SIZE"),
        len(os.listdir(f"/proc/{process}/fd")),
        {
            path.name: path.stat().st_size
            for path in run.rglob("*")
            if path.is_file() and path.name not in growing and ".tmp" not in path.name
        },
    )


def long_training(folder: Path, epochs: int, *, timed: bool) -> str | None:
    """Train a tiny network for so many epochs; what has grown, or None.

    Args:
        timed: compare the time an epoch too, on a machine that is otherwise idle.
    """
    child = start(folder, ["train", *TINY, f"training.epochs={epochs}", "hydra.run.dir=run"])
    run, samples = folder / "run", []
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        with contextlib.suppress(OSError):  # not begun, or a file was just replaced
            samples.append(take_sample(child, run))
        time.sleep(0.05)
    done = finish(folder, child)
    if done.status:
        return done.said
    with (run / "history.csv").open() as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    if len(seconds) != epochs:
        return f"{len(seconds)} of {epochs} rows in history.csv"
    return grown(samples, epochs) or (slower(seconds) if timed else None)


def grown(samples: list[Sample], epochs: int) -> str | None:
    """What is larger in the last fifth of the training than in the second."""
    early = [sample for sample in samples if epochs / 5 <= sample.epochs < 2 * epochs / 5]
    late = [sample for sample in samples if 4 * epochs / 5 <= sample.epochs < epochs]
    if not early or not late:
        return "the training was over too soon to be watched"
    before, after = (median(sample.memory for sample in part) for part in (early, late))
    if after > before + MEMORY:
        return f"memory went from {before / 2**20:.1f} to {after / 2**20:.1f} MiB"
    # the fewest: a file that is just being written is open for a moment, a leak stays
    before, after = (min(sample.open_files for sample in part) for part in (early, late))
    if after > before:
        return f"open files went from {before} to {after}"
    held, holds = (part[-1].files for part in (early, late))
    if held.keys() != holds.keys():
        return f"files went from {sorted(held)} to {sorted(holds)}"
    larger = [name for name in holds if holds[name] > 1.01 * held[name]]
    return f"{', '.join(larger)} grew" if larger else None


def slower(seconds: list[float]) -> str | None:
    """Whether the last fifth of the epochs took longer than the second, by the median."""
    fifth = len(seconds) // 5
    before, after = median(seconds[fifth : 2 * fifth]), median(seconds[-fifth:])
    return f"an epoch took {before:.4f}, then {after:.4f} s" if after > 1.2 * before else None
