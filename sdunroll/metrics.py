"""What a network does at each layer, with confidence intervals.

Legend: L layers, N instances, R bootstrap resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdunroll import checks
from sdunroll.constraints import DescentConstraint, distance, norm
from sdunroll.data import Batch
from sdunroll.networks import Trajectory, UnrolledNetwork
from sdunroll.perturbations import Perturbation
from sdunroll.problems import Problem
from sdunroll.randomness import generator

RESAMPLES = 1000
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True)
class LayerFigures:
    """Figures of every instance.

    Attributes:
        states: by name, at every state y_0 .. y_L, (L + 1, N) each: ``distance`` ||y_l - y*||_2,
            ``objective_gap`` f(y_l; x) - f(y*; x), ``gradient_norm`` ||grad f(y_l; x)||_2, ``l1_norm``
            ||y_l||_1, and what :meth:`Problem.figures` adds.
        before, after: the constraint's measure of what each layer received and returned, (R, N),
            R = L times its parts.
        health: the worst of each of :meth:`UnrolledNetwork.health`.
        ratios: numerators and denominators of :meth:`Problem.ratios` at every state, (2, L + 1, N).

    Of the last state alone, states and ratios have one row, but for the gradient norm, for the theory: it
    has all where all layers descend on one objective, and is left out otherwise.
    """

    states: dict[str, Tensor]
    before: Tensor
    after: Tensor
    health: dict[str, float]
    ratios: dict[str, Tensor] = field(default_factory=dict)


def state_figures(
    problem: Problem,
    states: Tensor,
    batch: Batch,
    problems: Sequence[Problem] | None = None,
    *,
    gradient: bool = True,
) -> dict[str, Tensor]:
    """The figures of :attr:`LayerFigures.states` at states (K, B, ...), (K, B) each.

    Args:
        problems: whose objectives the layers descend on, (K - 1,), where they differ; the start is
            measured by the first layer's.
        gradient: whether to measure its norm, too.
    """
    if problems is not None:
        rows = [
            state_figures(own, state[None], batch)
            for own, state in zip([problems[0], *problems], states, strict=True)
        ]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    lead = states.ndim - batch.target.ndim + 1
    best = problem.objective(batch.target, batch.obs)
    found = {
        "distance": distance(states, batch.target),
        "objective_gap": problem.objective(states, batch.obs) - best,
        "l1_norm": states.abs().flatten(lead).sum(-1),
        **problem.figures(states, batch),
    }
    if gradient:
        found["gradient_norm"] = norm(problem.gradient(states, batch.obs), lead)
    return found


@torch.no_grad()
def evaluate(
    network: UnrolledNetwork,
    problem: Problem,
    constraint: DescentConstraint,
    data: Batch,
    *,
    seed: int,
    perturbation: Perturbation | None = None,
    noise_seed: int | None = None,
    last_state: bool = False,
) -> LayerFigures:
    """Run the network on all of ``data``.

    Args:
        seed: of y_0. noise_seed: of what ``perturbation`` draws between layers, by default the same.
        last_state: the figures of y_L alone, which for flows takes much less time.

    Errors: :class:`checks.UserError` for a figure of health that is not finite.
    """
    device = data.obs.device
    start_rng = generator(seed, "evaluation/start", device)
    noise_rng = generator(seed if noise_seed is None else noise_seed, "evaluation/noise", device)
    parts: list[dict[str, Tensor]] = []
    ratios: list[dict[str, Tensor]] = []  # (2, L + 1, B) each
    measured: list[Tensor] = []  # (2, R, B) each
    health: dict[str, float] = {}
    for batch in data.chunks():
        perturb = perturbation and perturbation.between_layers(problem, batch, noise_rng)
        path = network(batch.obs, generator=start_rng, perturb=perturb)
        measured.append(torch.stack(constraint.measures(problem, path, batch)).cpu())
        found = _figures(problem, path, batch, last_state=last_state)
        parts.append({name: values.cpu() for name, values in found.items()})
        pairs = problem.ratios(path.states[-1:] if last_state else path.states, batch)
        ratios.append({name: torch.stack(pair).cpu() for name, pair in pairs.items()})
        for name, value in network.health(path.states).items():
            if not math.isfinite(value):
                raise checks.UserError(
                    f"{name}: expected a small number, got {value}: the network can no longer be "
                    "computed in this precision; train with a lower training.lr, or take smaller levels"
                )
            health[name] = max(value, health.get(name, value))
    states, of_means = (
        {name: torch.cat([part[name] for part in found], -1) for name in found[0]}
        for found in (parts, ratios)
    )
    before, after = torch.cat(measured, 2)
    return LayerFigures(states, before, after, health, of_means)


def _figures(
    problem: Problem, path: Trajectory, batch: Batch, *, last_state: bool
) -> dict[str, Tensor]:
    """The figures of :attr:`LayerFigures.states`."""
    if not last_state:
        return state_figures(problem, path.states, batch, path.problems)
    own = problem if path.problems is None else path.problems[-1]
    found = state_figures(own, path.states[-1:], batch, gradient=False)
    if path.problems is None:
        found["gradient_norm"] = norm(problem.gradient(path.states, batch.obs), 2)
    return found


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


def quantiles(values: Tensor) -> list[list[float]]:
    """The :data:`QUANTILES` of each row of ``values`` (K, N) over the instances, (K, 5)."""
    wanted = torch.tensor(QUANTILES, dtype=torch.float64)
    found: list[list[float]] = torch.quantile(values.double(), wanted, dim=1).T.tolist()
    return found


def decibels(pair: Tensor, resample: Bootstrap) -> list[dict[str, Any]]:
    """10 log10 of a ratio of means, as :func:`summarise` gives it, a row each.

    The interval is that of the ratio in each resample; the deviation is that of each instance's part in
    it to first order, 10 / ln 10 (a / E[a] - b / E[b]).

    Args:
        pair: numerators a and denominators b, > 0, (2, K, N).
    """
    pair = pair.double()
    top, bottom = pair.mean(-1)  # (K,)
    above, below = (resample(part) for part in pair)  # (samples, K)
    parts = 10 / math.log(10) * (pair[0] / top[:, None] - pair[1] / bottom[:, None])
    return summarise(parts, 10 * (above / below).log10(), 10 * (top / bottom).log10())


def layer_table(
    figures: LayerFigures, constraint: DescentConstraint, *, seed: int
) -> list[dict[str, Any]]:
    """A row a state l = 0 .. L: ``layer``, the figures, ``measured`` (by the constraint) and from
    l = 1 ``slack`` and ``descent_frequency`` (the share of instances with m(y_l) < m(y_{l-1})); each
    figure as :func:`summarise` gives it. Of a measure of several parts, each has its own columns,
    such as ``slack_x``, and ``slack`` is that of the part with the largest."""
    resample = Bootstrap(figures.before.shape[1], seed=seed)
    num_layers = len(figures.before) // len(constraint.parts)
    columns = {
        name: summarise(values.double(), resample(values.double()))
        for name, values in figures.states.items()
    }
    for name, values in figures.states.items():
        for row, found in zip(columns[name], quantiles(values), strict=True):
            row["quantiles"] = found
    columns |= {name: decibels(pair, resample) for name, pair in figures.ratios.items()}
    before, after = figures.before.double(), figures.after.double()
    pairs = constraint.pairs(before, after)  # what the slack averages, (2, R, N)
    resampled = torch.stack([resample(part) for part in pairs])  # (2, samples, R)
    moments = pairs.mean(-1)
    per_instance = constraint.slack_terms(pairs, moments)  # (R, N)
    slack = summarise(per_instance, constraint.slack_of(resampled), constraint.slack_of(moments))
    falls = (after < before).double()
    descends = summarise(falls, resample(falls))
    rows: list[dict[str, Any]] = [{"layer": layer} for layer in range(num_layers + 1)]
    for row in rows:
        row |= {name: column[row["layer"]] for name, column in columns.items()}
    for index, part in enumerate(constraint.parts):
        ending = f"_{part}" if part else ""
        place = slice(index * num_layers, (index + 1) * num_layers)
        measured = torch.cat([before[place][:1], after[place]])
        for row, value in zip(rows, summarise(measured, resample(measured)), strict=True):
            row[f"measured{ending}"] = value
        for row, value, share in zip(rows[1:], slack[place], descends[place], strict=True):
            row[f"slack{ending}"], row[f"descent_frequency{ending}"] = value, share
    if len(constraint.parts) > 1:
        _add_worst_part(rows, constraint.parts)
    return rows


def _add_worst_part(rows: list[dict[str, Any]], parts: Sequence[str]) -> None:
    """Add ``measured``, ``slack`` and ``descent_frequency`` of the part with the largest slack; at the
    start, which has none, of the first part."""
    for row in rows:
        worst = max(parts, key=lambda part: row.get(f"slack_{part}", {"mean": 0.0})["mean"])
        for name in ("measured", "slack", "descent_frequency"):
            if f"{name}_{worst}" in row:
                row[name] = row[f"{name}_{worst}"]
