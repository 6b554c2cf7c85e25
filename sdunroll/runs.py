"""The run directory: configuration, provenance, history, checkpoints, results.

Every file is written whole or not at all; ``history.csv`` grows by whole rows.
"""

import csv
import io
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from sdunroll.cache import WriteError, load_checked, write_atomically
from sdunroll.checks import UserError

FORMAT = 1  # of the run directory; raised when an older one could be misread
LARGEST_CONFIG, DEEPEST_CONFIG = 2**18, 50  # bytes and levels of a config.yaml
PACKAGES = ("sdunroll", "torch", "numpy", "hydra-core", "omegaconf", "scikit-image", "matplotlib")


class RunError(UserError):
    """A run directory that is missing, damaged or of another version."""


class Run:
    """A run directory.

    Args:
        folder: an existing run directory; :meth:`create` makes a new one.

    Errors: :class:`RunError` if there is none, or one that this version cannot read.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not (self.folder / "config.yaml").is_file():
            what = "holds no config.yaml" if self.folder.is_dir() else "does not exist"
            raise RunError(
                f"{self.folder}: expected the directory of a run, but it {what}; "
                "`sdunroll train` prints the run directory as its last line"
            )
        self.config = self._read_config()
        self.provenance = self.read_json("provenance.json")
        found = self.provenance.get("format")
        if found != FORMAT:
            raise RunError(
                f"{self.folder}: expected a run directory of format {FORMAT}, got format {found}; "
                f"it was made by sdunroll {self.provenance.get('versions', {}).get('sdunroll')}, "
                "read it with that version or train again"
            )

    def _read_config(self) -> DictConfig:
        path = self.folder / "config.yaml"
        try:
            if path.stat().st_size > LARGEST_CONFIG:
                raise ValueError(f"larger than {LARGEST_CONFIG} bytes")
            text = path.read_text(encoding="utf-8")
            _check_plain(text)
            config = OmegaConf.load(io.StringIO(text))
        except Exception as error:  # the YAML parser's errors share no base but Exception
            raise self._damaged("config.yaml", error) from error
        if not isinstance(config, DictConfig):
            raise self._damaged("config.yaml", ValueError("not a mapping"))
        return config

    def _damaged(self, name: str, error: Exception) -> RunError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return RunError(f"{self.folder / name}: damaged or not readable ({reason}); train again")

    @classmethod
    def create(cls, folder: Path, config: DictConfig, provenance: Mapping[str, Any]) -> "Run":
        """Make ``folder`` a run directory.

        Errors: :class:`RunError` if it is one already: nothing is overwritten.
        """
        cls.check_free(folder)
        (folder / "history.csv").unlink(missing_ok=True)  # of a run that saved no epoch
        write_json(folder / "provenance.json", provenance)
        write_atomically(folder / "config.yaml", lambda path: OmegaConf.save(config, path))
        return cls(folder)

    @staticmethod
    def check_free(folder: Path) -> None:
        """Errors: :class:`RunError` if ``folder`` holds a run already, one that saved an epoch."""
        if (folder / "checkpoints" / "last.pt").exists():
            raise RunError(
                f"{folder}: holds a run already; take another hydra.run.dir, or go on with "
                f"`sdunroll train resume={folder}`"
            )

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write ``value`` to ``name``, a path inside the run directory."""
        write_json(self.folder / name, value)

    def read_json(self, name: str) -> dict[str, Any]:
        """What is in ``name``. Errors: :class:`RunError` if it is missing or damaged."""
        try:
            value = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._damaged(name, error) from error
        if not isinstance(value, dict):
            raise self._damaged(name, ValueError("not a mapping"))
        return value

    def save_checkpoint(self, name: str, state: Mapping[str, Any]) -> None:
        """Save ``state`` as ``checkpoints/NAME.pt``."""
        import torch

        entry = {"format": FORMAT, **state}
        path = self.folder / "checkpoints" / f"{name}.pt"
        write_atomically(path, lambda target: torch.save(entry, target))

    def load_checkpoint(self, name: str) -> dict[str, Any]:
        """The state in ``checkpoints/NAME.pt``, with its ``path``. Errors: :class:`RunError`."""
        path = self.folder / "checkpoints" / f"{name}.pt"
        if not path.exists():
            raise RunError(
                f"{path}: missing; the run saved no epoch, or the file was moved away; train again"
            )
        try:
            state = load_checked(path)
        except (OSError, ValueError) as error:
            raise self._damaged(f"checkpoints/{name}.pt", error) from error
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise self._damaged(
                f"checkpoints/{name}.pt", ValueError(f"not a checkpoint of format {FORMAT}")
            )
        return state | {"path": str(path)}

    def append_history(self, row: Mapping[str, Any]) -> None:
        """Add a row to ``history.csv``, with a header if it is the first."""
        path = self.folder / "history.csv"
        new = not path.exists()
        try:
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(row)
        except OSError as error:
            raise WriteError(path, error) from error

    def history(self) -> list[dict[str, float]]:
        """The rows of ``history.csv``, a last row that was cut off left out."""
        path = self.folder / "history.csv"
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values()]
        return [{name: float(value) for name, value in row.items()} for row in rows if row]

    def truncate_history(self, epochs: int) -> None:
        """Leave out the rows after epoch ``epochs`` (those that no checkpoint stands for)."""
        path = self.folder / "history.csv"
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = lines[: epochs + 1]
        write_atomically(path, lambda target: _write_text(target, "".join(kept)))


def _check_plain(text: str) -> None:
    """Errors: ``ValueError`` for YAML that does more than say: a configuration is saved resolved, and
    what is nested without end, refers to itself or to the environment was put there by others."""
    depth = 0
    for event in yaml.parse(text):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("an alias, where all is written out")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST_CONFIG:
            raise ValueError(f"nested more than {DEEPEST_CONFIG} deep")
    if "${" in text:
        raise ValueError("an interpolation ${...}, where all is resolved")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as JSON, whole or not at all."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda target: _write_text(target, text))


def collect_provenance(
    *, device: str, threads: int, seed: int, overrides: Sequence[str]
) -> dict[str, Any]:
    """Where, from what and how a run is made."""
    return {
        "format": FORMAT,
        "git": _git_state(Path(__file__).parent),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "platform": platform.platform(),
        "device": device,
        "threads": threads,
        "command_line": sys.argv,
        "overrides": list(overrides),
        "seed": seed,
        "wall_seconds": None,
        "peak_memory_bytes": None,
    }


def peak_memory_bytes() -> int:
    """The most memory this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_state(folder: Path) -> dict[str, Any] | None:
    """Revision of the checkout that holds the package, and whether it has changes; None without one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return done.stdout.strip()

    try:
        if not git("ls-files", "--", "runs.py"):
            return None  # installed inside somebody else's repository
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
