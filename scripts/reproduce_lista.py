"""Every figure of the README's LISTA table: trains, perturbs, evaluates, and writes the table.

    python scripts/reproduce_lista.py [--jobs 2] [--only base] [--seeds 0 1 2]

Calls the `sdunroll` commands that it prints, into outputs/lista/; what is done there is not done
again. Writes outputs/reference/lista.md, lista.json and lista.png. On 2 cores base takes about a
quarter of an hour; all of it, by an estimate, two hours.
"""

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

RUNS = Path("outputs/lista")
REFERENCE = Path("outputs/reference")
CONSTRAINED, STANDARD = ["constrained=true"], ["constrained=false"]
LONG = ["training.epochs=500"]
# name -> overrides of `sdunroll train`
STUDIES: dict[str, dict[str, list[str]]] = {
    "base": {"constrained": CONSTRAINED, "standard": STANDARD},
    "settings": {
        "eps_0.05": [*CONSTRAINED, "constraint.epsilon=0.05"],
        "eps_0.15": [*CONSTRAINED, "constraint.epsilon=0.15"],
        "lr_3e-4": [*CONSTRAINED, "training.lr=3e-4"],
        "lr_3e-3": [*CONSTRAINED, "training.lr=3e-3"],
    },
    "gradient": {"gradient": [*CONSTRAINED, "constraint=gradient"]},
    "long": {"long_constrained": [*CONSTRAINED, *LONG], "long_standard": [*STANDARD, *LONG]},
}
PERTURBATIONS = {"layer_noise": "[0,0.5,1,2,5]", "input_noise": "[0,0.05,0.1,0.2,0.4]"}


def call(arguments: list[str], threads: int) -> None:
    """One `sdunroll` command, printed as a user would type it."""
    print("sdunroll", shlex.join(arguments), flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "-m", "sdunroll", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"sdunroll {shlex.join(arguments)} failed:\n{done.stderr}")


def study(name: str, overrides: list[str], seed: int, threads: int) -> Path:
    """Train, perturb and evaluate one run, unless that is done; its directory."""
    folder = RUNS / f"{name}_seed{seed}"
    if not (folder / "summary.json").exists():
        begun = (folder / "checkpoints" / "last.pt").exists()
        fresh = ["problem=lista", *overrides, f"seed={seed}", f"hydra.run.dir={folder}"]
        call(["train", *([f"resume={folder}"] if begun else fresh)], threads)
    for perturbation, levels in PERTURBATIONS.items():
        if not (folder / "perturb" / f"{perturbation}.json").exists():
            arguments = [f"run={folder}", f"perturbation={perturbation}", f"levels={levels}"]
            call(["perturb", *arguments], threads)
    if not (folder / "eval" / "metrics.json").exists():
        call(["eval", f"run={folder}"], threads)
    return folder


def figures(folder: Path) -> dict[str, Any]:
    """What the table needs of one run."""

    def read(name: str) -> dict[str, Any]:
        return json.loads((folder / name).read_text())

    summary, metrics, provenance = (
        read(name) for name in ("summary.json", "eval/metrics.json", "provenance.json")
    )
    levels = {
        f"{perturbation}_{row['level']:g}": row["final_distance"]
        for perturbation in PERTURBATIONS
        for row in read(f"perturb/{perturbation}.json")["levels"]
    }
    return {
        "run": str(folder),
        "overrides": provenance["overrides"],
        "git": provenance["git"],
        "versions": provenance["versions"],
        "seconds": provenance["wall_seconds"],
        "peak_memory_gib": provenance["peak_memory_bytes"] / 2**30,
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
    lines = [header, ["---"] * len(header)]
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
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, a thread each")
    parser.add_argument("--only", nargs="+", default=list(STUDIES), choices=list(STUDIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    threads = max(1, math.floor((os.cpu_count() or 1) / options.jobs))
    wanted = [
        (name, overrides, seed)
        for part in options.only
        for seed in options.seeds
        for name, overrides in STUDIES[part].items()
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda job: study(*job, threads), wanted))
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for part in STUDIES.values():
        for name in part:
            done = sorted(RUNS.glob(f"{name}_seed*/eval/metrics.json"))
            runs = {int(path.parts[-3].rsplit("seed", 1)[1]): path.parents[1] for path in done}
            if runs:
                found[name] = {seed: figures(folder) for seed, folder in runs.items()}
    REFERENCE.mkdir(parents=True, exist_ok=True)
    (REFERENCE / "lista.json").write_text(json.dumps(found, indent=1) + "\n")
    (REFERENCE / "lista.md").write_text(table(found) + "\n")
    if {"constrained", "standard"} <= set(found):
        picture(found, REFERENCE / "lista.png")
    print((REFERENCE / "lista.md").read_text())


if __name__ == "__main__":
    main()
