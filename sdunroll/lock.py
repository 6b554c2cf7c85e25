"""One process at a time: a lock that dies with its owner.

The lock is the kernel's, on an open file; that the file is there says nothing. Whoever holds it has
written into it who that is, and removes it in the end.
"""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from sdunroll.cache import WriteError
from sdunroll.checks import UserError

log = logging.getLogger(__name__)

TRIES = 4  # before a lock is said to be held


class Busy(UserError):
    """What another process is working on."""


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock on ``path``, a file in the folder that is worked in.

    Errors: :class:`Busy` at once if another process holds it; :class:`WriteError`.
    """
    file = _claim(path)
    try:
        yield
    finally:
        with suppress(OSError):  # the folder is gone or cannot be written any more
            path.unlink(missing_ok=True)
        file.close()


def in_use(path: Path) -> bool:
    """Whether a process holds the lock on ``path``, which is looked at for a moment, not held."""
    try:
        with path.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:  # not there, or a file system without locks
        return False


def _claim(path: Path) -> TextIO:
    tries = 0
    while True:
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise WriteError(path, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                owner = _owner(file)
            tries += 1
            if tries < TRIES:  # it may be a look by in_use, or an owner that is just leaving
                time.sleep(0.05)
                continue
            raise Busy(
                f"{path.parent}: in use by {owner}; wait for it or end it, or take another directory"
            ) from None
        except OSError as error:
            log.warning("%s: no locks here (%s); let no other process write here", path, error)
            return file
        if _is_still(path, file):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            return file
        file.close()  # its owner has removed it since it was opened


def _owner(file: TextIO) -> str:
    """Who holds the lock; one that has it for a moment only has yet to write it down."""
    for _ in range(20):
        file.seek(0)
        if owner := file.read().strip():
            return owner
        time.sleep(0.05)
    return "another process"


def _is_still(path: Path, file: TextIO) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    return False
