import os
import signal

import pytest

from sdunroll.interrupt import Terminated, deferred


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
