"""``sdunroll eval``: measure a trained network layer by layer."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from sdunroll import metrics
from sdunroll.commands.assemble import Experiment, load_best, log_to, seed_of, set_up_torch
from sdunroll.data import Batch
from sdunroll.randomness import generator
from sdunroll.report import figures, tables

BASELINE_LIMIT = 5000  # iterations after which a classical solver is given up
SHOWN = 6  # signals in the picture of reconstructions


def main(config: DictConfig) -> None:
    """Evaluate the run in ``config.run`` and write ``eval/`` into it."""
    device = set_up_torch(config)
    run, experiment = load_best(config.run, device)
    seed = seed_of(config, run)
    with log_to(run.folder / "eval" / "eval.log"):
        test = experiment.instances("test")
        measured = metrics.evaluate(
            experiment.network, experiment.problem, experiment.constraint, test, seed=seed
        )
        result = _result(experiment, test, measured, seed)
        run.write_json("eval/metrics.json", result)
        history = run.history()
        folder = run.folder / "eval" / "figures"
        figures.per_layer(result, folder)
        figures.training(history, folder)
        target_l1 = test.target.abs().flatten(1).sum(1)
        figures.l1_histograms(measured.states["l1_norm"].numpy(), target_l1.cpu().numpy(), folder)
        _picture_reconstructions(experiment, test, seed, folder / "reconstructions.png")
    print(tables.layer_table(result))
    print()
    print(tables.baseline_table(result))
    print(f"\n{run.folder / 'eval'}")


def _result(
    experiment: Experiment, test: Batch, measured: metrics.LayerFigures, seed: int
) -> dict[str, Any]:
    constraint = experiment.constraint
    certificate = experiment.problem.certificate(test.target, test.obs)
    return {
        "num_samples": len(test.obs),
        "epsilon": constraint.epsilon[0] if len(constraint.epsilon) == 1 else constraint.epsilon,
        "measure": constraint.name,
        "form": constraint.form,
        "first_layer": constraint.first_layer,
        "seed": seed,
        "epoch": experiment.epoch,
        "optimum_relative_gap": None if certificate is None else certificate.max().item(),
        "layers": metrics.layer_table(measured, constraint, seed=seed),
        "baselines": metrics.baseline_figures(
            experiment.problem,
            test,
            iterations=experiment.network.num_layers,
            goal=float(measured.states["distance"][-1].mean()),
            limit=BASELINE_LIMIT,
            seed=seed,
        ),
        "baseline_limit": BASELINE_LIMIT,
    }


@torch.no_grad()
def _picture_reconstructions(experiment: Experiment, test: Batch, seed: int, path: Path) -> None:
    """Observations, what each layer's estimate stands for, and what the optimum stands for.

    Nothing is drawn of signals that are not pictures.
    """
    shape = experiment.source.signals("test").shape[1:]  # (C, H, W) of a picture
    if len(shape) != 3:
        return
    obs, target = (values[:SHOWN] for values in test)
    trajectory = experiment.network(obs, generator=generator(seed, "evaluation/start", obs.device))
    stages = [("input", obs)]
    stages += [
        (f"layer {layer}" if layer else "start", experiment.problem.reconstruct(y))
        for layer, y in enumerate(trajectory.states)
    ]
    stages.append(("optimum", experiment.problem.reconstruct(target)))
    columns = [(title, _as_pictures(values, shape)) for title, values in stages]
    figures.images(columns, path, value_range=experiment.source.value_range or (0.0, 1.0))


def _as_pictures(values: torch.Tensor, shape: torch.Size) -> np.ndarray:
    """(N, ...) as (N, H, W), or (N, H, W, 3) in colour."""
    pictures = values.reshape(-1, *shape).cpu().numpy()
    return pictures[:, 0] if shape[0] == 1 else np.moveaxis(pictures, 1, -1)
