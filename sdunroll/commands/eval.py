"""``sdunroll eval``: measure a trained network layer by layer."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from sdunroll import checks, classical, metrics
from sdunroll.cache import Cache
from sdunroll.commands.assemble import Experiment, load_best, seed_of, set_up_torch, working_in
from sdunroll.commands.bounds import Bounds
from sdunroll.cost import inference_cost
from sdunroll.data import Batch
from sdunroll.randomness import generator
from sdunroll.report import figures, tables

BASELINE_LIMIT = 1000  # iterations after which a classical solver is given up
BASELINE_SAMPLES = 2000  # test instances that it is run on, at most
SHOWN = 6  # signals in the picture of reconstructions


def main(config: DictConfig) -> None:
    """Evaluate the run in ``config.run`` and write ``eval/`` into it."""
    folder = checks.folder("run", config.run)
    with working_in(Path(folder), "eval/eval"):
        device = set_up_torch(config)
        run, experiment = load_best(folder, device, config.trust)
        seed = seed_of(config, run)
        test = experiment.instances("test")
        measured = metrics.evaluate(
            experiment.network, experiment.problem, experiment.constraint, test, seed=seed
        )
        _check_finite(measured)
        result = _result(experiment, test, measured, seed)
        result["theory"] = Bounds(experiment, test, seed=seed, delta=config.delta)()
        run.write_json("eval/metrics.json", result)
        baselines = result["baselines"]
        costs = inference_cost(experiment.network, experiment.problem, test, baselines)
        # a file of its own: seconds are never twice the same, the metrics are
        run.write_json("eval/cost.json", {"threads": torch.get_num_threads(), "rows": costs})
        history = run.history()
        pictures = run.folder / "eval" / "figures"
        if result["theory"] is not None:
            figures.guarantee(result["theory"], pictures)
        figures.training(history, pictures, experiment.source.notice)
        if "psnr" not in measured.states:  # codes, whose sparsity tells much
            target_l1 = test.target.abs().flatten(1).sum(1).cpu().numpy()
            figures.l1_histograms(measured.states["l1_norm"].numpy(), target_l1, pictures)
        _picture_reconstructions(experiment, test, measured, seed, pictures / "reconstructions.png")
        figures.per_layer(result, pictures)  # the last, by which scripts know that all is there
    print(tables.layer_table(result))
    print()
    print(tables.baseline_table(result))
    if result["baseline_samples"] < result["num_samples"]:
        print(
            f"solvers: on the first {result['baseline_samples']:,} of {result['num_samples']:,} instances"
        )
    if result["theory"] is not None:
        print(f"\n{tables.guarantee_table(result['theory'])}")
    print(f"\n{tables.cost_table(costs)}")
    for name, value in result["health"].items():
        print(f"{name.replace('_', ' ')}: {value:.1e}")
    if result["notice"]:
        print(f"data: {result['notice']}")
    print(f"\n{run.folder / 'eval'}")


def _check_finite(measured: metrics.LayerFigures) -> None:
    """Errors: a layer whose figures are not finite, as of one that is not trained yet."""
    finite = torch.stack([values.isfinite().all(1) for values in measured.states.values()]).all(0)
    if not finite.all():
        raise checks.UserError(
            f"the network: expected finite values, got others after layer {int(finite.int().argmin())}; "
            "train on to the end, or with a lower training.lr"
        )


def _result(
    experiment: Experiment, test: Batch, measured: metrics.LayerFigures, seed: int
) -> dict[str, Any]:
    constraint = experiment.constraint
    epsilons = [*constraint.epsilons(experiment.network.num_layers)]
    certificate = experiment.problem.certificate(test.target, test.obs)
    return {
        "num_samples": len(test.obs),
        "epsilon": epsilons[0] if len(constraint.epsilon) == 1 else epsilons,
        "measure": constraint.name,
        "form": constraint.form,
        "first_layer": constraint.first_layer,
        "seed": seed,
        "epoch": experiment.epoch,
        "notice": experiment.source.notice,
        "health": measured.health,
        "optimum_relative_gap": None if certificate is None else certificate.max().item(),
        "layers": metrics.layer_table(measured, constraint, seed=seed),
        "baselines": classical.baseline_figures(
            experiment.problem,
            Batch(*(part[:BASELINE_SAMPLES] for part in test)),
            iterations=experiment.network.num_layers,
            distance_goal=float(measured.states["distance"][-1][:BASELINE_SAMPLES].mean()),
            gap_goal=float(measured.states["objective_gap"][-1][:BASELINE_SAMPLES].mean()),
            limit=BASELINE_LIMIT,
            seed=seed,
            cache=Cache(Cache.default_folder()),
        ),
        "baseline_limit": BASELINE_LIMIT,
        "baseline_samples": min(len(test.obs), BASELINE_SAMPLES),
    }


@torch.no_grad()
def _picture_reconstructions(
    experiment: Experiment, test: Batch, measured: metrics.LayerFigures, seed: int, path: Path
) -> None:
    """Observations, what each layer's estimate stands for, and what the target stands for: the two
    instances with the largest final distance, then those at even ranks down to the median.

    Nothing is drawn of signals that are not pictures.
    """
    if experiment.source.channels is None:
        return
    distances = measured.states["distance"][-1]
    order = distances.argsort(descending=True)
    ranks = [0, 1, *torch.linspace(0, len(order) // 2, SHOWN - 1).long().tolist()[1:]]
    chosen = order[torch.tensor(ranks).clamp_max(len(order) - 1)].to(test.obs.device)
    rng = generator(seed, "evaluation/start", test.obs.device)  # as the errors were measured
    starts = torch.cat([experiment.network.initial(part.obs, rng) for part in test.chunks()])
    obs, target = test.obs[chosen], test.target[chosen]
    shape = experiment.source.signals("test").shape[1:]  # (C, H, W) of a picture
    trajectory = experiment.network(obs, generator=rng, start=starts[chosen])
    stages = [("input", experiment.problem.picture(obs))]
    stages += [
        (f"layer {layer}" if layer else "start", experiment.problem.reconstruct(y))
        for layer, y in enumerate(trajectory.states)
    ]
    stages.append(("target", experiment.problem.reconstruct(target)))
    figures.images(
        [(title, as_pictures(values, shape)) for title, values in stages],
        path,
        value_range=experiment.source.value_range or (0.0, 1.0),
        labels=[f"error {float(distances[row]):.2f}" for row in chosen.cpu()],
        notice=experiment.source.notice,
    )


def as_pictures(values: torch.Tensor, shape: torch.Size) -> np.ndarray:
    """(N, ...) as (N, H, W), or (N, H, W, 3) in colour."""
    pictures = values.reshape(-1, *shape).cpu().numpy()
    return pictures[:, 0] if shape[0] == 1 else np.moveaxis(pictures, 1, -1)
