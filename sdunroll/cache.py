"""A cache of tensors on disk, each entry known by the hash of all that decides it.

An entry is written whole or not at all, checked when read, and rebuilt when it is damaged or was made
by another format. A lock file an entry lets one process compute while the others wait; the lock dies
with its owner.
"""

import glob
import hashlib
import json
import logging
import os
import pickle
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from sdunroll.checks import UserError

log = logging.getLogger(__name__)

FORMAT = 1  # raised whenever the same key could stand for other tensors than before

Key = Mapping[str, object]


class WriteError(UserError):
    """A file that could not be written."""

    def __init__(self, path: Path, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        super().__init__(
            f"{path}: could not be written ({reason}); what was there before is intact; "
            "make room, or choose a place that can be written"
        )


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and values."""
    array = tensor.detach().cpu().contiguous().numpy()
    head = f"{array.dtype.str}{array.shape}".encode()
    found = hashlib.sha256(head)
    found.update(array.data)  # as it lies, without a copy
    return found.hexdigest()


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it and put it in place of ``path``.

    The folder must be there: one that was moved away is not made again, with half of its files.
    Temporary files of writers that were killed are removed; two at once is what locks are for.

    Errors: :class:`WriteError`; what stood at ``path`` before is then still there.
    """
    temporary = None
    try:
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            left.unlink(missing_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files that only the owner may read
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
        raise WriteError(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # where nothing can be written, nothing can be removed
                temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load_checked(path: Path, *, mapped: bool = False) -> dict:
    """What :func:`torch.save` wrote to ``path``, weights only, after verifying every record's CRC.

    Args:
        mapped: the tensors stay in the file, which is read where they are.

    Errors: ``ValueError`` if the file is not a whole, undamaged archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(record.compress_type for record in archive.infolist()):
                raise ValueError("packed, which torch.save does not do, and could fill the memory")
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"record {damaged} does not match its checksum")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except DAMAGE as error:
        raise ValueError(
            str(error).splitlines()[0] if str(error) else type(error).__name__
        ) from error


DAMAGE = (
    OSError,  # a seek to where a damaged directory of the archive points
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
    EOFError,
    RuntimeError,
    KeyError,
    NotImplementedError,
)  # what a damaged or foreign file makes the readers raise


class Cache:
    """Tensors on disk by key.

    Args:
        folder: where; made when first needed. None keeps nothing: every call computes.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @staticmethod
    def default_folder() -> Path:
        """``$SDUNROLL_CACHE``, else ``$XDG_CACHE_HOME/sdunroll``, else ``~/.cache/sdunroll``."""
        if own := os.environ.get("SDUNROLL_CACHE"):
            return Path(own).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sdunroll"

    def tensors(
        self, key: Key, compute: Callable[[], dict[str, Tensor]], *, mapped: bool = False
    ) -> dict[str, Tensor]:
        """The tensors of ``key``, from the disk where they are there, else from ``compute``.

        Args:
            key: all that decides the tensors, as JSON values; stored and compared as well.
            mapped: tensors from the disk are mapped into memory, and read where they are.
        """
        if self.folder is None:
            return compute()
        from filelock import FileLock

        text = json.dumps({**key, "format": FORMAT}, sort_keys=True)
        name = f"{key['what']}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
        path = self.folder / f"{name}.pt"
        lock = FileLock(self.folder / f"{name}.lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
            raise UserError(
                f"cache: cannot use {self.folder} ({error}); "
                "set SDUNROLL_CACHE to a folder that can be written and locked"
            ) from error
        try:
            found = self._read(path, text, mapped)
            if found is None:
                found = {name: tensor.cpu() for name, tensor in compute().items()}
                entry = {"key": text, "tensors": found}
                write_atomically(path, lambda target: torch.save(entry, target))
        finally:
            lock.release()
        return found

    @staticmethod
    def _read(path: Path, text: str, mapped: bool) -> dict[str, Tensor] | None:
        if not path.exists():
            return None
        try:
            entry = load_checked(path, mapped=mapped)
            if not isinstance(entry, dict) or entry.get("key") != text or "tensors" not in entry:
                raise ValueError("made for something else or by another version")
            return dict(entry["tensors"])
        except ValueError as error:
            log.warning("cache: %s is rebuilt: %s", path, error)
            return None
