"""Tables over the methods of a report: means over the seeds with 95 % intervals, the best in bold.

Legend: a row a method, a column a figure.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from sdunroll.report.collect import Record
from sdunroll.report.grouping import Method, blocks
from sdunroll.report.table import Cell, Column, Table


def tables(methods: Sequence[Method]) -> list[Table]:
    """All tables that the methods' files have figures for; a set of them for each problem."""
    several = blocks(methods)
    names = [_file_name(title) for title, _ in several]
    lowered = [name.lower() for name in names]  # alike to some file systems
    found = []
    for (title, group), name in zip(several, names, strict=True):
        for table in _block(group):
            if len(several) > 1:
                prefix = name
                if lowered.count(name.lower()) > 1:
                    prefix += f"_{_digest(title)}"
                caption = f"{title[0].upper()}{title[1:]}. {table.caption}"
                table = replace(table, name=f"{prefix}_{table.name}", caption=caption)
            found.append(table)
    return found


def _file_name(title: str) -> str:
    """A title as part of a file's name, of which file systems take 255 bytes."""
    name = "".join(c if c.isalnum() else "_" for c in title.replace(", ", "_"))
    short = name.encode()[:90].decode(errors="ignore")
    return name if len(name.encode()) < 100 else f"{short}_{_digest(title)}"


def _digest(title: str) -> str:
    return hashlib.sha256(title.encode()).hexdigest()[:8]


def _block(methods: Sequence[Method]) -> list[Table]:
    found = [_overview(methods), _layers(methods)]
    names = sorted({name for one in methods for r in one.records for name in r.perturbations})
    found += [_levels(methods, name) for name in names]
    return [table for table in [*found, _theory(methods), _cost(methods)] if table.columns]


def _columns(
    methods: Sequence[Method], wanted: Sequence[tuple[str, tuple[str | int, ...], int, str | None]]
) -> list[Column]:
    columns = [
        Column(title, [Cell.of(method.values(*path)) for method in methods], digits, better)
        for title, path, digits, better in wanted
    ]
    return [column for column in columns if any(column.cells)]


def main_figure(methods: Sequence[Method]) -> tuple[str, str, str, int]:
    """The figure that tells most of those that were evaluated: its name, title, which is better, digits
    after the point."""
    evaluated = [one for one in methods if one.values("metrics", "layers", 0, "distance")]
    for name, title, better in (
        ("hole_psnr", "PSNR in the hole (dB)", "high"),
        ("psnr", "PSNR (dB)", "high"),
        ("nmse_db", "NMSE (dB)", "low"),
    ):
        if evaluated and all(one.values("metrics", "layers", 0, name) for one in evaluated):
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
    """The methods and, below them, the classical solvers on the same instances, or the first of them."""
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
        path: tuple[str | int, ...] = ("metrics", "layers", -1, name)
        if name == "distance":  # known without an evaluation
            path = ("summary", "final_distance")
        cells = [Cell.of(method.values(*path)) for method in methods]
        for place, method, _ in solvers:  # seeds of the network make no difference to it
            values = set(method.values("metrics", "baselines", *place, name))
            cells.append(Cell.of(sorted(values)))
        columns.append(Column(title, cells, digits, better))
    rows = [method.name for method in methods] + [text for _, _, text in solvers]
    caption = f"The test split, undisturbed, after the last layer{_shortened(methods)}."
    return Table("methods", caption, rows, [column for column in columns if any(column.cells)])


def _shortened(methods: Sequence[Method]) -> str:
    """How many instances the solvers were run on, where those are fewer than the networks'."""
    for method in methods:
        every = max(method.values("metrics", "num_samples"), default=0)
        count = min(method.values("metrics", "baseline_samples"), default=every)
        if count < every:
            return f"; solvers on the first {count:,.0f} of its {every:,.0f} instances"
    return ""


def _share(values: Sequence[float]) -> Cell | None:
    """A share, whose interval by Student's t would say nothing."""
    cell = Cell.of(values)
    return None if cell is None else Cell(cell.mean, None, cell.count)


