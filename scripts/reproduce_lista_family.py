"""The LISTA family on the standard benchmark: trains, perturbs, evaluates, and writes table and figure.

    scripts/reproduce_lista_family.sh [--scale smoke|small|full] [--status] [--jobs 2] [--only PART]

smoke tries everything out in minutes; small is the README's table, a part of the training that the
published figures took; full has as many steps as they did. Calls the `sdunroll` commands that it prints,
into outputs/lista_family/SCALE/; what is done there is not done again. small writes outputs/reference/,
the others outputs/lista_family/SCALE/report/.

Parts: noiseless, the networks without noise; snr_40, snr_30, snr_20, with noise of so many dB; each with
and without descending constraints.
"""

from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from commands import run_script
from results import markdown, origin, read
from studies import Scale, Study, Suite

Found = dict[str, dict[int, dict[str, Any]]]

LISTA = ["network.num_layers=16", "network.start=zero", "network.init=analytic"]

# the networks, their title and what they need beside their name
NETWORKS: dict[str, tuple[str, list[str]]] = {
    "lista": ("LISTA", LISTA),
    "lista_tied": ("LISTA, tied", [*LISTA, "network.tied=true"]),
    "lista_cp": ("LISTA-CP", []),
    "lista_cpss": ("LISTA-CPSS", []),
    "tilista": ("TiLISTA+ss", []),
    "alista": ("ALISTA+ss", []),
    # whose limit is the LASSO's solution, with alpha 0.2 at -11.8 dB
    "step_lista": ("Step-LISTA, alpha 0.1", ["problem.alpha=0.1"]),
    "gated_lista": ("Gated LISTA", []),
    "hyper_lista": ("HyperLISTA", []),
    "lamp": ("LAMP", []),
    "lfista": ("LFISTA", []),
}  # fmt: skip

# NMSE in dB after 16 layers without noise, read off figures to about 1 dB: those of the benchmark of
# Chen et al., "Learning to Optimize: A Primer and A Benchmark", https://arxiv.org/abs/2103.12828
# (m 256, n 512), and of a reproduction with m 250, n 500
PUBLISHED: dict[str, tuple[float | None, float | None]] = {
    "lista": (-35, -36),
    "lista_cp": (-30, -34.5),
    "lista_cpss": (-63, -61),
    "tilista": (None, -68),
    "alista": (-78, -70),
    "lamp": (-55, -49),
    "lfista": (-29, -38),
    "gated_lista": (-55, -27),
}
SHIFTS = {
    "snr": "[20,30,40]",
    "sparsity": "[0.1,0.12,0.15]",
    "dictionary": "[0,0.01,0.03]",
    "coefficients": "[0,1,2]",
}


def asked(epsilon: str, margin: str) -> list[str]:
    """Overrides of the descent that is asked for, and of its margin in training."""
    return [f"constraint.epsilon={epsilon}", f"constraint.margin={margin}"]


# In noise the last layers have little left to gain, and HyperLISTA's selection is not learned; these
# numbers were looked up on the validation split
IN_NOISE = {
    ("snr_40", "tilista"): ["dual=pi", *asked("5e-4", "5e-4")],
    ("snr_30", "gated_lista"): asked("5e-4", "1e-3"),
    ("snr_30", "hyper_lista"): ["network.selection=12", *asked("5e-4", "1.5e-3")],
    ("snr_20", "hyper_lista"): ["network.selection=16", *asked("5e-4", "1.5e-3")],
}
# where the constraint costs most
THREE_SEEDS = [("snr_40", "tilista"), ("snr_30", "gated_lista")]


def family(part: str, *overrides: str) -> list[Study]:
    """All networks, constrained and standard."""
    return [
        Study(
            f"{part}_{name}_{method}",
            ["problem=synthetic", f"network={name.removesuffix('_tied')}", *own,
             *IN_NOISE.get((part, name), []), *overrides,
             f"constrained={str(method == 'constrained').lower()}"],
            SHIFTS,
            seeds=None if (part, name) in THREE_SEEDS else [0],
        )
        for name, (_, own) in NETWORKS.items()
        for method in ("constrained", "standard")
    ]  # fmt: skip


PARTS = {
    "noiseless": family("noiseless"),
    **{f"snr_{level}": family(f"snr_{level}", f"problem.snr_db={level}") for level in (40, 30, 20)},
}
TINY = ["problem.num_features=25", "data.num_atoms=50", "data.num_train=64", "data.num_val=32"]
TINY += ["data.num_test=32", "training.batch_size=32", "training.epochs=48"]
SCALES = {
    "smoke": Scale(["noiseless"], [0], 0.3, "2 cores", TINY, dict.fromkeys(SHIFTS, "[0.1,1]")),
    "small": Scale(["noiseless"], [0, 1, 2], 8, "2 cores", ["data.num_train=3200", "data.num_test=2000"]),
    # 480,000 steps a run; by arithmetic from 0.02 to 0.06 s a step, not measured
    "full": Scale([*PARTS], [0], 300, "2 cores",
                  ["training.epochs=480", "data.num_train=64000", "training.lr=5e-4"]),
}  # fmt: skip


