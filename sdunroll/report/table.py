"""A table of a report: figures with their 95 % intervals over the seeds, the best marked.

Legend: a row a method, a column a figure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure: mean over ``count`` seeds; ``half`` the half width of its 95 % interval by Student's t,
    None for less than two seeds."""

    mean: float
    half: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Cell | None":
        """The cell of one figure of all seeds; None without any."""
        if not values:
            return None
        count = len(values)
        mean = math.fsum(values) / count
        if count < 2:
            return cls(mean, None, count)
        variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
        half = float(stats.t.ppf(0.975, count - 1)) * math.sqrt(variance / count)
        return cls(mean, half, count)


@dataclass(frozen=True)
class Column:
    """A column of figures.

    Attributes:
        title: its heading. cells: a row each. digits: after the point.
        better: which is best, "low" or "high"; None where none is.
    """

    title: str
    cells: list[Cell | None]
    digits: int = 3
    better: str | None = None

    def best(self) -> set[int]:
        """The rows of the best mean as it is written; none where all are the same."""
        known = {row: cell.mean for row, cell in enumerate(self.cells) if cell is not None}
        if self.better is None or not known:
            return set()
        best = (min if self.better == "low" else max)(known.values())
        rows = {row for row, mean in known.items()
                if f"{mean:.{self.digits}f}" == f"{best:.{self.digits}f}"}  # fmt: skip
        return rows if len(rows) < len(known) else set()


@dataclass(frozen=True)
class Table:
    """A table: its file's name, a caption, the methods' names and the columns; ``axis`` is what the
    columns are points of, if they make a curve."""

    name: str
    caption: str
    rows: list[str]
    columns: list[Column]
    axis: str | None = None
