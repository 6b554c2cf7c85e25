"""Signals at a good moment."""

import os
import signal
import threading

import pytest

from sdunroll.interrupt import Terminated, deferred


def interrupted(number, *, again):
    """What was reached after the signal, with a second one or none, and what was raised."""
    reached = []
    try:
        with deferred() as leave_if_asked:
            os.kill(os.getpid(), number)
            reached.append("first")
            if again:
                os.kill(os.getpid(), number)
                reached.append("second")
            leave_if_asked()
            reached.append("call")
    except KeyboardInterrupt as stop:
        return reached, type(stop)


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]
)
@pytest.mark.parametrize("again", [False, True])
def test_a_signal_waits_for_the_next_call_and_a_second_one_does_not(number, raised, again):
    before = signal.getsignal(number)
    assert interrupted(number, again=again) == (["first"], raised)
    assert signal.getsignal(number) is before


def test_a_signal_is_not_lost_when_there_is_no_further_call():
    with pytest.raises(KeyboardInterrupt), deferred():
        os.kill(os.getpid(), signal.SIGINT)


def test_in_another_thread_signals_stay_with_the_main_one():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with deferred() as leave_if_asked:
            leave_if_asked()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
