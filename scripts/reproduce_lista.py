"""Every figure of the README's LISTA table: trains, perturbs, evaluates, and writes the table.

    python scripts/reproduce_lista.py [--jobs 2] [--only base] [--seeds 0 1 2]

Calls the `sdunroll` commands that it prints, into outputs/lista/; what is done there is not done
again. Writes outputs/reference/lista.md, lista.json and lista.png. On 2 cores base takes about a
quarter of an hour; all of it, by an estimate, two hours.
"""

from pathlib import Path
from statistics import mean
from typing import Any

from studies import REFERENCE, Study, finished, make_all, markdown, origin, read, write

RUNS = Path("outputs/lista")
CONSTRAINED = ["problem=lista", "constrained=true"]
STANDARD = ["problem=lista", "constrained=false"]
LONG = ["training.epochs=500"]
PERTURBATIONS = {"layer_noise": "[0,0.5,1,2,5]", "input_noise": "[0,0.05,0.1,0.2,0.4]"}


def study(name: str, overrides: list[str]) -> Study:
    return Study(name, overrides, PERTURBATIONS)


PARTS = {
    "base": [study("constrained", CONSTRAINED), study("standard", STANDARD)],
    "settings": [
        study("eps_0.05", [*CONSTRAINED, "constraint.epsilon=0.05"]),
        study("eps_0.15", [*CONSTRAINED, "constraint.epsilon=0.15"]),
        study("lr_3e-4", [*CONSTRAINED, "training.lr=3e-4"]),
        study("lr_3e-3", [*CONSTRAINED, "training.lr=3e-3"]),
    ],
    "gradient": [study("gradient", [*CONSTRAINED, "constraint=gradient"])],
    "long": [
        study("long_constrained", [*CONSTRAINED, *LONG]),
        study("long_standard", [*STANDARD, *LONG]),
    ],
}


def figures(folder: Path) -> dict[str, Any]:
    """What the table needs of one run."""
    summary, metrics = read(folder, "summary.json"), read(folder, "eval/metrics.json")
    levels = {
        f"{perturbation}_{row['level']:g}": row["final_distance"]
        for perturbation in PERTURBATIONS
        for row in read(folder, f"perturb/{perturbation}.json")["levels"]
    }
    return {
        **origin(folder),
        "feasible": summary["feasible"],
        "worst_slack": max(summary["slack"]),
        "violated_layers": sum(slack > 0 for slack in summary["slack"]),
        "final_distance": summary["final_distance"],
        "distances": [row["distance"]["mean"] for row in metrics["layers"]],
        "fista_iterations": metrics["baselines"]["fista"]["iterations_to_final_distance"],
        "objective_gap": metrics["layers"][-1]["objective_gap"]["mean"],
        "fista_objective_gap": metrics["baselines"]["fista"]["objective_gap"]["mean"],
        **levels,
    }


COLUMNS = {
    "final_distance": "final distance",
    "layer_noise_1": "layer noise 1",
    "layer_noise_2": "layer noise 2",
    "layer_noise_5": "layer noise 5",
    "input_noise_0.05": "input noise 0.05",
    "input_noise_0.1": "input noise 0.1",
    "input_noise_0.2": "input noise 0.2",
}


def table(found: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Markdown, a row a setting: means over the seeds, in brackets the largest ratio of a seed's
    distance to that of the standard network of the same seed and budget."""
    header = ["network", "seeds", "feasible", "worst slack", "violated layers", *COLUMNS.values()]
    header += ["FISTA iterations to the final distance"]
    lines = [header]
    for name, runs in found.items():
        peers = found.get("long_standard" if name.startswith("long") else "standard", {})
        rows = list(runs.values())
        cells = [name.replace("_", " "), str(len(rows))]
        cells += [f"{sum(row['feasible'] for row in rows)} of {len(rows)}"]
        cells += [f"{max(row['worst_slack'] for row in rows):+.3f}"]
        cells += [f"{mean(row['violated_layers'] for row in rows):g}"]
        for column in COLUMNS:
            ratios = [
                row[column] / peers[seed][column] for seed, row in runs.items() if seed in peers
            ]
            bracket = "" if "standard" in name or not ratios else f" ({max(ratios):.2f})"
            cells.append(f"{mean(row[column] for row in rows):.2f}{bracket}")
        cells.append(f"{mean(row['fista_iterations'] for row in rows):.0f}")
        lines.append(cells)
    return markdown(lines)


def picture(found: dict[str, dict[int, dict[str, Any]]], path: Path) -> None:
    """Distance after each layer, and final distance under layer noise: both methods, all seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    noise = (0, 0.5, 1, 2, 5)
    for name, color, line in (("constrained", "C0", "-o"), ("standard", "C1", "--s")):
        runs = list(found[name].values())
        for axes, rows in (
            (left, [run["distances"] for run in runs]),
            (right, [[run[f"layer_noise_{level:g}"] for level in noise] for run in runs]),
        ):
            middle = [mean(values) for values in zip(*rows, strict=True)]
            low, high = (list(map(pick, zip(*rows, strict=True))) for pick in (min, max))
            axes.plot(range(len(middle)), middle, line, color=color, ms=4, label=name)
            axes.fill_between(range(len(middle)), low, high, color=color, alpha=0.25, lw=0)
    left.set(xlabel="layer", title="distance to the optimum")
    right.set(xlabel="layer noise, in ISTA steps", title="final distance", yscale="log")
    right.set_xticks(range(len(noise)), [f"{level:g}" for level in noise])
    right.set_yticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"], minor=False)
    right.minorticks_off()
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    make_all(RUNS, PARTS, __doc__ or "")
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for part in PARTS.values():
        for one in part:
            if runs := finished(RUNS, one):
                found[one.name] = {seed: figures(folder) for seed, folder in runs.items()}
    write("lista", found, table(found))
    if {"constrained", "standard"} <= set(found):
        picture(found, REFERENCE / "lista.png")


if __name__ == "__main__":
    main()
