"""Ctrl-C and SIGTERM, at once or at a good moment."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM, by which schedulers end a job; handled like Ctrl-C."""


def raise_for(number: int, *_: object) -> NoReturn:
    """A signal's handler that raises what the signal stands for."""
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def deferred(*, echo: float = 0.0) -> Iterator[Callable[[], None]]:
    """Let Ctrl-C, SIGTERM and a cluster's signal of pre-emption wait for the next call of what this
    yields; a second one does not wait.

    They then do what they did before: a handler that was set is called, which may return (submitit
    takes no notice of SIGTERM, and queues its job again on SIGUSR2); without one, it raises.

    Args:
        echo: seconds in which a second one is taken for the first one again.
    """
    caught: list[int] = []
    first = 0.0

    def act(number: int) -> None:
        handler = before[number]
        if callable(handler):
            handler(number, None)
        else:
            raise_for(number)

    def note(number: int, *_: object) -> None:
        nonlocal first
        if not caught:
            first = time.monotonic()
            caught.append(number)
        elif time.monotonic() - first >= echo:
            act(number)

    def act_if_asked() -> None:
        if caught:
            act(caught.pop())

    if threading.current_thread() is not threading.main_thread():  # where no signals arrive
        yield act_if_asked
        return
    of_clusters = (signal.SIGUSR1, signal.SIGUSR2)
    handled = [number for number in of_clusters if callable(signal.getsignal(number))]
    before = {int(number): signal.getsignal(number) for number in (*ENDING, *handled)}
    for number in before:
        signal.signal(number, note)
    try:
        yield act_if_asked
        act_if_asked()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
