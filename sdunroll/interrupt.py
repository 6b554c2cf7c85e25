"""Ctrl-C and SIGTERM, at once or at a good moment."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which schedulers end a job; handled like Ctrl-C."""


def raise_for(number: int, *_: object) -> NoReturn:
    """A signal's handler that raises what the signal stands for."""
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def deferred() -> Iterator[Callable[[], None]]:
    """Let Ctrl-C and SIGTERM wait for the next call of what this yields, which raises; a second one does
    not wait."""
    caught: list[int] = []

    def note(number: int, *_: object) -> None:
        if caught:
            raise_for(number)
        caught.append(number)

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
