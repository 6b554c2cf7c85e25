"""The inpainting experiments of the paper: trains, perturbs, evaluates, and writes the tables.

    scripts/reproduce_inpainting.sh [--scale smoke|small|paper] [--status] [--jobs 2] [--only PART]

smoke tries everything out in minutes; small is the README's tables, on synthetic faces, with three
seeds; paper is the released configuration on a folder of CelebA-HQ pictures, named by the variable
CELEBA_HQ, for one GPU. Calls the `sdunroll` commands that it prints, into outputs/inpainting/SCALE/;
what is done there is not done again. small writes outputs/reference/, the others
outputs/inpainting/SCALE/report/.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from commands import run_script
from results import markdown, origin, read
from studies import Scale, Study, Suite

Run = dict[str, Any]
Found = dict[str, dict[int, Run]]

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
# with more of the noise that tells constrained and standard CNN apart
RAMP = ALL | {"input_noise_ramp": "[0,0.05,0.1,0.2,0.3,0.4]"}
# the same gradients by plain autograd: faster where memory is no matter
PLAIN = ["network.proximal.reversible=false"]
ROBUST = ["experiment=robust_inpainting", *PLAIN]
MOVED = ["experiment=robust_masks", *PLAIN]
# which leave less to gain than one hole does
MASKS = ["operator.mask=random_box", "operator.size=[8,16]", *PLAIN]
MASKS += ["constraint.margin=0.12"]
PHOTOS = [*PLAIN, "data=photos", "data.color=true", "data.size=32", "data.num_train=4000"]
PHOTOS += ["data.num_val=200", "data.num_test=500"]

# as the flow was before its shifts had a bound, and the first layer's eps
UNBOUNDED = ["network.proximal.shift_bound=null", "constraint.epsilon=[0.45,0.3]"]


def lever(name: str, *overrides: str) -> Study:
    """The constrained network of unbounded shifts with one setting changed, one seed."""
    return Study(name, [*CONSTRAINED, *PLAIN, *UNBOUNDED, *overrides], NOISE, seeds=[0])


PARTS = {
    "base": [Study("constrained", CONSTRAINED, ALL), Study("standard", STANDARD, ALL)],
    "robust": [
        Study("noise_constrained", [*ROBUST, "constrained=true"], ALL),
        Study("noise_standard", [*ROBUST, "constrained=false"], ALL),
    ],
    "moved": [
        Study("moved_constrained", [*MOVED, "constrained=true"], ALL),
        Study("moved_standard", [*MOVED, "constrained=false"], ALL),
    ],
    "masks": [
        Study("masks_constrained", [*CONSTRAINED, *MASKS], ALL),
        Study("masks_standard", [*STANDARD, *MASKS], ALL),
    ],
    "cnn": [
        Study(f"cnn_{method}", [*given, "experiment=robust_cnn"], RAMP)
        for method, given in (("constrained", CONSTRAINED), ("standard", STANDARD))
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
        Study("unbounded_constrained", [*CONSTRAINED, *UNBOUNDED], ALL),
        Study("unbounded_standard", [*STANDARD, *UNBOUNDED], ALL),
        lever("eps_0.1", "constraint.epsilon=0.1", "constraint.margin=0.12"),
        lever("eps_0.3", "constraint.epsilon=0.3", "constraint.margin=0.12"),
        lever("eps_0.4", "constraint.epsilon=0.4", "constraint.margin=0.02"),
        lever("noise_1", "training.noise_level=1"),
        lever("depth_2", "network.proximal.depth=2"),
        lever("objective", "constraint=objective_value", "constraint.epsilon=0.1"),
        lever(
            "gradients",
            "constraint=split_gradient",
            "constraint.epsilon=0.1",
        ),
    ],
}
PARTS["methods"] = [
    *PARTS["base"],
    *PARTS["robust"],
    Study("layerwise", [*STANDARD, "training=layerwise", "training.epochs=4"], ALL),
    Study("incremental", [*STANDARD, "training=incremental", "training.epochs=4"], ALL),
]
PARTS["paper"] = [
    Study(
        name,
        [*given, "experiment=paper_glow_prox", f"data.root={os.environ.get('CELEBA_HQ')}"],
        ALL,
    )
    for name, given in (("paper_constrained", CONSTRAINED), ("paper_standard", STANDARD))
]
TINY = [
    "data.size=16",
    "data.num_train=64",
    "data.num_val=16",
    "data.num_test=16",
    "operator.size=6",
]
TINY += ["network.proximal.depth=1", "network.proximal.width=8", "training.epochs=4"]
SCALES = {
    "smoke": Scale(
        ["methods"], [0], 0.3, "2 cores", TINY,
        dict.fromkeys(ALL, "[0,1]") | {"mask_size": "[6,8]"},
    ),
    "small": Scale(["base", "robust"], [0, 1, 2], 12, "2 cores"),
    # 120,000 steps a run: 40 epochs of 24,000 pictures; a step took 7.8 s on an H200 when it had twice as
    # many operations, and to start those takes the time, so 4.1 s now: by arithmetic, not measured
    "paper": Scale(["paper"], [0], 8200, "an H200", alone=True),
}  # fmt: skip
SHOWN = {
    "layer_noise_fading": (2, 4),
    "input_noise_normalised": (1, 4),
    "input_noise_ramp": (0.1, 0.2, 0.3),
    "mask_moved": (1, 2, 4),
    "mask_size": (10, 14),
}


def figures(folder: Path) -> Run:
    """What the tables need of one run."""
    summary, metrics = read(folder, "summary.json"), read(folder, "eval/metrics.json")
    layers = metrics["layers"]
    levels = {
        path.stem: {
            f"{row['level']:g}": {"hole_psnr": row["hole_psnr"], "ci95": row["ci95"]["hole_psnr"]}
            for row in read(folder, f"perturb/{path.name}")["levels"]
        }
        for path in (folder / "perturb").glob("*.json")
    }
    return {
        **origin(folder),
        "notice": metrics["notice"],
        "feasible": summary["feasible"],
        "worst_slack": max(row["slack"]["mean"] for row in layers[metrics["first_layer"] :]),
        "health": metrics["health"],
        "distances": [row["distance"]["mean"] for row in layers],
        "psnr": [row["psnr"]["mean"] for row in layers],
        "hole_psnr": [row["hole_psnr"]["mean"] for row in layers],
        "hole_psnr_ci95": layers[-1]["hole_psnr"]["ci95"],
        "hole_ssim": layers[-1]["hole_ssim"]["mean"],
        "baselines": {name: row["hole_psnr"]["mean"] for name, row in metrics["baselines"].items()},
        "levels": levels,
    }


def quality_table(found: Found) -> str:
    """Markdown, a row a setting, means over the seeds: descent and PSNR after each layer."""
    header = ["network", "seeds", "feasible", "worst slack", "PSNR after each layer"]
    header += ["PSNR in the hole after each layer", "biharmonic", "harmonic fill"]
    lines = [header]
    for name, runs in found.items():
        rows = list(runs.values())
        cells = [name.replace("_", " "), str(len(rows))]
        cells += [f"{sum(row['feasible'] for row in rows)} of {len(rows)}"]
        cells += [f"{max(row['worst_slack'] for row in rows):+.3f}"]
        for key in ("psnr", "hole_psnr"):
            columns = zip(*(row[key] for row in rows), strict=True)
            cells.append(" ".join(f"{mean(column):.2f}" for column in columns))
        for peer in ("biharmonic", "harmonic fill"):
            cells.append(f"{mean(row['baselines'][peer] for row in rows):.2f}")
        lines.append(cells)
    return markdown(lines)


def robustness_table(found: Found) -> str:
    """Markdown, a row a setting: PSNR in the hole at the levels of each perturbation, means over the
    seeds; in brackets the mean difference to the standard network of the same setting and seed."""
    columns = [(name, f"{level:g}") for name, levels in SHOWN.items() for level in levels]
    titles = [f"{name.replace('_', ' ').replace(' fading', '')} {level}" for name, level in columns]
    lines = [["network", "undisturbed", *titles]]
    for name, runs in found.items():
        peers = found.get(name.replace("constrained", "standard"), {}) if "constr" in name else {}
        cells = [name.replace("_", " "), _mean_of(runs, peers, lambda run: run["hole_psnr"][-1])]
        for perturbation, level in columns:
            known = {
                seed: run
                for seed, run in runs.items()
                if level in run["levels"].get(perturbation, {})
            }

            def value(run: Run, key: str = perturbation, level: str = level) -> float:
                return run["levels"][key][level]["hole_psnr"]

            cells.append(_mean_of(known, peers, value) if known else "")
        lines.append(cells)
    return markdown(lines)


def _mean_of(runs: dict[int, Run], peers: dict[int, Run], value: Callable[[Run], float]) -> str:
    """The mean over the seeds and, in brackets, that of the differences to the peers."""
    text = f"{mean(value(run) for run in runs.values()):.2f}"
    gains = [value(run) - value(peers[seed]) for seed, run in runs.items() if seed in peers]
    return f"{text} ({mean(gains):+.2f})" if gains else text


def picture(found: Found, path: Path) -> None:
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
    suite = Suite("inpainting", PARTS, SCALES, __doc__ or "")
    if suite.options.scale == "paper" and "CELEBA_HQ" not in os.environ:
        raise SystemExit("CELEBA_HQ: expected a folder of pictures in this variable, found none")
    suite.run()
    suite.report("inpainting", suite.scale.parts)
    if suite.options.scale != "small":
        return
    folders = suite.finished([part for part in PARTS if part != "paper"])
    found = {
        name: {seed: figures(folder) for seed, folder in runs.items()}
        for name, runs in folders.items()
    }
    suite.write("glow_prox", found, f"{quality_table(found)}\n\n{robustness_table(found)}")
    if {"constrained", "standard"} <= set(found):
        picture(found, suite.results / "glow_prox.png")
        first = next(iter(folders["constrained"].values()))
        shown = first / "eval" / "figures" / "reconstructions.png"
        shutil.copy(shown, suite.results / "glow_prox_faces.png")


if __name__ == "__main__":
    run_script(main)
