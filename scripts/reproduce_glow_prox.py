"""Every figure of the README's inpainting tables: trains, perturbs, evaluates, and writes the tables.

    python scripts/reproduce_glow_prox.py [--jobs 2] [--only base] [--seeds 0 1 2]

Calls the `sdunroll` commands that it prints, into outputs/glow_prox/; what is done there is not done
again. Writes outputs/reference/glow_prox.md, glow_prox.json, glow_prox.png and
glow_prox_faces.png.
"""

import shutil
from pathlib import Path
from statistics import mean
from typing import Any

from studies import REFERENCE, Study, finished, make_all, markdown, origin, read, write

RUNS = Path("outputs/glow_prox")
CONSTRAINED = ["problem=glow_prox", "constrained=true"]
STANDARD = ["problem=glow_prox", "constrained=false"]
NOISE = {"layer_noise_fading": "[0,0.5,1,2,4]"}
ALL = {
    **NOISE,
    "input_noise_normalised": "[0,0.5,1,2,4]",
    "input_noise_ramp": "[0,0.05,0.1,0.2]",
    "mask_moved": "[0,1,2,4]",
    "mask_size": "[8,10,12,14,16]",
}
# the same gradients by plain autograd: faster where memory is no matter
PLAIN = ["network.proximal.reversible=false"]
ROBUST = ["experiment=robust_inpainting", *PLAIN]
MASKS = ["operator.mask=random_box", "operator.size=[8,16]", *PLAIN]
PHOTOS = [*PLAIN, "data=photos", "data.color=true", "data.size=32", "data.num_train=4000"]
PHOTOS += ["data.num_val=200", "data.num_test=500"]


def lever(name: str, *overrides: str) -> Study:
    """A constrained network with one setting changed, one seed."""
    return Study(name, [*CONSTRAINED, *PLAIN, *overrides], NOISE, seeds=[0])


PARTS = {
    "base": [Study("constrained", CONSTRAINED, ALL), Study("standard", STANDARD, ALL)],
    "robust": [
        Study("noise_constrained", [*ROBUST, "constrained=true"], ALL),
        Study("noise_standard", [*ROBUST, "constrained=false"], ALL),
    ],
    "masks": [
        Study("masks_constrained", [*CONSTRAINED, *MASKS], ALL),
        Study("masks_standard", [*STANDARD, *MASKS], ALL),
    ],
    "cnn": [
        Study("cnn_constrained", [*CONSTRAINED, "network=prox_cnn"], ALL),
        Study("cnn_standard", [*STANDARD, "network=prox_cnn"], ALL),
    ],
    "photos": [
        Study("photos_constrained", [*CONSTRAINED, *PHOTOS], NOISE, seeds=[0]),
        Study(
            "photos_harmonic",
            [
                *CONSTRAINED,
                *PHOTOS,
                "network.start=harmonic",
                "constraint.epsilon=0.01",
                "constraint.margin=0",
            ],
            NOISE,
            seeds=[0],
        ),
    ],
    "levers": [
        lever("eps_0.1", "constraint.epsilon=0.1"),
        lever("eps_0.4", "constraint.epsilon=0.4", "constraint.margin=0.02"),
        lever("noise_1", "training.noise_level=1"),
        lever("depth_2", "network.proximal.depth=2"),
        lever("objective", "constraint=objective_value", "constraint.epsilon=0.1"),
        lever(
            "gradients",
            "constraint=split_gradient",
            "constraint.epsilon=0.1",
            "constraint.first_layer=2",
        ),
    ],
}
SHOWN = {
    "layer_noise_fading": (2, 4),
    "input_noise_normalised": (1, 4),
    "input_noise_ramp": (0.1, 0.2),
    "mask_moved": (1, 2, 4),
    "mask_size": (10, 14),
}


