import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import pytest

from sdunroll.cache import WriteError
from sdunroll.lock import Busy, held, in_use

HOLD = """
import sys, time
from pathlib import Path
from sdunroll.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_at_a_time_and_nothing_left_behind(tmp_path):
    path = tmp_path / "work.lock"
    with (
        held(path),
        pytest.raises(Busy, match=rf"in use by process {os.getpid()} on .*; wait for it"),
        held(path),
    ):
        pass
    assert not list(tmp_path.iterdir())
    with held(path):
        pass


def test_a_refused_one_does_not_take_the_lock_away(tmp_path):
    path = tmp_path / "work.lock"
    with held(path):
        for _ in range(2):
            with pytest.raises(Busy), held(path):
                pass


def test_an_exception_releases(tmp_path):
    with pytest.raises(ZeroDivisionError), held(tmp_path / "work.lock"):
        1 / 0  # noqa: B018
    with held(tmp_path / "work.lock"):
        pass


def test_it_dies_with_its_owner(tmp_path):
    path = tmp_path / "work.lock"
    owner = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner, owner.stdout:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(Busy, match=f"process {owner.pid} "), held(path):
            pass
        owner.send_signal(signal.SIGKILL)
    assert path.exists()  # stale, and no hindrance
    with held(path):
        assert str(os.getpid()) in path.read_text()


def test_a_lock_file_that_was_removed_is_not_the_lock(tmp_path):
    """Its owner removes it just after another process has opened it."""
    path = tmp_path / "work.lock"
    path.write_text("")
    real = os.path.samestat
    calls = []

    def removed(one, other):
        if not calls:
            calls.append(path.unlink())
            return False
        return real(one, other)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os.path, "samestat", removed)
        with held(path), pytest.raises(Busy), held(path):
            pass
    assert calls


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(WriteError, match="could not be written"), held(tmp_path / "no" / "lock"):
        pass


def test_an_owner_that_is_about_to_say_who_it_is_is_waited_for(tmp_path):
    path = tmp_path / "run.lock"
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = threading.Timer(0.2, lambda: (file.write("process 7"), file.flush()))
        writer.start()
        with pytest.raises(Busy, match="in use by process 7"), held(path):
            pass
        writer.join()


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, caplog):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with held(tmp_path / "work.lock"):
        pass
    assert "no locks here" in caplog.text
    assert "let no other process write here" in caplog.text


def test_an_owner_that_never_says_who_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    path = tmp_path / "work.lock"
    with path.open("a+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="in use by another process"), held(path):
            pass


def _try(path, barrier, answers):
    """Claim ``path`` at the same moment as others, and hold it until all have their answer."""
    barrier.wait()
    try:
        with held(path):
            answers.put((os.getpid(), None))
            barrier.wait()
    except Busy as error:
        answers.put((os.getpid(), str(error)))
        barrier.wait()


def test_of_many_at_once_one_gets_it_and_the_others_know_who(tmp_path):
    fork = multiprocessing.get_context("fork")
    count = 12
    for _ in range(5):
        barrier, answers = fork.Barrier(count), fork.Queue()
        arguments = (tmp_path / "work.lock", barrier, answers)
        tries = [fork.Process(target=_try, args=arguments) for _ in range(count)]
        for one in tries:
            one.start()
        got = [answers.get(timeout=30) for _ in tries]
        for one in tries:
            one.join()
        (owner,) = [process for process, refusal in got if refusal is None]
        refusals = [refusal for _, refusal in got if refusal is not None]
        assert all(f"in use by process {owner} " in refusal for refusal in refusals)
        assert not list(tmp_path.iterdir())


def _look(path, done):
    while not done.wait(0.0005):  # a look that never ends would be no look
        in_use(path)


def test_a_look_does_not_keep_anybody_from_claiming(tmp_path):
    path = tmp_path / "work.lock"
    path.write_text("process 1 on a machine that was switched off")
    assert not in_use(path)
    assert not in_use(tmp_path / "no.lock")
    fork = multiprocessing.get_context("fork")
    done = fork.Event()
    looking = fork.Process(target=_look, args=(path, done))
    looking.start()
    try:
        for _ in range(300):
            with held(path):
                assert in_use(path)
            path.write_text("process 1 on a machine that was switched off")
    finally:
        done.set()
        looking.join()
