"""What the reproduce scripts read of runs and write of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a run directory."""
    value: dict[str, Any] = json.loads((folder / name).read_text())
    return value


def origin(folder: Path) -> dict[str, Any]:
    """Where a run's figures come from: its overrides, revision, versions, cost."""
    provenance = read(folder, "provenance.json")
    return {
        "run": str(folder),
        "overrides": provenance["overrides"],
        "git": provenance["git"],
        "versions": provenance["versions"],
        "seconds": provenance["wall_seconds"],
        "peak_memory_gib": provenance["peak_memory_bytes"] / 2**30,
    }


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table whose first line is its header."""
    header, *rows = lines
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])