def figures(folder: Path) -> dict[str, Any]:
    """What the tables need of one run."""
    summary, metrics = read(folder, "summary.json"), read(folder, "eval/metrics.json")
    levels = {
        path.stem: {
            f"{row['level']:g}": {"hole_psnr": row["hole_psnr"], "ci95": row["ci95"]["hole_psnr"]}
            for row in read(folder, f"perturb/{path.name}")["levels"]
        }
        for path in (folder / "perturb").glob("*.json")
    }
    layers = metrics["layers"]
    return {
        **origin(folder),
        "notice": metrics["notice"],
        "feasible": summary["feasible"],
        "worst_slack": max(summary["slack"]),
        "violated_layers": sum(slack > 0 for slack in summary["slack"]),
        "health": metrics["health"],
        "distances": [row["distance"]["mean"] for row in layers],
        "psnr": [row["psnr"]["mean"] for row in layers],
        "hole_psnr": [row["hole_psnr"]["mean"] for row in layers],
        "hole_psnr_ci95": layers[-1]["hole_psnr"]["ci95"],
        "hole_ssim": layers[-1]["hole_ssim"]["mean"],
        "baselines": {name: row["hole_psnr"]["mean"] for name, row in metrics["baselines"].items()},
        "levels": levels,
    }


def table(found: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Markdown, a row a setting, means over the seeds."""
    header = ["network", "seeds", "feasible", "worst slack", "PSNR after each layer"]
    header += ["PSNR in the hole after each layer", "biharmonic", "harmonic fill"]
    titles = {name: name.replace("_", " ").replace(" fading", "") for name in SHOWN}
    header += [f"{titles[name]} {level:g}" for name, levels in SHOWN.items() for level in levels]
    lines = [header]
    for name, runs in found.items():
        rows = list(runs.values())

        def each_layer(key: str, rows: list[dict[str, Any]] = rows) -> str:
            columns = zip(*(row[key] for row in rows), strict=True)
            return " ".join(f"{mean(column):.2f}" for column in columns)

        cells = [name.replace("_", " "), str(len(rows))]
        cells += [f"{sum(row['feasible'] for row in rows)} of {len(rows)}"]
        cells += [f"{max(row['worst_slack'] for row in rows):+.3f}"]
        cells += [each_layer("psnr"), each_layer("hole_psnr")]
        for peer in ("biharmonic", "harmonic fill"):
            cells.append(f"{mean(row['baselines'][peer] for row in rows):.2f}")
        for perturbation, levels in SHOWN.items():
            for level in levels:
                values = [row["levels"].get(perturbation, {}).get(f"{level:g}") for row in rows]
                known = [value["hole_psnr"] for value in values if value]
                cells.append(f"{mean(known):.2f}" if known else "")
        lines.append(cells)
    return markdown(lines)


def picture(found: dict[str, dict[int, dict[str, Any]]], path: Path) -> None:
    """PSNR after each layer, and in the hole under layer noise: means and ranges over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    figure.suptitle("synthetic faces, drawn by formula", fontsize=8, x=0.01, ha="left")
    left, right = figure.subplots(1, 2)
    styles = {
        "constrained": ("C0", "-o"),
        "standard": ("C1", "--s"),
        "noise_constrained": ("C2", "-^"),
        "noise_standard": ("C3", ":v"),
    }
    for name, (color, line) in styles.items():
        runs = list(found.get(name, {}).values())
        if not runs:
            continue
        noise = list(runs[0]["levels"]["layer_noise_fading"])
        curves = [
            (left, [run["psnr"] for run in runs]),
            (right, [[run["levels"]["layer_noise_fading"][level]["hole_psnr"] for level in noise]
                     for run in runs]),
        ]  # fmt: skip
        for axes, rows in curves[1:] if name.startswith("noise") else curves:
            middle = [mean(values) for values in zip(*rows, strict=True)]
            low, high = (list(map(pick, zip(*rows, strict=True))) for pick in (min, max))
            label = name.replace("noise_", "") + (", noise in training" * name.startswith("noise"))
            axes.plot(range(len(middle)), middle, line, color=color, ms=4, label=label)
            axes.fill_between(range(len(middle)), low, high, color=color, alpha=0.25, lw=0)
    left.set(xlabel="layer", title="PSNR of the whole picture (dB)")
    left.set_xticks(range(len(next(iter(found["standard"].values()))["psnr"])))
    right.set(xlabel="norm of the noise after layer 1", title="PSNR in the hole (dB)")
    right.set_xticks(range(5), ["0", "0.5", "1", "2", "4"])
    for axes in (left, right):
        axes.legend(fontsize=8)
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
    write("glow_prox", found, table(found))
    if {"constrained", "standard"} <= set(found):
        picture(found, REFERENCE / "glow_prox.png")
        first = next(iter(finished(RUNS, PARTS["base"][0]).values()))
        shown = first / "eval" / "figures" / "reconstructions.png"
        shutil.copy(shown, REFERENCE / "glow_prox_faces.png")


if __name__ == "__main__":
    main()
