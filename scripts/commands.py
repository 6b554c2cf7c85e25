"""Runs `sdunroll` commands, each in a process of its own that begins with everything imported: to import
it takes longer than many a small command.
"""

import os
import shlex
import signal
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory

from sdunroll import cli

IMPORTED = [
    "sdunroll.commands.train",
    "sdunroll.commands.eval",
    "sdunroll.commands.perturb",
    "sdunroll.commands.report",
    "torch._dynamo",  # by every optimizer
]
# exit statuses of a command that heard Ctrl-C or SIGTERM, and of one that had no time to
INTERRUPTED = (130, 143, -signal.SIGINT, -signal.SIGTERM)


class Commands:
    """Processes for commands, with ``threads`` each.

    Forking is safe here, since what is imported has started no threads and touched no GPU.
    """

    def __init__(self, threads: int) -> None:
        # of this process too, before the first one starts
        os.environ.update(OMP_NUM_THREADS=str(threads), OMP_WAIT_POLICY="PASSIVE")
        self.context = ForkServerContext()
        self.context.set_forkserver_preload(IMPORTED)

    def __call__(self, arguments: list[str]) -> None:
        """One command, printed as a user would type it.

        Errors: RuntimeError if it fails, KeyboardInterrupt if it was interrupted.
        """
        print(f"sdunroll {shlex.join(arguments)}\n", end="", flush=True)
        with TemporaryDirectory() as folder:
            said = Path(folder) / "stderr"
            process = self.context.Process(target=_command, args=(arguments, said))
            process.start()
            process.join()
            if process.exitcode in INTERRUPTED:
                raise KeyboardInterrupt
            if process.exitcode:
                raise RuntimeError(f"sdunroll {shlex.join(arguments)} failed:\n{said.read_text()}")


def _command(arguments: list[str], said: Path) -> None:
    """The process of one command, whose output goes nowhere and whose errors go into ``said``."""
    with said.open("w") as file, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["sdunroll", *arguments]
    sys.exit(cli.main())
