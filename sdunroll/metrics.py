"""What a network does at each layer, with confidence intervals.

Legend: L layers, N instances, R bootstrap resamples.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdunroll.constraints import DescentConstraint, distance, norm
from sdunroll.data import Batch
from sdunroll.networks import UnrolledNetwork
from sdunroll.perturbations import Perturbation
from sdunroll.problems import Problem
from sdunroll.randomness import generator

RESAMPLES = 1000
CHUNK = 1000  # instances evaluated at once, to bound the memory


@dataclass(frozen=True, slots=True)
class LayerFigures:
    """Figures of every instance at every state y_0 .. y_L.

    Attributes:
        distance: ||y_l - y*||_2, (L + 1, N).
        objective_gap: f(y_l; x) - f(y*; x), (L + 1, N).
        gradient_norm: ||grad f(y_l; x)||_2, (L + 1, N).
        l1_norm: ||y_l||_1, (L + 1, N).
        before, after: the constraint's measure of what each layer received and returned, (L, N).
    """

    distance: Tensor
    objective_gap: Tensor
    gradient_norm: Tensor
    l1_norm: Tensor
    before: Tensor
    after: Tensor


STATE_FIGURES = ("distance", "objective_gap", "gradient_norm", "l1_norm")


def state_figures(problem: Problem, states: Tensor, batch: Batch) -> dict[str, Tensor]:
    """The figures of :data:`STATE_FIGURES` for states (K, B, ...), (K, B) each."""
    lead = states.ndim - batch.target.ndim + 1
    best = problem.objective(batch.target, batch.obs)
    return {
        "distance": distance(states, batch.target),
        "objective_gap": problem.objective(states, batch.obs) - best,
        "gradient_norm": norm(problem.gradient(states, batch.obs), lead),
        "l1_norm": states.abs().flatten(lead).sum(-1),
    }


@torch.no_grad()
def evaluate(
    network: UnrolledNetwork,
    problem: Problem,
    constraint: DescentConstraint,
    data: Batch,
    *,
    seed: int,
    perturbation: Perturbation | None = None,
) -> LayerFigures:
    """Run the network on all of ``data``; y_0 and all noise are drawn from ``seed``."""
    device = data.obs.device
    start_rng = generator(seed, "evaluation/start", device)
    noise_rng = generator(seed, "evaluation/noise", device)
    parts = []
    for obs, target in zip(data.obs.split(CHUNK), data.target.split(CHUNK), strict=True):
        batch = Batch(obs, target)
        perturb = perturbation and perturbation.between_layers(problem, obs, noise_rng)
        path = network(obs, generator=start_rng, perturb=perturb)
        before, after = constraint.measures(problem, path, batch)
        figures = state_figures(problem, path.states, batch)
        parts.append(LayerFigures(**figures, before=before, after=after))
    names = (*STATE_FIGURES, "before", "after")
    return LayerFigures(
        **{name: torch.cat([getattr(part, name) for part in parts], 1).cpu() for name in names}
    )


class Bootstrap:
    """Means over R resamples of N instances, drawn with replacement; the same ones at each call.

    Args:
        count: N. seed: of the resamples.
    """

    def __init__(self, count: int, *, seed: int) -> None:
        rng = generator(seed, "evaluation/bootstrap")
        drawn = torch.randint(count, (RESAMPLES, count), generator=rng)
        counts = torch.zeros(RESAMPLES, count, dtype=torch.float64)
        self.counts = counts.scatter_add_(1, drawn, torch.ones_like(counts))  # how often, (R, N)

    def __call__(self, values: Tensor) -> Tensor:
        """The mean of each row of ``values`` (K, N) in each resample, (R, K)."""
        return self.counts @ values.T / self.counts.shape[1]


def summarise(
    values: Tensor, resampled: Tensor, mean: Tensor | None = None
) -> list[dict[str, Any]]:
    """Mean, standard deviation over instances and 95 % bootstrap percentile interval, a row each.

    Args:
        values: (K, N). resampled: the statistic in each resample, (R, K).
        mean: the statistic itself, (K,); the mean of ``values`` by default.
    """
    mean = values.mean(1) if mean is None else mean
    std = values.std(1, unbiased=False)
    low, high = torch.quantile(
        resampled, torch.tensor([0.025, 0.975], dtype=resampled.dtype), dim=0
    )
    rows = zip(mean.tolist(), std.tolist(), low.tolist(), high.tolist(), strict=True)
    return [{"mean": m, "std": s, "ci95": [lo, hi]} for m, s, lo, hi in rows]


def layer_table(
    figures: LayerFigures, constraint: DescentConstraint, *, seed: int
) -> list[dict[str, Any]]:
    """A row a state l = 0 .. L: ``layer``, the figures, ``measured`` (by the constraint) and from
    l = 1 ``slack`` and ``descent_frequency`` (the share of instances with m(y_l) < m(y_{l-1})); each
    figure as :func:`summarise` gives it."""
    resample = Bootstrap(figures.distance.shape[1], seed=seed)
    columns = {}
    for name in STATE_FIGURES:
        values = getattr(figures, name).double()
        columns[name] = summarise(values, resample(values))
    before, after = figures.before.double(), figures.after.double()
    falls = (after < before).double()
    columns["descent_frequency"] = summarise(falls, resample(falls))
    pairs = constraint.pairs(before, after)  # what the slack averages, (2, L, N)
    resampled = torch.stack([resample(part) for part in pairs])  # (2, R, L)
    moments = pairs.mean(-1)
    per_instance = constraint.slack_terms(pairs, moments)  # (L, N)
    slack = constraint.slack_of(moments)
    measured = torch.cat([before[:1], after])
    columns["measured"] = summarise(measured, resample(measured))
    columns["slack"] = summarise(per_instance, constraint.slack_of(resampled), slack)
    rows: list[dict[str, Any]] = []
    for layer in range(len(figures.distance)):
        row: dict[str, Any] = {"layer": layer}
        row |= {name: columns[name][layer] for name in (*STATE_FIGURES, "measured")}
        if layer:
            row |= {name: columns[name][layer - 1] for name in ("slack", "descent_frequency")}
        rows.append(row)
    return rows


@torch.no_grad()
def baseline_figures(
    problem: Problem, data: Batch, *, iterations: int, goal: float, limit: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Classical solvers after ``iterations``, and how many they need to reach a mean distance.

    Args:
        goal: the mean distance to reach. limit: iterations after which the search is given up.

    Returns:
        by solver ``iterations``, the figures, and ``iterations_to_final_distance`` (None if more
        than ``limit``).
    """
    resample = Bootstrap(len(data.obs), seed=seed)
    found = {}
    for name, states in problem.baselines(data.obs).items():
        row: dict[str, Any] = {"iterations": iterations}
        reached = None
        for count, y in enumerate(states):
            if count == iterations:
                for figure, values in state_figures(problem, y[None], data).items():
                    value = values.double().cpu()
                    row[figure] = summarise(value, resample(value))[0]
            if reached is None and float(distance(y, data.target).mean()) <= goal:
                reached = count
            if count >= iterations and (reached is not None or count >= limit):
                break
        found[name] = row | {"iterations_to_final_distance": reached}
    return found
