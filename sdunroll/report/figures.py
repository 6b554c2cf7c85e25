"""Pictures of saved results, as PNG; legible in grey."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from sdunroll.cache import write_atomically

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
}
PANELS = {
    "distance": "distance to the optimum",
    "objective_gap": "objective gap",
    "gradient_norm": "gradient norm",
}
IMAGE_PANELS = {
    "distance": "distance to the clean picture",
    "psnr": "PSNR, whole picture (dB)",
    "hole_psnr": "PSNR in the hole (dB)",
    "ssim": "SSIM",
}
RECOVERY_PANELS = {
    "distance": "distance to the true code",
    "nmse_db": "NMSE, ratio of means (dB)",
    "sample_nmse_db": "NMSE, mean of samples (dB)",
}
MEASURED = {
    "distance": "distance",
    "gradient": "gradient_norm",
    "objective": "objective_gap",
}


@contextmanager
def _figure(path: Path, width: float, height: float, notice: str | None = None) -> Iterator[Figure]:
    """A figure in the house style that is saved to ``path`` in the end, whole or not at all.

    Args:
        notice: what must be said of the data, written above all.
    """
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Data has no positive values")  # all may be 0, as y* may
        figure = Figure(figsize=(width, height))  # no pyplot, no global state
        if notice:
            figure.suptitle(notice, fontsize=8, x=0.01, ha="left")
        yield figure
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, lambda target: figure.savefig(target, format="png"))


class _Numbers(LogLocator):
    """Places for the numbers of a log axis: 1, 2 and 5 times the decades, of many decades themselves
    alone; even distances where it spans less than two of these."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        self.set_params(subs=(1.0, 2.0, 5.0) if vmax < 1e4 * vmin else (1.0,))
        return super().tick_values(vmin, vmax)


