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


@pytest.fixture
def queued():
    """What a cluster's handler of SIGUSR2 was called with."""
    calls = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: calls.append(number))
    yield calls
    signal.signal(signal.SIGUSR2, before)


def test_a_signal_of_a_cluster_waits_and_then_has_its_own_handler(queued):
    with deferred() as act:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert not queued
        act()
        assert queued == [signal.SIGUSR2]
        act()  # the handler has returned: work goes on
        assert len(queued) == 1
        for _ in range(2):  # the second does not wait
            os.kill(os.getpid(), signal.SIGUSR2)
        assert len(queued) == 2
    assert len(queued) == 3
    os.kill(os.getpid(), signal.SIGUSR2)
    assert len(queued) == 4


def test_a_handler_of_sigterm_that_returns_lets_work_go_on():
    passed_over = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: passed_over.append(number))
    try:
        with deferred() as act:
            os.kill(os.getpid(), signal.SIGTERM)
            act()
            assert passed_over == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_without_a_handler_sigterm_raises_at_the_next_good_moment():
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with deferred() as act:
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(Terminated):
                act()
    finally:
        signal.signal(signal.SIGTERM, before)
