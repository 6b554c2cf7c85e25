"""Tables over the methods of a report: means over the seeds with 95 % intervals, the best in bold.

Legend: a row a method, a column a figure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from sdunroll.report.collect import Method


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

    def best(self) -> int | None:
        """The row of the best mean, if there is a choice."""
        known = [(cell.mean, row) for row, cell in enumerate(self.cells) if cell is not None]
        if self.better is None or len(known) < 2:
            return None
        return (min if self.better == "low" else max)(known)[1]


@dataclass(frozen=True)
class Table:
    """A table: its file's name, a caption, the methods' names and the columns."""

    name: str
    caption: str
    rows: list[str]
    columns: list[Column]


def tables(methods: Sequence[Method]) -> list[Table]:
    """All tables that the methods' files have figures for."""
    found = [_overview(methods), _layers(methods)]
    names = sorted({name for one in methods for r in one.records for name in r.perturbations})
    found += [_levels(methods, name) for name in names]
    return [table for table in [*found, _cost(methods)] if table.columns]


def _columns(
    methods: Sequence[Method], wanted: Sequence[tuple[str, tuple[str | int, ...], int, str | None]]
) -> list[Column]:
    columns = [
        Column(title, [Cell.of(method.values(*path)) for method in methods], digits, better)
        for title, path, digits, better in wanted
    ]
    return [column for column in columns if any(column.cells)]


def main_figure(methods: Sequence[Method]) -> tuple[str, str, str, int]:
    """The figure that tells most: its name, title, which is better, digits after the point."""
    for name, title, better in (
        ("hole_psnr", "PSNR in the hole (dB)", "high"),
        ("psnr", "PSNR (dB)", "high"),
        ("nmse_db", "NMSE (dB)", "low"),
    ):
        if all(method.values("metrics", "layers", 0, name) for method in methods):
            return name, title, better, 2
    return "distance", "distance to the target", "low", 3


FIGURES = (
    ("distance", "final distance", 3, "low"),
    ("objective_gap", "objective gap", 3, "low"),
    ("gradient_norm", "gradient norm", 3, "low"),
    ("psnr", "PSNR (dB)", 2, "high"),
    ("hole_psnr", "PSNR in the hole (dB)", 2, "high"),
    ("ssim", "SSIM", 3, "high"),
    ("nmse_db", "NMSE (dB)", 2, "low"),
)


def _overview(methods: Sequence[Method]) -> Table:
    """The methods and, below them, the classical solvers on the same instances."""
    depth = _depth(methods)
    solvers = _solvers(methods)
    nothing: list[Cell | None] = [None] * len(solvers)
    seeds: list[Cell | None] = [Cell(len(method.records), None, 1) for method in methods]
    feasible = [_share(method.values("summary", "feasible")) for method in methods]
    worst = [Cell.of(method.values("summary", "worst_slack")) for method in methods]
    columns = [
        Column("seeds", seeds + nothing, 0),
        Column("share feasible", feasible + nothing, 2),
        Column("worst slack", worst + nothing, 3),
    ]
    pictures = any(method.values("metrics", "layers", 0, "psnr") for method in methods)
    for name, title, digits, better in FIGURES:
        if pictures and name in ("objective_gap", "gradient_norm"):
            continue  # of each layer's own objective, so not to be compared
        path: tuple[str | int, ...] = ("metrics", "layers", depth, name)
        if name == "distance":  # known without an evaluation
            path = ("summary", "final_distance")
        cells = [Cell.of(method.values(*path)) for method in methods]
        for solver, method, _ in solvers:  # seeds of the network make no difference to it
            values = set(method.values("metrics", "baselines", solver, name))
            cells.append(Cell.of(sorted(values)))
        columns.append(Column(title, cells, digits, better))
    rows = [method.name for method in methods] + [text for _, _, text in solvers]
    caption = "The test split, undisturbed, after the last layer."
    return Table("methods", caption, rows, [column for column in columns if any(column.cells)])


def _share(values: Sequence[float]) -> Cell | None:
    """A share, whose interval by Student's t would say nothing."""
    cell = Cell.of(values)
    return None if cell is None else Cell(cell.mean, None, cell.count)


def _solvers(methods: Sequence[Method]) -> list[tuple[str, Method, str]]:
    """The classical solvers that the first evaluated method was compared with: name, method, text."""
    for method in methods:
        for record in method.records:
            if record.metrics is not None:
                return [
                    (name, method, _solver_text(name, row["iterations"]))
                    for name, row in record.metrics["baselines"].items()
                ]
    return []


def _solver_text(name: str, iterations: int | None) -> str:
    return name if iterations is None else f"{name.upper()}, {iterations} iterations"


def _depth(methods: Sequence[Method]) -> int:
    """The number of layers; the least, where methods differ."""
    depths = [
        len(record.metrics["layers"]) - 1
        for method in methods
        for record in method.records
        if record.metrics is not None
    ]
    return min(depths, default=0)


def _layers(methods: Sequence[Method]) -> Table:
    name, title, better, digits = main_figure(methods)
    wanted = [
        (f"layer {layer}" if layer else "start", ("metrics", "layers", layer, name), digits, better)
        for layer in range(_depth(methods) + 1)
    ]
    caption = f"Anytime use: {title} when the network is cut after a layer."
    return Table("layers", caption, [one.name for one in methods], _columns(methods, wanted))


def _levels(methods: Sequence[Method], perturbation: str) -> Table:
    name, title, better, digits = main_figure(methods)
    name = "final_distance" if name == "distance" else name
    levels = sorted({level for method in methods for level in method.levels(perturbation)})
    columns = [
        Column(
            f"level {level:g}",
            [Cell.of(method.at_level(perturbation, level, name)) for method in methods],
            digits,
            better,
        )
        for level in levels
    ]
    columns = [column for column in columns if any(column.cells)]
    what = perturbation.replace("_", " ")
    caption = f"{title[0].upper()}{title[1:]} after the last layer under {what}, by level."
    return Table(f"perturb_{perturbation}", caption, [one.name for one in methods], columns)


def _cost(methods: Sequence[Method]) -> Table:
    wanted: list[tuple[str, tuple[str | int, ...], int, str | None]] = [
        ("training (s)", ("provenance", "wall_seconds"), 0, "low"),
        ("peak memory (bytes)", ("provenance", "peak_memory_bytes"), 0, "low"),
        ("epochs", ("summary", "epochs"), 0, None),
        ("best epoch", ("summary", "best_epoch"), 0, None),
    ]
    caption = "What training cost, data preparation included, on the machines of the provenance."
    return Table("cost", caption, [one.name for one in methods], _columns(methods, wanted))
