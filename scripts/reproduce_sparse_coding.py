"""The sparse-coding experiments of the paper: trains, perturbs, evaluates, and writes the tables.

    scripts/reproduce_sparse_coding.sh [--scale smoke|small|paper] [--status] [--jobs 2] [--only PART]

smoke tries everything out in minutes; small is the README's tables, by its default the methods of the
paper with three seeds; paper is the released configuration, CIFAR-10 and 5,000 epochs, for one GPU.
Calls the `sdunroll` commands that it prints, into outputs/sparse_coding/SCALE/; what is done there is
not done again. small writes outputs/reference/, the others outputs/sparse_coding/SCALE/report/.

Parts: methods, the paper's comparison; settings, eps and steps; long, 500 epochs; inference, a network
that is faster than FISTA to its distance and to its objective; samples, how the gap between training and
test split depends on the number of training samples.
"""

from pathlib import Path
from statistics import mean
from typing import Any

from commands import run_script
from results import markdown, origin, read
from studies import Scale, Study, Suite

Found = dict[str, dict[int, dict[str, Any]]]

CONSTRAINED = ["problem=lista", "constrained=true"]
STANDARD = ["problem=lista", "constrained=false"]
GRADIENT = [*CONSTRAINED, "constraint=gradient"]
NOISE = ["training.noise_level=1"]
PERTURBATIONS = {
    "layer_noise": "[0,0.5,1,2,5]",
    "layer_noise_absolute": "[0,0.01,0.1,1,10,100,1000]",
    "input_noise": "[0,0.05,0.1,0.2,0.4]",
    "adversarial": "[0,0.1,0.2,0.4,0.8]",
    "adversarial_layer": "[0,0.5,1,2,5]",
}


NOISES = {name: PERTURBATIONS[name] for name in ("layer_noise", "input_noise")}


def study(name: str, *overrides: str) -> Study:
    return Study(name, overrides, PERTURBATIONS)


def variant(name: str, *overrides: str) -> Study:
    return Study(name, overrides, NOISES)


def long(name: str, *overrides: str) -> Study:
    return Study(name, [*overrides, "training.epochs=500"], NOISES, length=500 / 80)


def methods(constrained: list[str], standard: list[str]) -> list[Study]:
    """The paper's comparison; every measure with and without noise in training."""
    return [
        study("standard", *standard),
        study("standard_noise", *standard, *NOISE),
        study("layerwise", *standard, "training=layerwise"),
        study("incremental", *standard, "training=incremental"),
        study("constrained", *constrained),
        study("first_layer_free", *constrained, "constraint.first_layer=2"),
        study("constrained_noise", *constrained, *NOISE),
        study("gradient", *constrained, "constraint=gradient"),
        study("gradient_noise", *constrained, "constraint=gradient", *NOISE),
        study("objective", *constrained, "constraint=objective"),
        study("objective_noise", *constrained, "constraint=objective", *NOISE),
    ]


def with_samples(count: int) -> Study:
    """As many steps with less data, from which the dictionary is learned, too; the figures of interest
    are the evaluation's."""
    epochs = 80 * 8000 // count
    return Study(
        f"samples_{count}",
        [*GRADIENT, f"data.num_train={count}", f"training.epochs={epochs}"],
        seeds=[0],
    )


PARTS = {
    "methods": methods(CONSTRAINED, STANDARD),
    "settings": [
        variant("eps_0.05", *CONSTRAINED, "constraint.epsilon=0.05"),
        variant("eps_0.15", *CONSTRAINED, "constraint.epsilon=0.15"),
        variant("lr_3e-4", *CONSTRAINED, "training.lr=3e-4"),
        variant("lr_3e-3", *CONSTRAINED, "training.lr=3e-3"),
    ],
    "long": [
        long("long_constrained", *CONSTRAINED),
        long("long_standard", *STANDARD),
    ],
    "inference": [
        long("long_objective", *CONSTRAINED, "constraint=objective"),
        # whose answer takes 0.6 of the multiplications
        long(
            "long_objective_tied",
            *CONSTRAINED,
            "constraint=objective",
            "constraint.epsilon=0.15",
            "network.tied=true",
        ),
    ],
    "samples": [with_samples(count) for count in (500, 1000, 2000, 4000)],
    "paper_methods": methods(
        [*CONSTRAINED, "experiment=paper_lista"],
        [*STANDARD, "experiment=paper_lista", "training.lr=1e-6"],
    ),
}
TINY = ["data.size=8", "data.num_train=300", "data.num_val=100", "data.num_test=100"]
TINY += ["problem.learner.passes=1", "network.num_layers=3", "training.epochs=3"]
SCALES = {
    "smoke": Scale(
        ["methods"], [0], 0.2, "2 cores", TINY, dict.fromkeys(PERTURBATIONS, "[0,0.5]")
    ),
    "small": Scale(["methods"], [0, 1, 2], 3, "2 cores"),
    # 315,000 steps a run, of 11.5 ms on an H200, 19 ms with noise between layers (measured over a few),
    # and what follows the training; a whole run was not made
    "paper": Scale(["paper_methods"], [0], 80, "an H200", alone=True),
}  # fmt: skip


