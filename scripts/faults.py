"""Commands in processes of their own, with a fault at some operation on a file."""

import errno
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"

from sdunroll import cli

LATE = ("torch._dynamo", "skimage.color", "skimage.data", "skimage.util", "filelock", "hydra.utils")
for name in (*(f"sdunroll.commands.{command}" for command in cli.COMMANDS), *LATE):
    importlib.import_module(name)  # once, before the forks

OPERATIONS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link")


class Fault(NamedTuple):
    """What happens before the operation of number ``first`` on a file below the current folder, and, if
    it lasts, before each one after it."""

    act: Callable[[], object]
    first: int
    lasting: bool = False


class Done(NamedTuple):
    """How a process ended: its exit status, or minus the signal that killed it; what it printed; the
    files that it operated on, in order (unless it was killed)."""

    status: int
    said: str
    operations: list[str]


def kill() -> None:
    """As by ``kill -9``: nothing can be done about it, nothing is flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


def no_room() -> None:
    """As on a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only() -> None:
    """As on a disk that was mounted anew after an error."""
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def move_away() -> None:
    """The run directory is moved while it is written to."""
    if os.path.isdir("run"):
        os.rename("run", "moved")


def call(folder: Path, arguments: list[str], fault: Fault | None = None) -> Done:
    """``sdunroll`` with these arguments, in ``folder``."""
    return finish(folder, start(folder, arguments, fault))


def call_and_signal(folder: Path, arguments: list[str], number: int, seconds: float) -> Done:
    """The same, with a signal after some seconds."""
    child = start(folder, arguments)
    time.sleep(seconds)
    os.kill(child, number)  # a child that has ended is there until it is waited for
    return finish(folder, child)


def start(folder: Path, arguments: list[str], fault: Fault | None = None) -> int:
    """Begin a process; returns its number, for :func:`finish`."""
    child = os.fork()
    if child:
        return child
    said = os.open(_said(folder, os.getpid()), os.O_CREAT | os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(folder)
    os.environ["SDUNROLL_CACHE"] = "cache"
    operations = _watch(fault)
    sys.argv = ["sdunroll", *arguments]
    status = cli.main()
    print("\0" + "\0".join(operations), flush=True)
    os._exit(status)


def finish(folder: Path, child: int) -> Done:
    """Wait for a process."""
    _, code = os.waitpid(child, 0)
    path = _said(folder, child)
    said, *operations = path.read_text().split("\0") if path.exists() else [""]
    path.unlink(missing_ok=True)
    return Done(os.waitstatus_to_exitcode(code), said, [name.strip() for name in operations])


def _said(folder: Path, child: int) -> Path:
    return folder.parent / f"{folder.name}.{child}.said"


def _watch(fault: Fault | None) -> list[str]:
    """Have ``fault`` happen in this process; returns the growing list of operations."""
    operations: list[str] = []
    here, acting = os.getcwd(), False

    def hook(event: str, arguments: tuple) -> None:
        nonlocal acting
        writes = event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
        if acting or not (writes or event in OPERATIONS) or isinstance(arguments[0], int):
            return
        path = os.path.abspath(os.fspath(arguments[0]))
        if not path.startswith(f"{here}/"):
            return
        operations.append(path.removeprefix(f"{here}/"))
        number = len(operations)
        if fault and (number == fault.first or (fault.lasting and number > fault.first)):
            acting = True
            try:
                fault.act()
            finally:
                acting = False

    sys.addaudithook(hook)
    return operations
