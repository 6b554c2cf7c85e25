"""Ctrl-C and SIGTERM, at once or at a good moment."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which schedulers end a job; handled like Ctrl-C."""


def raise_for(number: int, *_: object) -> NoReturn:
    """A signal's handler that raises what the signal stands for."""
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def deferred(*, echo: float = 0.0) -> Iterator[Callable[[], None]]:
    """Let Ctrl-C and SIGTERM wait for the next call of what this yields, which raises; a second one does
    not wait.

    Args:
        echo: seconds in which a second one is taken for the first one again.
    """
    caught: list[int] = []
    first = 0.0

    def note(number: int, *_: object) -> None:
        nonlocal first
        if not caught:
            first = time.monotonic()
            caught.append(number)
        elif time.monotonic() - first >= echo:
            raise_for(number)

    def raise_if_asked() -> None:
        if caught:
            raise_for(caught[0])

    if threading.current_thread() is not threading.main_thread():  # where no signals arrive
        yield raise_if_asked
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield raise_if_asked
        raise_if_asked()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