def log_axis(axes: Any) -> None:
    """A log axis with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(_Numbers())
    # where nothing is above 0, so are the places of the numbers
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if value > 0 else "")
    )
    axes.yaxis.set_minor_formatter(NullFormatter())


def per_layer(metrics: dict[str, Any], folder: Path) -> None:
    """Distance, objective gap and gradient norm over the layers, ``per_layer.png``; for pictures
    distance, PSNR of the whole and of the hole, or SSIM where there is no hole; for recovered codes
    distance and NMSE in both definitions.

    Log axis but for PSNR, SSIM and NMSE; the band is one standard deviation over the instances; the dashed
    line falls from y_0 as the constraint demands; marks at the right are classical solvers, after as
    many iterations.
    """
    layers = [row["layer"] for row in metrics["layers"]]
    kinds = (("psnr", IMAGE_PANELS), ("nmse_db", RECOVERY_PANELS), ("distance", PANELS))
    panels = next(panels for name, panels in kinds if name in metrics["layers"][0])
    shown = [name for name in panels if name in metrics["layers"][0]][:3]
    with _figure(folder / "per_layer.png", 10, 3.2, metrics["notice"]) as figure:
        for axes, name in zip(figure.subplots(1, 3), shown, strict=True):
            mean = np.array([row[name]["mean"] for row in metrics["layers"]])
            std = np.array([row[name]["std"] for row in metrics["layers"]])
            logarithmic = name not in ("psnr", "hole_psnr", "ssim") and not name.endswith("_db")
            if logarithmic:
                log_axis(axes)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.plot(layers, mean, "-o", ms=3, color="C0", label="network, mean")
            least = mean.min(where=mean > 0, initial=mean.max())  # 0 has no place on a log axis
            floor = least / 10 if logarithmic else -np.inf
            low = np.maximum(mean - std, floor)
            axes.fill_between(layers, low, mean + std, color="C0", alpha=0.2, lw=0)
            if name == MEASURED.get(metrics["measure"]):
                first = metrics["first_layer"] - 1  # the state from which descent is demanded
                keep = 1 - np.broadcast_to(metrics["epsilon"], len(layers) - 1)[first:]
                demanded = mean[first] * np.concatenate([[1.0], np.cumprod(keep)])
                label = f"demanded, from $y_{first}$"
                axes.plot(layers[first:], demanded, "k--", lw=1, label=label)
            for marker, (solver, row) in zip("sD^v", metrics["baselines"].items(), strict=False):
                count = row["iterations"]
                label = solver if count is None else f"{solver.upper()}, {count} iterations"
                axes.plot(
                    [layers[-1]], [row[name]["mean"]], marker, color="C1", ms=5, mec="k", mew=0.5,
                    label=label,
                )  # fmt: skip
            if name.endswith("_db"):  # an oracle without noise is off the picture
                axes.set_ylim(bottom=mean.min() - 10)
            axes.set(title=panels[name], xlabel="layer")
            axes.legend(fontsize=7)


def training(history: Sequence[dict[str, float]], folder: Path, notice: str | None = None) -> None:
    """Multipliers and slacks over the epochs, a line a layer, ``training.png``."""
    if not history:
        return
    epochs = [row["epoch"] for row in history]
    labels = [name.removeprefix("slack_") for name in history[0] if name.startswith("slack_")]
    colors = matplotlib.colormaps["viridis"]
    with _figure(folder / "training.png", 10, 3.4, notice) as figure:
        panels = figure.subplots(1, 3)
        marker = ".-" if len(epochs) < 10 else "-"
        panels[0].plot(epochs, [row["train_loss"] for row in history], marker, label="training")
        panels[0].plot(
            epochs, [row["val_loss"] for row in history], f"{marker}-", label="validation"
        )
        panels[0].set(title="loss", xlabel="epoch")
        log_axis(panels[0])
        panels[0].legend(fontsize=7)
        for axes, name in zip(panels[1:], ("multiplier", "slack"), strict=True):
            for place, label in enumerate(labels):
                color = colors(place / max(len(labels) - 1, 1) * 0.9)
                values = [row[f"{name}_{label}"] for row in history]
                axes.plot(epochs, values, marker, lw=1, color=color, label=label)
            axes.set(title=f"{name}s, a line a layer", xlabel="epoch")
        for axes in panels:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if len(epochs) == 1:  # about which the locator finds no other whole number
                axes.set_xticks(epochs)
        panels[2].set_title("slacks in training, a line a layer")
        panels[2].axhline(0, color="k", ls="--", lw=1)
        panels[2].set_yscale("symlog", linthresh=0.1)
        panels[2].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        panels[2].legend(fontsize=6, title="layer", title_fontsize=6, ncols=2)


def guarantee(theory: dict[str, Any], folder: Path) -> None:
    """The gradient norm over the layers, the recursion's bound and the limit's, ``theory.png``."""
    layers = [theory["first_state"] + place for place in range(len(theory["measured"]))]
    with _figure(folder / "theory.png", 5, 3.4) as figure:
        axes = figure.subplots()
        log_axis(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.plot(layers, theory["measured"], "-o", ms=3, color="C0", label="measured, test split")
        axes.plot(layers, theory["bound"], "k--", lw=1, label="bound of the recursion")
        axes.axhline(theory["limit"], color="0.5", ls=":", lw=1, label="bound of the limit")
        axes.set(title="gradient norm", xlabel="layer")
        axes.legend(fontsize=7)


def l1_histograms(l1_norm: np.ndarray, target: np.ndarray, folder: Path) -> None:
    """Histograms of ||y_l||_1 beside the optimum's, ``l1_histograms.png``.

    Args:
        l1_norm: (L + 1, N). target: (N,).
    """
    last = len(l1_norm) - 1
    shown = sorted({0, 1, *range(3, last, 2), last})
    columns = 4
    rows = -(-len(shown) // columns)
    edges = np.linspace(0, 1.05 * max(np.quantile(l1_norm, 0.995), target.max()), 41).tolist()
    with _figure(folder / "l1_histograms.png", 10, 2.1 * rows) as figure:
        for place, layer in enumerate(shown):
            axes = figure.add_subplot(rows, columns, place + 1)
            axes.hist(
                np.clip(target, 0, edges[-1]),
                edges,
                histtype="stepfilled",
                color="0.75",
                label="$y^*$",
            )
            axes.hist(
                np.clip(l1_norm[layer], 0, edges[-1]), edges, histtype="step", color="C0", lw=1.3,
                label=f"$y_{{{layer}}}$",
            )  # fmt: skip
            axes.set_xlabel(r"$\ell_1$ norm")
            axes.legend(fontsize=8)


def images(
    columns: Sequence[tuple[str, np.ndarray]],
    path: Path,
    *,
    value_range: tuple[float, float],
    labels: Sequence[str] = (),
    notice: str | None = None,
) -> None:
    """A row an instance, a column a stage, K of them.

    Args:
        columns: title and pictures (N, H, W) or (N, H, W, 3). value_range: black and white.
        labels: of the rows. notice: what must be said of the data.
    """
    titles = [title for title, _ in columns]
    pictures = np.stack([pictures for _, pictures in columns], 1)  # (N, K, H, W) or (N, K, H, W, 3)
    low, high = value_range
    side = max(pictures.shape[2:4])  # of a square cell
    gap = max(1, side // 16)
    around = [(side - length) // 2 for length in pictures.shape[2:4]]
    room = [(before, side - length - before + gap)
            for before, length in zip(around, pictures.shape[2:4], strict=True)]  # fmt: skip
    tiles = np.pad(
        np.clip(pictures, low, high),
        [(0, 0), (0, 0), *room, (0, 0)][: pictures.ndim],
        constant_values=high,
    )
    sheet = np.concatenate([np.concatenate(row, 1) for row in tiles])[:-gap, :-gap]
    size = (len(titles) + (1.3 if labels else 0.2), len(tiles) + (0.6 if notice else 0.4))
    with _figure(path, *size, notice) as figure:
        axes = figure.subplots()  # one for all: each costs as much time as all pictures
        axes.imshow(sheet, cmap="gray", vmin=low, vmax=high)
        middles = (side - 1) / 2 + (side + gap) * np.arange(max(len(titles), len(tiles)))
        axes.set_xticks(middles[: len(titles)], titles, fontsize=8)
        axes.set_yticks(middles[: len(labels)], [fill(label, 14) for label in labels], fontsize=7)
        axes.tick_params(length=0, bottom=False, labelbottom=False, labeltop=True)
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)


def _as_it_is(text: str) -> str:
    """Text for a legend, which would leave out what begins with _ and set formulas between dollars."""
    return (" " * text.startswith("_") + text).replace("$", r"\$")


LEVEL_PANELS = {
    "hole_psnr": "PSNR in the hole after the last layer (dB)",
    "psnr": "PSNR after the last layer (dB)",
    "nmse_db": "NMSE after the last layer, ratio of means (dB)",
    "final_distance": "distance to the optimum after the last layer",
}


def levels(result: dict[str, Any], path: Path) -> None:
    """Final distance, or the PSNR of pictures, in the hole where there is one, and descent over the
    levels of a perturbation, for one run or two."""
    runs = [(result, "C0", "-o")]
    if other := result.get("against"):
        runs.append((other, "C1", "--s"))
    name = next(key for key in LEVEL_PANELS if key in result["levels"][0])
    with _figure(path, 9, 3.4, result["notice"]) as figure:
        left, right = figure.subplots(1, 2)
        for run, color, line in runs:
            rows, label = run["levels"], _as_it_is(run["label"])
            _plot_levels(left, rows, [row[name] for row in rows], color, line, label)
            bounds = np.array([row["ci95"][name] for row in rows])
            places = range(len(rows))
            left.fill_between(places, bounds[:, 0], bounds[:, 1], color=color, alpha=0.25, lw=0)
            first = run["first_layer"] - 1
            shares = [min(row["descent_frequency"][first:]) for row in rows]
            _plot_levels(right, rows, shares, color, line, label)
        left.set(title=LEVEL_PANELS[name])
        if name == "final_distance":
            log_axis(left)
        right.set(title="share of instances that descend, worst layer", ylim=(-0.02, 1.02))
        for axes in (left, right):
            axes.set_xlabel(f"level of {result['perturbation'].replace('_', ' ')}")
            axes.legend(fontsize=8)


def shift(result: dict[str, Any], path: Path) -> None:
    """Gradient norm after the last layer and the bound that the shift leaves, over the levels; nothing
    where no level shifts the observations."""
    rows = [row for row in result["levels"] if row["theory"]]
    if not rows:
        return
    with _figure(path, 5, 3.4, result["notice"]) as figure:
        axes = figure.subplots()
        log_axis(axes)
        for key, line, label in (("measured", "C0-o", "measured"), ("bound", "k--", "bound")):
            values = [row["theory"][key][-1] for row in rows]
            axes.plot(range(len(rows)), values, line, ms=4, lw=1, label=label)
        axes.set_xticks(range(len(rows)), [f"{row['level']:g}" for row in rows])
        axes.set_xlabel(f"level of {result['perturbation'].replace('_', ' ')}")
        axes.set_title("gradient norm after the last layer")
        axes.legend(fontsize=7)


def _plot_levels(
    axes: Any, rows: Sequence[dict[str, Any]], values: Sequence[float], color: str, line: str,
    label: str,
) -> None:  # fmt: skip
    """One curve; the levels stand at equal distances, since they span decades and start at 0."""
    places = range(len(rows))
    axes.plot(places, values, line, color=color, ms=4, label=label)
    axes.set_xticks(places, [f"{row['level']:g}" for row in rows])
