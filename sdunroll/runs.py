"""The run directory: configuration, history, checkpoints, results.

Every file is written whole or not at all; ``history.csv`` grows by whole rows. Each has a checksum of
its content, its name and the settings that make the run, so that what is damaged, or belongs to another
run, is noticed.
"""

import csv
import json
import logging
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from sdunroll import checks, seals, trust
from sdunroll.cache import WriteError, load_checked, write_atomically
from sdunroll.checks import UserError

log = logging.getLogger(__name__)

FORMAT = 2  # of the run directory; raised when an older one could be misread
UNCHECKED = 1  # the format before, without checksums


class RunError(UserError):
    """A run directory that is missing, damaged or of another version."""


def resumption(folder: Path, config: DictConfig) -> str:
    """The command that goes on with the run of ``config`` in ``folder``, for the user who configured it."""
    return f"sdunroll train {checks.override('resume', folder)}{trust.override(config)}"


class Run:
    """A run directory.

    Args:
        folder: an existing run directory; :meth:`create` makes a new one.

    Errors: :class:`RunError` if there is none, or one that this version cannot read.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not (self.folder / "config.yaml").is_file():
            what = "does not exist"
            if self.folder.exists():
                what = "holds no config.yaml" if self.folder.is_dir() else "is a file"
            raise RunError(
                f"{self.folder}: expected the directory of a run, but it {what}; "
                "`sdunroll train` prints the run directory as its last line"
            )
        self.config = self._read_config()
        self.identity = seals.identity(self.config)
        self.format: Any = UNCHECKED  # until it is known
        provenance = self.read_json("provenance.json")
        self.format = provenance.get("format")
        if self.format not in (UNCHECKED, FORMAT):
            raise RunError(
                f"{self.folder}: expected a run directory of format {FORMAT} or {UNCHECKED}, got format "
                f"{self.format}; it was made by sdunroll "
                f"{provenance.get('versions', {}).get('sdunroll')}, read it with that version or train "
                "again"
            )
        self.provenance = self.read_json("provenance.json")

    def _read_config(self) -> DictConfig:
        path = self.folder / "config.yaml"
        try:
            return seals.read_config(path)
        except seals.Broken as error:
            raise RunError(
                f"{path}: does not match its checksum, so it was damaged or changed; if the change is "
                "meant, remove its last line"
            ) from error
        except Exception as error:  # the YAML parser's errors share no base but Exception
            raise self._damaged("config.yaml", error) from error

    def _damaged(self, name: str, error: Exception) -> RunError:
        reason = " ".join(str(error).split()) or type(error).__name__
        part = Path(name).parts[0]
        again = f"call {part} again" if part in ("eval", "perturb") else "train again"
        return RunError(f"{self.folder / name}: damaged or not readable ({reason}); {again}")

    @classmethod
    def create(cls, folder: Path, config: DictConfig, provenance: Mapping[str, Any]) -> "Run":
        """Make ``folder`` a run directory.

        Errors: :class:`RunError` if it is one already: nothing is overwritten.
        """
        cls.check_free(folder)
        (folder / "history.csv").unlink(missing_ok=True)  # of a run that saved no epoch
        entry = {"format": FORMAT, **provenance}
        entry = seals.stamped(seals.identity(config), "provenance.json", entry)
        write_json(folder / "provenance.json", entry)
        text = seals.config_text(config)
        write_atomically(folder / "config.yaml", lambda path: _write_text(path, text))
        return cls(folder)

    @staticmethod
    def check_free(folder: Path) -> None:
        """Errors: :class:`RunError` if ``folder`` holds a run already, one that saved an epoch."""
        if (folder / "summary.json").exists():
            raise RunError(f"{folder}: holds a finished run; take another hydra.run.dir")
        if any((folder / "checkpoints" / f"{name}.pt").exists() for name in ("last", "previous")):
            raise RunError(
                f"{folder}: holds a run already; take another hydra.run.dir, or go on with "
                f"`sdunroll train {checks.override('resume', folder)}`"
            )

    def _check_there(self) -> None:
        """Errors: :class:`RunError` if the directory is gone: a new one would hold half a run."""
        if not (self.folder / "config.yaml").is_file():
            raise RunError(
                f"{self.folder}: the run directory is gone; put it back and go on with `sdunroll train "
                f"{checks.override('resume', self.folder)}`, or train again"
            )

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write ``value`` to ``name``, a path inside the run directory."""
        self._check_there()
        write_json(self.folder / name, seals.stamped(self.identity, name, value))

    def read_json(self, name: str) -> dict[str, Any]:
        """What is in ``name``. Errors: :class:`RunError` if it is missing, damaged or another run's."""
        try:
            value = json.loads((self.folder / name).read_text(encoding="utf-8"))
            if not isinstance(value, dict):
                raise ValueError("not a mapping")
            check = value.pop("check", None)
            if self.format != UNCHECKED and check != seals.checksum(self.identity, name, value):
                raise ValueError(
                    "its checksum does not match: it or config.yaml was changed, or is another run's"
                )
        except (OSError, ValueError, RecursionError) as error:
            raise self._damaged(name, error) from error
        return value

    def save_checkpoint(self, name: str, state: Mapping[str, Any]) -> None:
        """Save ``state`` as ``checkpoints/NAME.pt``; of ``last``, the one before is kept too."""
        import torch

        self._check_there()
        path = self._checkpoint(name)
        path.parent.mkdir(exist_ok=True)
        if name == "last" and path.exists():
            write_atomically(self._checkpoint("previous"), lambda target: _link(path, target))
        entry = {"format": self.format, "run": self.identity, "name": name, **state}
        write_atomically(path, lambda target: torch.save(entry, target))

    def _checkpoint(self, name: str) -> Path:
        return self.folder / "checkpoints" / f"{name}.pt"

    def load_checkpoint(self, name: str) -> dict[str, Any]:
        """The state in ``checkpoints/NAME.pt``, with its ``path``. Errors: :class:`RunError`."""
        path = self._checkpoint(name)
        if not path.exists():
            raise RunError(
                f"{path}: missing; the run saved no epoch, or the file was moved away; train again"
            )
        try:
            state = load_checked(path)
            if not isinstance(state, dict) or state.get("format") != self.format:
                raise ValueError(f"not a checkpoint of format {self.format}")
            own = {"run": self.identity, "name": "last" if name == "previous" else name}
            if self.format != UNCHECKED and any(state.get(key) != own[key] for key in own):
                raise ValueError("it does not belong here: another file's name, or of another run")
        except (OSError, ValueError) as error:
            raise self._damaged(f"checkpoints/{name}.pt", error) from error
        return state | {"path": str(path)}

    def load_last(self) -> dict[str, Any]:
        """The last checkpoint, or the one before where that is missing or damaged, and a warning.

        Errors: :class:`RunError` if there is neither.
        """
        try:
            return self.load_checkpoint("last")
        except RunError as error:
            try:
                state = self.load_checkpoint("previous")
            except RunError:
                raise error from None
            reason = str(error).removesuffix("; train again")
            log.warning("%s; goes on from the one before, %s", reason, state["path"])
        # in its place at once: the next save would else keep the damaged one and overwrite this
        previous = self._checkpoint("previous")
        write_atomically(self._checkpoint("last"), lambda target: _link(previous, target))
        return state

    def append_history(self, row: Mapping[str, Any]) -> None:
        """Add a row to ``history.csv``, with a header if it is the first."""
        self._check_there()
        path = self.folder / "history.csv"
        new = not path.exists()
        cells = [str(value) for value in row.values()]
        try:
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                checked = self.format != UNCHECKED  # or the columns there already have none
                if new:
                    writer.writerow([*row, *["check"] * checked])
                writer.writerow([*cells, *[self._row_check(cells)] * checked])
        except OSError as error:
            raise WriteError(path, error) from error

    def _row_check(self, cells: list[str]) -> str:
        return str(zlib.crc32(",".join([self.identity, *cells]).encode()))

    def history(self) -> list[dict[str, float]]:
        """The rows of ``history.csv``; a damaged one is left out and named, but for a last one that was
        cut off."""
        path = self.folder / "history.csv"
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            names, *lines = list(csv.reader(file)) or [[]]
        rows = []
        for number, cells in enumerate(lines, 1):
            try:
                if self.format != UNCHECKED and cells[-1] != self._row_check(cells[:-1]):
                    raise ValueError
                row = dict(zip(names, map(float, cells), strict=True))
            except (ValueError, IndexError):
                if number < len(lines):
                    log.warning("%s: row %d is damaged and left out", path, number)
                continue
            row.pop("check", None)
            rows.append(row)
        return rows

    def truncate_history(self, epochs: int) -> None:
        """Leave out the rows after epoch ``epochs`` (those that no checkpoint stands for)."""
        path = self.folder / "history.csv"
        if not path.exists():
            return
        lines = path.read_bytes().splitlines(keepends=True)
        kept = lines[: epochs + 1]
        write_atomically(path, lambda target: target.write_bytes(b"".join(kept)))


def _link(path: Path, target: Path) -> None:
    """Make ``target`` the same file as ``path``, which is replaced but never changed; or a copy."""
    target.unlink()
    try:
        target.hardlink_to(path)
    except OSError:  # a file system without links
        shutil.copyfile(path, target)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as JSON, whole or not at all."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda target: _write_text(target, text))
