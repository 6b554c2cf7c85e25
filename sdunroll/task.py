"""What Hydra calls for each job: a command with its configuration, in this process or in a worker."""

import importlib
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from sdunroll.checks import UserError
from sdunroll.cli import interruptions, may_tell, one_line
from sdunroll.resolvers import register_resolvers


class Task:
    """Runs a command; its failure is shown at once, as one line.

    Launchers pickle it for processes of theirs, which it makes ready when it arrives there.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self.argv = sys.argv

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        sys.argv = self.argv
        logging.raiseExceptions = False
        register_resolvers()

    def __call__(self, config: DictConfig) -> object:
        module = importlib.import_module(f"sdunroll.commands.{self.command}")
        try:
            with interruptions():
                return module.main(config)
        except BrokenPipeError:
            raise
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> NoReturn:
        """Show a job's failure, also in the middle of a sweep, log its traceback, and raise it."""
        from sdunroll.lock import Busy

        settings = HydraConfig.get()
        line = one_line(error, self.command, self.argv[1:])
        shown: Exception = error
        if settings.mode == RunMode.MULTIRUN:
            if self.command == "train":
                from sdunroll.commands.sweep import record_failure

                record_failure(Path(settings.runtime.output_dir), error, line)
            line = f"job {settings.job.num} ({settings.job.override_dirname}): {line}"
            shown = UserError(line)  # which can go from process to process, as not every error can
        if may_tell(error):
            print(f"error: {line}", file=sys.stderr)
        # a job of submitit has shown it in a file of its own
        shown.already_shown = "SUBMITIT_EXECUTOR" not in os.environ  # type: ignore[attr-defined]
        if not isinstance(error, Busy):  # the log file is that of the process at work
            with suppress(OSError):  # the log file cannot be opened
                logging.getLogger("sdunroll.traceback").error("failed", exc_info=error)
        if shown is error:
            raise error
        raise shown from error
