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


OF_PICTURES = {
    "psnr": ("PSNR", ".2f"),
    "ssim": ("SSIM", ".3f"),
    "hole_psnr": ("PSNR in the hole", ".2f"),
    "hole_ssim": ("SSIM in the hole", ".3f"),
}
OF_RECOVERY = {
    "nmse_db": ("NMSE dB (ratio of means)", ".2f"),
    "sample_nmse_db": ("NMSE dB (mean of samples)", ".2f"),
    "precision": ("precision", ".3f"),
    "recall": ("recall", ".3f"),
    "false_positives": ("false positives", ".1f"),
}
OF_CODES = {"objective_gap": ("objective gap", ".4g"), "l1_norm": ("l1 norm", ".4g")}


def _columns(row: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """The figures of ``row`` that tell most beside the distance: title and format by name."""
    known = OF_PICTURES if "psnr" in row else OF_RECOVERY if "nmse_db" in row else OF_CODES
    return {name: column for name, column in known.items() if name in row}


def _cells(row: dict[str, Any], columns: dict[str, tuple[str, str]]) -> list[str]:
    values = ((row[name], form) for name, (_, form) in columns.items())
    return [
        format(value["mean"] if isinstance(value, dict) else value, form) for value, form in values
    ]


def layer_table(metrics: dict[str, Any]) -> str:
    """A row a layer: figures, slack with its interval, share that descends, verdict."""
    columns = _columns(metrics["layers"][0])
    columns = {} if columns.keys() <= OF_CODES.keys() else columns
    header = ["layer", metrics["measure"], "ratio", "slack", "95 % interval", "descends", ""]
    header += [title for title, _ in columns.values()]
    rows = []
    for row in metrics["layers"]:
        value = row["measured"]["mean"]
        cells = [str(row["layer"]), f"{value:.4g}"]
        if "slack" in row:
            slack = row["slack"]
            low, high = slack["ci95"]
            cells += [
                _ratio(metrics, row),
                f"{slack['mean']:+.4f}",
                f"[{low:+.4f}, {high:+.4f}]",
                f"{100 * row['descent_frequency']['mean']:.1f} %",
                _verdict(row["layer"], slack["mean"], metrics["first_layer"]),
            ]
        else:
            cells += ["", "", "", "", ""]
        rows.append(cells + _cells(row, columns))
    return aligned(header, rows)


def _ratio(metrics: dict[str, Any], row: dict[str, Any]) -> str:
    """By how much the layer's measure falls, as the constraint takes it."""
    epsilon = metrics["epsilon"]
    epsilon = epsilon[row["layer"] - 1] if isinstance(epsilon, list) else epsilon
    after, slack = row["measured"]["mean"], row["slack"]["mean"]
    if metrics["form"] == "difference":  # whose slack is no ratio
        before = (after - slack) / (1 - epsilon)
        return f"{after / before:.3f}" if before > 0 else "-"
    return f"{slack + 1 - epsilon:.3f}"


def _verdict(layer: int, slack: float, first_layer: int) -> str:
    if layer < first_layer:
        return "free"
    return "ok" if slack <= 0 else "violated"


def baseline_table(metrics: dict[str, Any]) -> str:
    """The network's last layer beside the classical solvers after as many iterations."""
    last = metrics["layers"][-1]
    columns = _columns(last)
    header = ["", "iterations", "distance", *(title for title, _ in columns.values())]
    iterates = any(row["iterations"] is not None for row in metrics["baselines"].values())
    if iterates:
        header += ["iterations from y = 0 to the network's distance"]
    first = ["network", str(last["layer"]), f"{last['distance']['mean']:.4g}"]
    rows = [[*first, *_cells(last, columns), *[""] * iterates]]
    for name, row in metrics["baselines"].items():
        count, reached = row["iterations"], row["iterations_to_final_distance"]
        cells = [name, "" if count is None else str(count), f"{row['distance']['mean']:.4g}"]
        cells += _cells(row, columns)
        if iterates:
            cells.append("not reached" if reached is None else str(reached))
        rows.append(cells)
    return aligned(header, rows)


def cost_table(rows: Sequence[dict[str, Any]]) -> str:
    """A row a number of problems and a solver: the network's time, the solver's, how they compare."""
    lines = []
    for row in rows:
        start = [str(row["problems"]), f"{1000 * row['seconds']:.3g} ms"]
        for name, found in row["solvers"].items():
            goals = {"": found} if "seconds" in found else found
            for goal, cost in goals.items():
                what = f"{name} {goal.replace('_', ' the same ')}".strip()
                if cost is None:
                    lines.append([*start, what, "not reached", ""])
                    continue
                ratio = cost["seconds"] / row["seconds"]
                lines.append([*start, what, f"{1000 * cost['seconds']:.3g} ms", f"{ratio:.2g}"])
    return aligned(["problems", "network", "solver", "its time", "times the network's"], lines)


def guarantee_table(theory: dict[str, Any]) -> str:
    """The gradient norm at each layer beside the bound of the paper's recursion."""
    rows = [
        [
            str(theory["first_state"] + place),
            f"{value:.4g}",
            f"{bound:.4g}",
            "yes" if holds else "no",
        ]
        for place, (value, bound, holds) in enumerate(
            zip(theory["measured"], theory["bound"], theory["holds"], strict=True)
        )
    ]
    text = aligned(["layer", "gradient norm", "the paper's bound", "holds"], rows)
    supposed = "as it supposes" if theory["train_slack"] <= 0 else "which it supposes to be <= 0"
    return (
        f"{text}\nmeasured: zeta {theory['zeta']:.3g} (test against training split), M "
        f"{theory['largest_norm']:.3g}, slack on the training split {theory['train_slack']:+.3g}, "
        f"{supposed}; given: delta {theory['delta']:g}; limit bound {theory['limit']:.3g}"
    )


def shift_table(result: dict[str, Any]) -> str:
    """A row a shifted level: how far the observations moved, what that leaves, the bound beside what
    was measured after the last layer."""
    shifted = [(row["level"], row["theory"]) for row in result["levels"] if row["theory"]]
    rows = [
        [
            f"{level:g}",
            f"{found['shift']:.3g}",
            f"{found['generalisation']:.3g}",
            f"{found['measured'][-1]:.4g}",
            f"{found['bound'][-1]:.4g}",
            "yes" if all(found["holds"]) else "no",
        ]
        for level, found in shifted
    ]
    header = [
        "level",
        "shift d",
        "zeta + 2 M d",
        "gradient norm",
        "its bound",
        "holds at every layer",
    ]
    note = "d: sliced Wasserstein distance between the observations, estimated; zeta and M measured"
    return f"{aligned(header, rows)}\n{note}; given: delta {shifted[0][1]['delta']:g}"


def level_table(result: dict[str, Any]) -> str:
    """A row a level; with a second run, its figures and the ratio of the final distances."""
    columns = _columns(result["levels"][0])
    titles = [title for title, _ in columns.values()]
    header = ["level", "final distance", "95 % interval", *titles, "least descends"]
    other = result.get("against")
    main = next((name for name in ("hole_psnr", "nmse_db") if name in columns), "psnr")
    if other:
        header += ["against", "difference" if main in columns else "ratio"]
    rows = []
    for index, row in enumerate(result["levels"]):
        low, high = row["ci95"]["final_distance"]
        cells = [
            f"{row['level']:g}",
            f"{row['final_distance']:.4g}",
            f"[{low:.4g}, {high:.4g}]",
            *_cells(row, columns),
            f"{100 * min(row['descent_frequency'][result['first_layer'] - 1 :]):.1f} %",
        ]
        if other and main in columns:
            value = other["levels"][index][main]
            cells += [f"{value:.2f}", f"{row[main] - value:+.2f} dB"]
        elif other:
            distance = other["levels"][index]["final_distance"]
            ratio = f"{row['final_distance'] / distance:.3f}" if distance > 0 else "-"
            cells += [f"{distance:.4g}", ratio]
        rows.append(cells)
    return aligned(header, rows)
