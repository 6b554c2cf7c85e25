"""Classical solvers beside a network: their figures, and how many iterations they need to be as good.

What a solver passes through depends on the problem and its instances alone, so that it is computed once
for all networks that are compared on them. Legend: B instances, T iterations.
"""

import logging
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from sdunroll.cache import Cache, digest
from sdunroll.checks import UserError
from sdunroll.constraints import distance
from sdunroll.data import Batch
from sdunroll.metrics import Bootstrap, decibels, state_figures, summarise
from sdunroll.problems import Problem

DIVERGED = 1e6  # times the distance at the start, beyond which a solver is left

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SolverPath:
    """What a solver passes through, on average over the instances.

    Attributes:
        means: of the distance to the target and of the objective at y_0 .. y_T, (2, T + 1), in float64;
            T = 0 for a solver that does not iterate, less than was asked for one that diverges.
        last: y_T, (B, ...).
    """

    means: Tensor
    last: Tensor

    def reaches(self, distance_goal: float, objective_goal: float) -> tuple[int | None, int | None]:
        """The first iterations whose means are at most these; None for one that never is."""
        goals = self.means.new_tensor([distance_goal, objective_goal])
        there = self.means <= goals[:, None]
        first, second = (int(row.int().argmax()) if bool(row.any()) else None for row in there)
        return first, second


@torch.no_grad()
def paths(problem: Problem, data: Batch, limit: int, cache: Cache) -> dict[str, SolverPath]:
    """The path of each of :meth:`Problem.baselines` over ``limit`` iterations.

    Args:
        cache: where they are kept, for a problem that tells its :meth:`Problem.cache_key`.
    """

    def compute() -> dict[str, Tensor]:
        found = {}
        for name, states in problem.baselines(data).items():
            means: list[Tensor] = []
            for y in islice(states, limit + 1):
                measured = distance(y, data.target), problem.objective(y, data.obs)
                row = torch.stack([values.double().mean() for values in measured])
                # as AMP does with many more atoms than measurements, until its numbers overflow
                if means and not row[0] <= DIVERGED * means[0][0]:
                    break
                means.append(row)
                last = y
            found[f"{name}/means"], found[f"{name}/last"] = torch.stack(means, 1), last
        return found

    key = problem.cache_key()
    if key is None:
        kept = compute()
    else:
        whole = {
            "what": "solvers",
            "problem": key,
            "obs": digest(data.obs),
            "target": digest(data.target),
            "limit": limit,
            "diverged": DIVERGED,
            # which decide in what order numbers are summed
            "device": data.obs.device.type,
            "threads": torch.get_num_threads(),
        }
        try:
            kept = cache.tensors(whole, compute)
        except UserError as error:  # where nothing can be kept, nothing is lost but time
            log.info("%s", error)
            kept = compute()
    names = [name.removesuffix("/last") for name in kept if name.endswith("/last")]
    return {
        name: SolverPath(kept[f"{name}/means"].cpu(), kept[f"{name}/last"].to(data.obs.device))
        for name in names
    }


@torch.no_grad()
def baseline_figures(
    problem: Problem, data: Batch, *, iterations: int, distance_goal: float, gap_goal: float,
    limit: int, seed: int, cache: Cache,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Classical solvers after ``iterations``, and how many they need to be as good as a network.

    Args:
        distance_goal, gap_goal: the mean distance and the mean objective gap to reach.
        limit: iterations after which a solver is taken to have converged, and the search is given up.
        cache: of :func:`paths`.

    Returns:
        by solver ``iterations`` (None for one that does not iterate), the figures, under ``converged``
        those after ``limit`` iterations, ``iterations_to_final_distance`` and
        ``iterations_to_final_objective`` (None if it was given up, or without iterations).
    """
    resample = Bootstrap(len(data.obs), seed=seed)
    best = float(problem.objective(data.target, data.obs).double().mean())

    def figures(y: Tensor) -> dict[str, Any]:
        found = state_figures(problem, y[None], data)
        values = {name: value.double().cpu() for name, value in found.items()}
        rows = {name: summarise(value, resample(value))[0] for name, value in values.items()}
        pairs = problem.ratios(y[None], data)
        return rows | {
            name: decibels(torch.stack(pair).cpu(), resample)[0] for name, pair in pairs.items()
        }

    found = {}
    for name, path in paths(problem, data, max(limit, iterations), cache).items():
        last = path.means.shape[1] - 1
        reached: tuple[int | None, int | None] = None, None
        if last == 0:  # its one answer
            row = {"iterations": None, **figures(path.last)}
        else:
            count = min(iterations, last)
            y = next(islice(problem.baselines(data)[name], count, None))
            row = {"iterations": count, **figures(y)}
            row["converged"] = {"iterations": last, **figures(path.last)}
            reached = path.reaches(distance_goal, best + gap_goal)
        row["iterations_to_final_distance"], row["iterations_to_final_objective"] = reached
        found[name] = row
    return found
