"""What a run withstands: kills, signals, full disks, damage, a second process, many epochs.

    python scripts/withstand.py            some 200 kills and half as many other faults
    python scripts/withstand.py --quick    a few kills of a training, in seconds

Each trial has a folder of its own and one fault, at the k-th operation on a file (see ``faults.py``)
or at a random moment. It is lost unless every file is whole after it, what is said is one line, and
going on gives, bit for bit, what undisturbed commands give. Prints a table of faults, trials and
losses; without ``--quick`` also writes it to ``outputs/reference/withstand.md`` and ``.json``.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from faults import Fault, call, call_and_signal, finish, kill, move_away, no_room, read_only, start
from long_run import long_training
from stand import (
    EVAL,
    REPORT,
    TRAIN,
    Stand,
    contents,
    goes_on,
    not_whole,
    same,
    trained_result,
    unclear,
)

from sdunroll.cache import write_atomically

REFERENCE = Path(__file__).resolve().parents[1] / "outputs" / "reference"
Trial = Callable[[], str | None]  # why it is lost, or None


def train_with(stand: Stand, fault: Fault) -> str | None:
    """A training, data preparation included, with a fault."""
    with stand.folder(empty=True) as folder:
        done = call(folder, TRAIN, fault)
        if (folder / "moved").exists():
            if (folder / "run").exists():
                return "made again"
            (folder / "moved").rename(folder / "run")
        wrong = None if fault.act is kill else unclear(done.said, done.status)
        return wrong or not_whole(folder) or goes_on(stand, folder)


def train_and_signal(stand: Stand, number: int, seconds: float) -> str | None:
    """A training that receives a signal."""
    with stand.folder(empty=True) as folder:
        done = call_and_signal(folder, TRAIN, number, seconds)
        wrong = None
        if number != signal.SIGKILL:
            wrong = unclear(done.said, done.status)
            if done.status not in (0, 128 + number):
                wrong = f"status {done.status}: {done.said}"
        return wrong or not_whole(folder) or goes_on(stand, folder)


def make_with(stand: Stand, arguments: list[str], part: str, fault: Fault | float) -> str | None:
    """An evaluation or a report over older ones, with a fault or a kill after so many seconds."""
    new = stand.evaluation if part == "run/eval" else stand.report
    with stand.folder() as folder:
        if part == "report":
            shutil.rmtree(folder / "run" / "eval")  # a report of other results than the older one
        old = contents(folder / part)
        if isinstance(fault, Fault):
            call(folder, arguments, fault)
        else:
            call_and_signal(folder, arguments, signal.SIGKILL, fault)
        for name, content in contents(folder / part).items():
            if content not in (old.get(name), new.get(name)):
                return f"{name} is neither old nor new"
        done = call(folder, arguments)
        files = contents(folder / part)
        if done.status or any(files[name] != new[name] for name in new):
            return f"another result: {done.said}"
    return None


def damaged(stand: Stand, name: str, damage: Callable[[Path], object]) -> str | None:
    """A file that is damaged: named, or without effect; a last checkpoint falls back."""
    with stand.folder() as folder:
        path = folder / name
        damage(path)
        if path.name == "last.pt":
            (folder / "run" / "summary.json").unlink()
            return goes_on(stand, folder)
        if "cache" in path.parts:
            shutil.rmtree(folder / "run")
            return goes_on(stand, folder)
        done = call(folder, REPORT if path.name in ("summary.json", "metrics.json") else EVAL)
        named = path.name in done.said or "config.yaml" in done.said
        unharmed = done.status == 0 and contents(folder / "run" / "eval") == stand.evaluation
        return None if named or unharmed else f"{name}: {done.said}"


def truncate(rng: random.Random, path: Path) -> None:
    """Leave off some of the end."""
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def flip(rng: random.Random, path: Path) -> None:
    """Flip a bit."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def two_at_once(stand: Stand) -> str | None:
    """Two trainings in the same directory, from the same cache: one is refused."""
    with stand.folder(empty=True) as folder:
        children = [start(folder, TRAIN) for _ in range(2)]
        one, two = sorted(finish(folder, child) for child in children)
        if (one.status, two.status) != (0, 1):
            return f"{one}, {two}"
        if "in use by process" not in two.said and "holds a run already" not in two.said:
            return two.said
        return None if same(trained_result(folder), stand.expected) else "another result"


