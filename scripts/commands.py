"""Runs `sdunroll` commands, each in a process of its own that begins with everything imported: to import
it takes longer than many a small command.
"""

import os
import shlex
import signal
import sys
from collections.abc import Callable
from multiprocessing import parent_process, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

from sdunroll import cli
from sdunroll.interrupt import ENDING, Terminated, raise_for
from sdunroll.spinning import spin_briefly

IMPORTED = [
    "own_session",  # the first of all
    "sdunroll.commands.train",
    "sdunroll.commands.eval",
    "sdunroll.commands.perturb",
    "sdunroll.commands.report",
    "torch._dynamo",  # by every optimizer
]
INTERRUPTED = (130, 143)  # exit statuses of a command that was sent SIGINT or SIGTERM


class CommandFailed(Exception):
    """A command that failed, with what it said."""


class Commands:
    """Processes for commands, with ``threads`` each.

    Forking is safe here, since what is imported has started no threads and touched no GPU. Ctrl-C and
    SIGTERM end the commands in good order; a second one ends them at once.
    """

    def __init__(self, threads: int) -> None:
        # of this process too, before the first one starts
        os.environ["OMP_NUM_THREADS"] = str(threads)
        spin_briefly()
        self.context = ForkServerContext()
        self.context.set_forkserver_preload(IMPORTED)
        self.interrupted = 0  # the signal
        self.running: set[ForkServerProcess] = set()
        resource_tracker.ensure_running()  # which lets signals through again, so not between
        for number in ENDING:
            signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, _: object) -> None:
        """End what runs and start no more; whoever waits for a command then learns of it."""
        self.interrupted = number
        running = list(self.running)
        for process in running:
            if process.pid is not None:  # or else it is being started
                process.terminate()
        if not running:
            raise_for(number)

    def __call__(self, arguments: list[str]) -> None:
        """One command, printed as a user would type it.

        Errors: :class:`CommandFailed`, or KeyboardInterrupt if it was interrupted.
        """
        if self.interrupted:
            raise_for(self.interrupted)
        print(f"sdunroll {shlex.join(arguments)}\n", end="", flush=True)
        with TemporaryDirectory() as folder:
            status, said = self._status(arguments, Path(folder))
        if status in INTERRUPTED:  # by somebody else
            self.interrupted = status - 128
            raise_for(self.interrupted)
        if status:
            raise CommandFailed(f"sdunroll {shlex.join(arguments)} failed:\n{said}")

    def _status(self, arguments: list[str], folder: Path) -> tuple[int, str]:
        """The exit status of a command and what it wrote to stderr."""
        said, status = folder / "stderr", folder / "status"
        said.touch()
        process = self.context.Process(target=_command, args=(arguments, said, status))
        # only this process is to hear Ctrl-C; it passes it on
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self.running.add(process)
        try:
            process.start()
        except (OSError, EOFError) as error:
            self.running.discard(process)
            return 1, f"no process could be started: {error}"
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        if self.interrupted:
            process.terminate()
        process.join()
        self.running.discard(process)
        if self.interrupted:
            raise_for(self.interrupted)
        # not process.exitcode, which threads that start processes at once may take from each other
        if status.exists():
            return int(status.read_text()), said.read_text()
        return 1, f"{said.read_text()}the process was killed"


def run_script(main: Callable[[], None]) -> None:
    """Run a script's ``main``, which Ctrl-C, SIGTERM and commands that fail end without a traceback."""
    try:
        with cli.interruptions():
            main()
    except KeyboardInterrupt as stop:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(143 if isinstance(stop, Terminated) else 130) from None
    except CommandFailed as failure:
        raise SystemExit(str(failure)) from None


def _command(arguments: list[str], said: Path, status: Path) -> None:
    """The process of one command, whose output goes nowhere and whose errors go into ``said``."""
    Thread(target=_follow, daemon=True).start()
    with said.open("w") as file, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["sdunroll", *arguments]
    ended = 1
    try:
        ended = cli.main()
    except KeyboardInterrupt:
        ended = 130
    finally:
        status.write_text(str(ended))


def _follow() -> None:
    """End this process with the script, should that be killed."""
    script = parent_process()
    assert script is not None
    script.join()
    os.kill(os.getpid(), signal.SIGTERM)