def figures(folder: Path) -> dict[str, Any]:
    """What the table needs of one run."""
    summary, metrics = read(folder, "summary.json"), read(folder, "eval/metrics.json")
    levels = {
        f"{perturbation}_{row['level']:g}": row["final_distance"]
        for perturbation in PERTURBATIONS
        if (folder / f"perturb/{perturbation}.json").exists()
        for row in read(folder, f"perturb/{perturbation}.json")["levels"]
    }
    return {
        **origin(folder),
        "feasible": summary["feasible"],
        "worst_slack": max(summary["slack"][metrics["first_layer"] - 1 :]),
        "violated_layers": sum(s > 0 for s in summary["slack"][metrics["first_layer"] - 1 :]),
        "final_distance": summary["final_distance"],
        "distances": [row["distance"]["mean"] for row in metrics["layers"]],
        "fista_iterations": metrics["baselines"]["fista"]["iterations_to_final_distance"],
        "inference": read(folder, "eval/cost.json")["rows"][-1],
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


def table(found: Found, names: list[str]) -> str:
    """Markdown, a row a study of ``names``: means over the seeds, in brackets the largest ratio of a
    seed's distance to that of the standard network of the same seed and budget."""
    header = ["network", "seeds", "feasible", "worst slack", "violated layers", *COLUMNS.values()]
    header += ["FISTA iterations to the final distance"]
    lines = [header]
    for name in names:
        runs = found[name]
        peers = found.get("long_standard" if name.startswith("long") else "standard", {})
        rows = list(runs.values())
        cells = [name.replace("_", " "), str(len(rows))]
        cells += [f"{sum(row['feasible'] for row in rows)} of {len(rows)}"]
        cells += [f"{max(row['worst_slack'] for row in rows):+.3f}"]
        cells += [f"{mean(row['violated_layers'] for row in rows):.3g}"]
        for column in COLUMNS:
            ratios = [
                row[column] / peers[seed][column] for seed, row in runs.items() if seed in peers
            ]
            bracket = "" if "standard" in name or not ratios else f" ({max(ratios):.2f})"
            cells.append(f"{mean(row[column] for row in rows):.2f}{bracket}")
        counts = [row["fista_iterations"] for row in rows if row["fista_iterations"] is not None]
        cells.append(f"{mean(counts):.0f}" if counts else "-")
        lines.append(cells)
    return markdown(lines)


def inference_table(found: Found, names: list[str]) -> str:
    """Markdown, a row a study of ``names``, means over the seeds: FISTA's iterations and time, as a
    multiple of the network's, to the network's final distance and objective."""
    header = ["network", "seeds", "final distance", "objective gap", "ms for 1,000 problems"]
    for goal in ("distance", "objective"):
        header += [f"FISTA iterations to the {goal}", f"times as long to the {goal}"]
    lines = [header]
    for name in names:
        rows = list(found[name].values())
        cells = [name.replace("_", " "), str(len(rows))]
        cells += [
            f"{mean(row[key] for row in rows):.3f}" for key in ("final_distance", "objective_gap")
        ]
        cells += [f"{1e3 * mean(row['inference']['seconds'] for row in rows):.0f}"]
        for goal in ("distance", "objective"):
            costs = [row["inference"]["solvers"]["fista"][f"to_{goal}"] for row in rows]
            if None in costs:  # not reached
                cells += ["-", "-"]
                continue
            ratios = [cost["seconds"] / row["inference"]["seconds"]
                      for cost, row in zip(costs, rows, strict=True)]  # fmt: skip
            cells += [f"{mean(cost['iterations'] for cost in costs):.0f}", f"{mean(ratios):.1f}"]
        lines.append(cells)
    return markdown(lines)


def picture(found: Found, path: Path) -> None:
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


def samples_table(found: dict[str, dict[int, Path]]) -> str:
    """Markdown, a row a number of training samples: zeta and the recursion's bound, means over the
    seeds."""
    lines = [["training samples", "seeds", "zeta", "slack on the training split", "gradient norm after "
              "the last layer", "its bound", "holds at every layer"]]  # fmt: skip
    for name in sorted(found, key=lambda name: int(name.split("_")[1])):
        rows = [read(folder, "eval/metrics.json")["theory"] for folder in found[name].values()]
        lines.append(
            [
                name.split("_")[1],
                str(len(rows)),
                f"{mean(row['zeta'] for row in rows):.4f}",
                f"{max(row['train_slack'] for row in rows):+.4f}",
                f"{mean(row['measured'][-1] for row in rows):.3f}",
                f"{mean(row['bound'][-1] for row in rows):.3f}",
                f"{sum(all(row['holds']) for row in rows)} of {len(rows)}",
            ]
        )
    return markdown(lines)


def main() -> None:
    suite = Suite("sparse_coding", PARTS, SCALES, __doc__ or "")
    suite.run()
    suite.report("sparse_coding", suite.scale.parts)
    if suite.options.scale != "small":
        return
    folders = suite.finished([part for part in PARTS if part != "paper_methods"])
    counts = {name: runs for name, runs in folders.items() if name.startswith("samples")}
    if "gradient" in folders:
        counts["samples_8000"] = folders["gradient"]
    found = {
        name: {seed: figures(folder) for seed, folder in runs.items()}
        for name, runs in folders.items()
        if name not in counts
    }
    tables = {
        "lista": (["methods"], table),
        "settings": (["settings", "long"], table),
        "inference": (["methods", "long", "inference"], inference_table),
    }
    for title, (parts, write) in tables.items():
        names = [study.name for part in parts for study in PARTS[part] if study.name in found]
        if names:
            suite.write(title, {name: found[name] for name in names}, write(found, names))
    if len(counts) > 1:
        theories = {
            name: {
                seed: {**origin(folder), "theory": read(folder, "eval/metrics.json")["theory"]}
                for seed, folder in runs.items()
            }
            for name, runs in counts.items()
        }
        suite.write("samples", theories, samples_table(counts))
    if {"constrained", "standard"} <= set(found):
        picture(found, suite.results / "lista.png")


if __name__ == "__main__":
    run_script(main)