def train_long(stand: Stand) -> str | None:
    """Memory, open files, the directory and the time an epoch of a long training."""
    with stand.folder(empty=True) as folder:
        return long_training(folder, 2000, timed=True)


def trials(stand: Stand, rng: random.Random, quick: bool) -> dict[str, list[Trial]]:
    """All trials by fault."""
    operations = list(enumerate(stand.operations["train"], 1))
    preparing = [number for number, path in operations if path.startswith("cache")]
    training = [number for number, path in operations if not path.startswith("cache")]
    if quick:
        preparing, training = rng.sample(preparing, 1), rng.sample(training, 1)
    every_fourth = training[::4]

    def at(places: list[int], act: Callable[[], object], lasting: bool = False) -> list[Trial]:
        return [partial(train_with, stand, Fault(act, number, lasting)) for number in places]

    def sent(number: int, count: int) -> list[Trial]:
        return [
            partial(train_and_signal, stand, number, rng.uniform(0, stand.seconds["train"]))
            for _ in range(count)
        ]

    kills = {
        "killed at each file operation of data preparation": at(preparing, kill),
        "killed at each file operation of a training": at(training, kill),
        "training killed at a random moment": sent(signal.SIGKILL, 1 if quick else 60),
    }
    if quick:
        return kills

    def make(command: str, arguments: list[str], part: str) -> list[Trial]:
        places = [Fault(kill, number) for number in range(1, len(stand.operations[command]), 3)]
        moments = [rng.uniform(0, stand.seconds[command]) for _ in range(4)]
        return [partial(make_with, stand, arguments, part, fault) for fault in [*places, *moments]]

    names = ("config.yaml", "provenance.json", "summary.json", "eval/metrics.json")
    files = [f"run/{name}" for name in (*names, "checkpoints/best.pt", "checkpoints/last.pt")]
    files += [f"cache/{path.name}" for path in stand.trained.glob("cache/*.pt")]

    def hurt(damage: Callable[[random.Random, Path], object]) -> list[Trial]:
        return [partial(damaged, stand, name, partial(damage, rng)) for name in files * 2]

    return kills | {
        "evaluation killed at every third file operation, at random moments": make(
            "eval", EVAL, "run/eval"
        ),
        "report killed at every third file operation, at random moments": make(
            "report", REPORT, "report"
        ),
        "training interrupted by SIGTERM": sent(signal.SIGTERM, 8),
        "training interrupted by Ctrl-C": sent(signal.SIGINT, 8),
        "no room on the disk from some file operation on": at(every_fourth, no_room, True),
        "a disk that becomes read-only": at(every_fourth, read_only, True),
        "a run directory that is moved away": at(every_fourth, move_away),
        "a truncated file": hurt(truncate),
        "a flipped bit": hurt(flip),
        "two trainings at once": [partial(two_at_once, stand)] * 5,
        "2,000 epochs, watched for what grows": [partial(train_long, stand)],
    }


def attempt(trial: Trial) -> str | None:
    """Why a trial is lost; a check that cannot even be made is a loss too."""
    try:
        return trial()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few kills of a training")
    parser.add_argument("--seed", type=int, default=0, help="of moments, bits and choices")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as room:
        stand = Stand(Path(room), given.quick)
        for fault, tried in trials(stand, random.Random(given.seed), given.quick).items():
            lost = [reason for trial in tried if (reason := attempt(trial)) is not None]
            rows.append({"fault": fault, "trials": len(tried), "losses": len(lost)})
            print(f"{fault}: {len(tried)} trials, {len(lost)} lost", flush=True)
            for reason in lost:
                print(f"  {' '.join(reason.split())}", file=sys.stderr, flush=True)
    lines = ["| fault | trials | losses |", "| --- | --- | --- |"]
    lines += [f"| {row['fault']} | {row['trials']} | {row['losses']} |" for row in rows]
    table = "\n".join(lines) + "\n"
    print(f"\n{table}")
    if not given.quick:
        write_atomically(REFERENCE / "withstand.md", lambda path: path.write_text(table))
        text = json.dumps(rows, indent=2) + "\n"
        write_atomically(REFERENCE / "withstand.json", lambda path: path.write_text(text))
    sys.exit(any(row["losses"] for row in rows))


if __name__ == "__main__":
    main()