def _solvers(methods: Sequence[Method]) -> list[tuple[tuple[str, ...], Method, str]]:
    """The classical solvers that the first evaluated method was compared with, after as many iterations
    as it has layers and in the end: place among the baselines, method, text."""
    for method in methods:
        for record in method.records:
            if record.metrics is not None:
                found: list[tuple[tuple[str, ...], Method, str]] = []
                for name, row in record.metrics["baselines"].items():
                    found.append(((name,), method, _solver_text(name, row["iterations"])))
                    if end := row.get("converged"):
                        place = (name, "converged")
                        found.append((place, method, _solver_text(name, end["iterations"])))
                return found
    return []


def _solver_text(name: str, iterations: int | None) -> str:
    return name if iterations is None else f"{name.upper()}, {iterations:,} iterations"


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
    rows = [one.name for one in methods]
    return Table("layers", caption, rows, _columns(methods, wanted), axis="layer")


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
    rows = [one.name for one in methods]
    return Table(f"perturb_{perturbation}", caption, rows, columns, axis="level")


def _theory(methods: Sequence[Method]) -> Table:
    """The paper's bound at the last layer beside what was measured."""
    wanted: list[tuple[str, tuple[str | int, ...], int, str | None]] = [
        ("zeta", ("metrics", "theory", "zeta"), 3, None),
        ("M", ("metrics", "theory", "largest_norm"), 1, None),
        ("slack on the training split", ("metrics", "theory", "train_slack"), 3, None),
        ("gradient norm", ("metrics", "theory", "measured", -1), 3, "low"),
        ("its bound", ("metrics", "theory", "bound", -1), 3, None),
        ("bound of the limit", ("metrics", "theory", "limit"), 2, None),
    ]
    columns = _columns(methods, wanted)
    held = [
        _share(
            [
                sum(theory["holds"]) / len(theory["holds"])
                for record in method.records
                if record.metrics is not None and (theory := record.metrics.get("theory"))
            ]
        )
        for method in methods
    ]
    if columns:
        columns.append(Column("share of layers below the bound", held, 2))
    caption = (
        "The paper's recursion after the last layer. Measured: zeta, M and the gradient norm; given: "
        "delta; assumed: that each constraint holds on the training samples (slack <= 0) and, with "
        "probability 1 - delta, up to zeta elsewhere."
    )
    return Table("theory", caption, [one.name for one in methods], columns)


def _cost(methods: Sequence[Method]) -> Table:
    wanted: list[tuple[str, tuple[str | int, ...], int, str | None]] = [
        ("training (s)", ("provenance", "wall_seconds"), 0, "low"),
        ("epochs", ("summary", "epochs"), 0, None),
        ("best epoch", ("summary", "best_epoch"), 0, None),
    ]
    columns = _columns(methods, wanted)
    for title, name in (
        ("peak memory of the GPU (MiB)", "peak_gpu_memory_bytes"),
        ("peak memory (MiB)", "peak_memory_bytes"),
    ):
        peaks = [method.values("provenance", name) for method in methods]
        cells = [Cell.of([value / 2**20 for value in values]) for values in peaks]
        if any(cells):
            columns.insert(1, Column(title, cells, 0, "low"))
    columns += _inference(methods)
    caption = (
        "What training cost, data preparation included, and inference, on the machines of the "
        "provenance; the time of a solver to the same distance or objective in that of the network."
    )
    return Table("cost", caption, [one.name for one in methods], columns)


def _inference(methods: Sequence[Method]) -> list[Column]:
    """The network's time by the number of problems, and how many times as long solvers take."""
    found: dict[str, dict[int, list[float]]] = {}
    for place, method in enumerate(methods):
        for record in method.records:
            for title, value in _inference_figures(record).items():
                found.setdefault(title, {}).setdefault(place, []).append(value)
    return [
        Column(title, [Cell.of(rows.get(place, [])) for place in range(len(methods))], 2,
               "low" if "(ms)" in title else "high")
        for title, rows in sorted(found.items())
    ]  # fmt: skip


def _inference_figures(record: Record) -> dict[str, float]:
    rows = (record.cost or {}).get("rows", [])
    figures = {}
    for row in rows:
        count = f"{row['problems']:,} problem{'s' * (row['problems'] > 1)}"
        figures[f"{count} (ms)"] = 1000 * row["seconds"]
        for solver, found in row["solvers"].items():
            goals = {"": found} if "seconds" in found else found
            for goal, cost in goals.items():
                if cost is not None:
                    what = f"{solver} {goal.replace('to_', 'to the same ')}".strip()
                    figures[f"{count}: {what} (times)"] = cost["seconds"] / row["seconds"]
    return figures
