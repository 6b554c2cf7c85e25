"""The command line: route ``sdunroll COMMAND [overrides]`` to a Hydra application, errors as one line.

Nothing heavy is imported before a command runs, so that help is instant.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import TextIOBase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, TextIO

from sdunroll.interrupt import Terminated, raise_for
from sdunroll.resolvers import register_resolvers
from sdunroll.spinning import spin_briefly

COMMANDS = {
    "train": "train a network, with descent constraints or without, into a run directory",
    "eval": "measure a trained network layer by layer, beside classical solvers",
    "perturb": "disturb a trained network: noise, its start, its observations",
    "report": "tables, figures and a page over any set of runs",
}
USAGE = "\n".join(
    [
        "sdunroll COMMAND [overrides]",
        "",
        "Train unrolled networks whose layers are constrained to descend, and measure them.",
        "",
        "Commands",
        *(f"  {name:<9}{text}" for name, text in COMMANDS.items()),
        "",
        "Start with",
        "  sdunroll train problem=lista constrained=true",
        "  sdunroll COMMAND --help          what a command does, its overrides, examples",
        "  sdunroll COMMAND --cfg job       the whole configuration",
        "  sdunroll COMMAND -m key=a,b      a sweep",
        '  eval "$(sdunroll -sc install=bash)"   shell completion',
        "",
        "SDUNROLL_TRACEBACK=1 shows the traceback of an error.",
    ]
)


def main() -> int:
    """Run the command line; returns the exit status: 0, 1 failed or refused, 2 no such command, 130
    interrupted, 143 terminated."""
    arguments = sys.argv[1:]
    if arguments[:1] in (["-sc"], ["--shell-completion"]):
        from sdunroll.completion import with_command

        arguments = with_command(arguments, list(COMMANDS))
        if not arguments:
            return 0
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        from sdunroll import __version__

        print(__version__)
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        hint = _nearest(command, list(COMMANDS))
        print(
            f"sdunroll: expected a command ({', '.join(COMMANDS)}), got {command!r}{hint}; "
            "see sdunroll --help",
            file=sys.stderr,
        )
        return 2
    return _run(command, rest)


def config_folder() -> Path:
    """The folder of the configs: in a wheel inside the package, in a checkout beside it."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _run(command: str, arguments: list[str]) -> int:
    sys.argv = [f"sdunroll {command}", *arguments]
    spin_briefly()
    full_errors = bool(os.environ.get("SDUNROLL_TRACEBACK"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to this function
    logging.raiseExceptions = False  # a log that cannot be written must not hide the error itself
    sys.path.append(os.getcwd())  # a user's own network is found beside the user's own config
    previous = signal.signal(signal.SIGTERM, raise_for)
    try:
        with (
            redirect_stderr(_WithoutEcho(sys.stderr)),
            _one_line_usage_errors(command),
            _beside_others(command, arguments),
            interruptions(),
        ):
            _application(command)()
    except KeyboardInterrupt as stop:
        if not getattr(stop, "already_shown", False) and may_tell(stop):
            print("interrupted", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:  # the reader of our output has left: `sdunroll ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if full_errors:
            raise
        if not getattr(error, "already_shown", False) and may_tell(error):
            print(f"error: {one_line(error, command, arguments)}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


@contextmanager
def _one_line_usage_errors(command: str) -> Iterator[None]:
    """Hydra's argument parser prints its usage and exits with 2; make that an error like others."""
    from argparse import ArgumentParser

    from sdunroll.checks import UserError

    def refuse(parser: ArgumentParser, message: str) -> NoReturn:
        raise UserError(f"{message}; see sdunroll {command} --help")

    original = ArgumentParser.error
    ArgumentParser.error = refuse  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        ArgumentParser.error = original  # type: ignore[method-assign]


def _is_parallel() -> bool:
    """Whether this is one of several processes that ``torchrun`` started."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def may_tell(error: BaseException) -> bool:
    """Whether it is for this process, maybe one of several, to show the error."""
    if not _is_parallel():
        return True
    from sdunroll import distributed

    return distributed.may_tell(error)


@contextmanager
def _beside_others(command: str, arguments: list[str]) -> Iterator[None]:
    """One of several processes that train together: all but the first leave nothing behind.

    Errors: another command, or a sweep.
    """
    if not _is_parallel():
        yield
        return
    from sdunroll.checks import UserError
    from sdunroll.distributed import notes

    notes()  # are kept by the first process where torchrun does not
    if command != "train" or {"-m", "--multirun"} & set(arguments):
        raise UserError(
            "torchrun: expected one training for its processes to share, got sdunroll "
            f"{' '.join([command, *arguments])}; call that without torchrun"
        )
    if os.environ["RANK"] == "0":
        yield
        return
    logging.disable(logging.WARNING)
    with TemporaryDirectory() as scratch:
        # beside the other overrides, which Hydra takes in one row alone; the last one counts
        places = [place for place, item in enumerate(sys.argv) if "=" in item and item[0] != "-"]
        sys.argv.insert(max(places, default=len(sys.argv)) + 1, f"hydra.run.dir={scratch}")
        yield


class _WithoutEcho(TextIOBase):
    """Standard error without Hydra's echo of a failed job's overrides: each failure is one line."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        if text.startswith("Error executing job with overrides"):
            return len(text)
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()


def _application(command: str) -> Any:
    """The Hydra application of a command."""
    import hydra

    from sdunroll.task import Task

    register_resolvers()
    return hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=command)(
        Task(command)
    )


def one_line(error: BaseException, command: str, arguments: list[str]) -> str:
    """What an error says, on one line, with the nearest match for a mistyped key or choice."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from sdunroll.checks import UserError

    for link in _causes(error):
        if isinstance(link, UserError):
            return str(link)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        from sdunroll.suggest import explain

        return explain(error, config_folder(), command, arguments)
    text = " ".join(str(error).split())
    if text.startswith("Config group override"):  # Hydra's ValueError for dual=1
        return f"{text}; quote a name that reads as a number: 'dual=\"1\"'"
    if isinstance(error, RuntimeError):  # PyTorch's, with its own trace from the second line on
        text = str(error).partition("\n")[0]
    if isinstance(error, OSError):
        return f"{text}; check the path, its permissions and the room on the disk"
    return f"{type(error).__name__}: {text}; set SDUNROLL_TRACEBACK=1 to see where"


@contextmanager
def interruptions() -> Iterator[None]:
    """Let an interruption through as such where code in its way failed because of it, as OmegaConf's
    does in the middle of a change."""
    from sdunroll.checks import UserError

    try:
        yield
    except Exception as error:
        link: BaseException | None = error
        while link is not None and not isinstance(link, (KeyboardInterrupt, UserError, OSError)):
            link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
        if isinstance(link, KeyboardInterrupt) and not os.environ.get("SDUNROLL_TRACEBACK"):
            raise link from None
        raise


def _causes(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _nearest(word: str, known: list[str]) -> str:
    from difflib import get_close_matches

    found = get_close_matches(word, known, n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def script() -> NoReturn:
    """The console script."""
    sys.exit(main())
