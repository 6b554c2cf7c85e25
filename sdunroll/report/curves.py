"""Figures of a report: methods over the layers and over the levels, as PNG and PDF."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from sdunroll.cache import write_atomically
from sdunroll.report.figures import STYLE, log_axis
from sdunroll.report.table import Column, Table

MARKERS = "osD^v<>P*pX"  # eleven, beside ten colours: no two of 110 lines have both in common
LINES = ("-", "--", "-.", ":")


def draw(table: Table, folder: Path, *, axis: str, notices: Sequence[str]) -> list[Path]:
    """The columns of ``table`` as points from left to right, a line a method: ``NAME.png``, ``.pdf``.

    The band is the 95 % interval. Lines differ in marker and dash too, to be told apart in grey.

    Args:
        axis: what the columns are. notices: what must be said of the data.
    """
    with matplotlib.rc_context(STYLE):
        # a name a line below the axes: the part in which it differs may be anywhere in it
        labels = [fill(name, 90) for name in table.rows]
        lines = sum(label.count("\n") + 1 for label in labels)
        figure = Figure(figsize=(6.4, 3.6 + 0.15 * lines))
        axes = figure.subplots()
        for place, name in enumerate(labels):
            _line(axes, table.columns, place, name)
        axes.set_xticks(
            range(len(table.columns)), [column.title.split()[-1] for column in table.columns]
        )
        axes.set_xlabel(axis)
        axes.set_title(fill(table.caption, 90), fontsize=8, loc="left")
        means = [cell.mean for column in table.columns for cell in column.cells if cell is not None]
        if table.columns[0].better == "low" and min(means) > 0 and max(means) > 3 * min(means):
            log_axis(axes)  # which has too few numbers for less
        below: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "ncols": 1}
        axes.legend(fontsize=7, frameon=False, handlelength=4, **below)
        if notices:
            figure.supxlabel("; ".join(notices), fontsize=7, x=0.99, ha="right")
        return [_save(figure, folder / f"{table.name}.{ending}") for ending in ("png", "pdf")]


def _save(figure: Figure, path: Path) -> Path:
    ending = path.suffix[1:]
    # without a date, so that the same results give the same bytes
    metadata: Any = {"CreationDate": None} if ending == "pdf" else None
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, lambda to: figure.savefig(to, format=ending, metadata=metadata))
    return path


def _line(axes: Any, columns: Sequence[Column], place: int, name: str) -> None:
    known = [
        (x, cell) for x, column in enumerate(columns) if (cell := column.cells[place]) is not None
    ]
    if not known:
        return
    x = [position for position, _ in known]
    mean = np.array([cell.mean for _, cell in known])
    half = np.array([cell.half or 0.0 for _, cell in known])
    style: Any = {
        "color": f"C{place % 10}",
        "ls": LINES[place % 4],
        "marker": MARKERS[place % len(MARKERS)],
    }
    axes.plot(x, mean, ms=4, lw=1.3, label=name, **style)
    low = mean - half
    if columns[0].better == "low" and mean.min() > 0:
        low = np.maximum(low, mean * 0.05)
    axes.fill_between(x, low, mean + half, color=style["color"], alpha=0.2, lw=0)
