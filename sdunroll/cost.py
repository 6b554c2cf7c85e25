"""What inference costs: the network's time beside that of classical solvers to the same result."""

import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch

from sdunroll.data import Batch
from sdunroll.networks import UnrolledNetwork
from sdunroll.problems import Problem
from sdunroll.randomness import generator

SIZES = (1, 1000)  # problems solved at once
REPEATS = 5


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The least wall time of ``work`` over :data:`REPEATS` calls after a first one."""
    taken = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


@torch.no_grad()
def inference_cost(
    network: UnrolledNetwork, problem: Problem, data: Batch, baselines: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """A row for each of :data:`SIZES`, as far as ``data`` has so many: the network's seconds and, by
    solver, the iterations and seconds to the network's mean distance and to its mean objective.

    Args:
        baselines: of :func:`sdunroll.classical.baseline_figures`, which counts those iterations.

    Returns:
        rows of ``problems``, ``seconds`` and ``solvers``; of a solver that does not iterate, ``seconds``
        for one problem alone. None where a goal was not reached.
    """
    rows = []
    for size in SIZES:
        if len(data.obs) < size:
            continue
        some = Batch(data.obs[:size], data.target[:size])
        device = some.obs.device
        rng = generator(0, "cost/start", device)

        def infer(some: Batch = some, rng: torch.Generator = rng) -> object:
            # at once, but for what evaluation takes in parts, too, to bound the memory
            return [network(part.obs, generator=rng).output for part in some.chunks()]

        row: dict[str, Any] = {"problems": size, "seconds": seconds(infer, device)}
        row["solvers"] = {
            name: _solver_cost(problem, name, some, found)
            for name, found in baselines.items()
            if found["iterations"] is not None or size == 1
        }
        rows.append(row)
    return rows


def _solver_cost(problem: Problem, name: str, data: Batch, found: dict[str, Any]) -> dict[str, Any]:
    def iterate(count: int) -> float:
        def solve() -> object:
            return next(islice(problem.baselines(data)[name], count, None))

        return seconds(solve, data.obs.device)

    if found["iterations"] is None:
        return {"seconds": iterate(0)}
    counts = {
        "distance": found["iterations_to_final_distance"],
        "objective": found["iterations_to_final_objective"],
    }
    return {
        f"to_{goal}": None if count is None else {"iterations": count, "seconds": iterate(count)}
        for goal, count in counts.items()
    }
