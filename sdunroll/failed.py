"""``failed.json``: why a job of a sweep failed, left in its directory."""

import json
from pathlib import Path

from sdunroll.runs import write_json

NAME = "failed.json"


def record(folder: Path, reason: str) -> None:
    """Write down the reason, one line. Errors: :class:`sdunroll.cache.WriteError`."""
    write_json(folder / NAME, {"reason": reason})


def reason(folder: Path) -> str | None:
    """Why the job in ``folder`` failed; None if it did not."""
    try:
        return str(json.loads((folder / NAME).read_text(encoding="utf-8"))["reason"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return f"for a reason that {NAME} does not tell any more"


def forget(folder: Path) -> None:
    """The job is tried again."""
    (folder / NAME).unlink(missing_ok=True)