def figures(folder: Path) -> dict[str, Any]:
    """What the table needs of one run."""
    summary, metrics = read(folder, "summary.json"), read(folder, "eval/metrics.json")
    shifted = {
        f"{name}_{row['level']:g}": row["nmse_db"]
        for name in SHIFTS
        for row in read(folder, f"perturb/{name}.json")["levels"]
    }
    layers = metrics["layers"]
    return {
        **origin(folder),
        "feasible": summary["feasible"],
        "worst_slack": summary["worst_slack"],
        "falls": [after["measured"]["mean"] < before["measured"]["mean"]
                  for before, after in pairwise(layers)],
        "nmse_db": [row["nmse_db"]["mean"] for row in layers],
        "ci95": layers[-1]["nmse_db"]["ci95"],
        "sample_nmse_db": layers[-1]["sample_nmse_db"]["mean"],
        "recall": layers[-1]["recall"]["mean"],
        "false_positives": layers[-1]["false_positives"]["mean"],
        "classical": _classical(metrics["baselines"]),
        **shifted,
    }  # fmt: skip


def _classical(baselines: dict[str, dict[str, Any]]) -> dict[str, float]:
    """NMSE of the classical solvers after as many iterations as layers, and after many."""
    found = {name: row["nmse_db"]["mean"] for name, row in baselines.items()}
    for name, row in baselines.items():
        if "converged" in row:
            end = row["converged"]
            found[f"{name}, {end['iterations']:,} iterations"] = end["nmse_db"]["mean"]
    return found


COLUMNS = {
    "sparsity_0.12": "p 0.12",
    "sparsity_0.15": "p 0.15",
    "snr_30": "30 dB",
    "snr_20": "20 dB",
    "dictionary_0.01": "dictionary 0.01",
    "coefficients_0": "signs",
    "coefficients_2": "heavy tails",
}


def table(found: Found, part: str) -> str:
    """Markdown, a row a network and method, then the classical solvers: NMSE in dB, means over the
    seeds, in brackets the difference to the standard network."""
    header = ["network", "method", "NMSE", "mean of samples", "layers that descend", "feasible"]
    header += COLUMNS.values()
    if part == "noiseless":
        header.append("published")
    lines = [header]
    classical: dict[str, float] = {}
    for name, (title, _) in NETWORKS.items():
        for method in ("constrained", "standard"):
            runs = found.get(f"{part}_{name}_{method}")
            if not runs:
                continue
            peer = found.get(f"{part}_{name}_standard", {}) if method == "constrained" else {}
            rows = list(runs.values())
            classical = rows[0]["classical"]
            final = {seed: run["nmse_db"][-1] for seed, run in runs.items()}
            known = {seed: run["nmse_db"][-1] for seed, run in peer.items()}
            cells = [title, method, _with_difference(final, known)]
            cells += [f"{mean(row['sample_nmse_db'] for row in rows):.1f}"]
            falling = mean(sum(row["falls"]) for row in rows)
            cells += [f"{falling:g} of {len(rows[0]['falls'])}"]
            cells += [f"{sum(row['feasible'] for row in rows)} of {len(rows)}"]
            for column in COLUMNS:
                ours, theirs = (
                    {seed: run[column] for seed, run in some.items() if column in run}
                    for some in (runs, peer)
                )
                cells.append(_with_difference(ours, theirs) if ours else "")
            if part == "noiseless":
                shown = PUBLISHED.get(name, (None, None))
                cells.append(" / ".join("-" if value is None else f"{value:g}" for value in shown))
            lines.append(cells)
    lines += [
        [solver, "classical", f"{value:.1f}", *[""] * (len(header) - 3)]
        for solver, value in classical.items()
    ]
    return markdown(lines)


def _with_difference(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """The mean, and the mean difference to the same seeds of the other method."""
    text = f"{mean(ours.values()):.1f}"
    both = ours.keys() & theirs.keys()
    if both:
        text += f" ({mean(ours[seed] - theirs[seed] for seed in both):+.1f})"
    return text


def picture(found: Found, part: str, path: Path) -> None:
    """NMSE after each layer, one curve a network, without constraints and with them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    lines, markers = ("-", "--", "-.", ":"), "osD^vP*Xh<>"
    for axes, method in zip(panels, ("standard", "constrained"), strict=True):
        for place, (name, (title, _)) in enumerate(NETWORKS.items()):
            runs = found.get(f"{part}_{name}_{method}", {}).values()
            if not runs:
                continue
            middle = [
                mean(values) for values in zip(*(run["nmse_db"] for run in runs), strict=True)
            ]
            axes.plot(middle, lines[place % 4], marker=markers[place], ms=3, lw=1, label=title)
        axes.set(title=method, xlabel="layer")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("NMSE (dB), ratio of means")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=110)


def main() -> None:
    suite = Suite("lista_family", PARTS, SCALES, __doc__ or "")
    suite.run()
    found = {
        name: {seed: figures(folder) for seed, folder in runs.items()}
        for name, runs in suite.finished([*PARTS]).items()
    }
    for part in PARTS:
        if not any(name.startswith(f"{part}_") for name in found):
            continue
        ending = "" if part == "noiseless" else f"_{part}"
        own = {name: runs for name, runs in found.items() if name.startswith(f"{part}_")}
        suite.write(f"lista_family{ending}", own, table(own, part))
        picture(own, part, suite.results / f"lista_family{ending}.png")
        suite.report(f"lista_family{ending}", [part])


if __name__ == "__main__":
    run_script(main)
