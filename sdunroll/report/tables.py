"""Tables for the terminal, from saved results alone."""

from collections.abc import Sequence
from typing import Any


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to the same width, numbers to the right."""
    table = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def layer_table(metrics: dict[str, Any]) -> str:
    """A row a layer: figures, slack with its interval, share that descends, verdict."""
    header = ["layer", metrics["measure"], "ratio", "slack", "95 % interval", "descends", ""]
    rows = []
    before = None
    for row in metrics["layers"]:
        value = row["measured"]["mean"]
        cells = [str(row["layer"]), f"{value:.4g}"]
        if "slack" in row:
            slack = row["slack"]
            low, high = slack["ci95"]
            cells += [
                f"{value / before:.3f}" if before else "-",
                f"{slack['mean']:+.4f}",
                f"[{low:+.4f}, {high:+.4f}]",
                f"{100 * row['descent_frequency']['mean']:.1f} %",
                _verdict(row["layer"], slack["mean"], metrics["first_layer"]),
            ]
        else:
            cells += ["", "", "", "", ""]
        rows.append(cells)
        before = value
    return aligned(header, rows)


def _verdict(layer: int, slack: float, first_layer: int) -> str:
    if layer < first_layer:
        return "free"
    return "ok" if slack <= 0 else "violated"


def baseline_table(metrics: dict[str, Any]) -> str:
    """The network's last layer beside the classical solvers after as many iterations."""
    last = metrics["layers"][-1]
    header = ["", "iterations", "distance", "objective gap"]
    header += ["iterations from y = 0 to the network's distance"]
    rows = [
        [
            "network",
            str(last["layer"]),
            f"{last['distance']['mean']:.4g}",
            f"{last['objective_gap']['mean']:.4g}",
            "",
        ]
    ]
    for name, row in metrics["baselines"].items():
        reached = row["iterations_to_final_distance"]
        rows.append(
            [
                name,
                str(row["iterations"]),
                f"{row['distance']['mean']:.4g}",
                f"{row['objective_gap']['mean']:.4g}",
                f"more than {metrics['baseline_limit']}" if reached is None else str(reached),
            ]
        )
    return aligned(header, rows)


def level_table(result: dict[str, Any]) -> str:
    """A row a level; with a second run, its figures and the ratio of the final distances."""
    header = [
        "level",
        "final distance",
        "95 % interval",
        "objective gap",
        "l1 norm",
        "least descends",
    ]
    other = result.get("against")
    if other:
        header += ["against", "ratio"]
    rows = []
    for index, row in enumerate(result["levels"]):
        low, high = row["ci95"]["final_distance"]
        cells = [
            f"{row['level']:g}",
            f"{row['final_distance']:.4g}",
            f"[{low:.4g}, {high:.4g}]",
            f"{row['objective_gap']:.4g}",
            f"{row['l1_norm']:.4g}",
            f"{100 * min(row['descent_frequency']):.1f} %",
        ]
        if other:
            distance = other["levels"][index]["final_distance"]
            cells += [f"{distance:.4g}", f"{row['final_distance'] / distance:.3f}"]
        rows.append(cells)
    return aligned(header, rows)
