"""One LISTA training step against the machine's GEMM peak and against a plain implementation.

    python scripts/benchmark_lista.py [--quick]

Prints a table and writes outputs/benchmarks/lista.json. The limit is the time that the step's matrix
products take at the fp32 GEMM peak measured in the same run; all timings are the median of
interleaved repetitions, since other processes come and go.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from sdunroll.constraints import Distance, GradientNorm
from sdunroll.data import Batch
from sdunroll.networks import Lista
from sdunroll.perturbations import LayerNoise
from sdunroll.primal_dual import ProportionalIntegral
from sdunroll.problems import SparseCoding
from sdunroll.randomness import generator
from sdunroll.training import EndToEnd, Training

SIZES = ((256, 307, 10, 128), (1024, 1228, 10, 512))  # features, atoms, layers, batch
PLAIN_SHARE = 16  # the plain version's Jacobians are timed on this part of the batch, and scaled


def make(features: int, atoms: int, batch: int) -> tuple[SparseCoding, Batch]:
    """A random problem of that size; its targets are not optimal, which costs the same."""
    rng = generator(0, "benchmark")
    dictionary = torch.randn(features, atoms, generator=rng)
    problem = SparseCoding(dictionary / dictionary.norm(dim=0), alpha=0.1)
    obs = torch.rand(batch, features, generator=rng)
    return problem, Batch(obs, 0.1 * torch.randn(batch, atoms, generator=rng))


def our_step(problem: SparseCoding, batch: Batch, layers: int, constraint: type) -> Callable:
    """A constrained training step as `sdunroll train` takes it."""
    settings = EndToEnd(
        epochs=1,
        batch_size=len(batch.obs),
        lr=1e-6,
        schedule="constant",
        optimizer=partial(torch.optim.Adam, fused=True),
        noise=LayerNoise,
    )
    training = Training(
        settings,
        network=Lista(problem, generator(0, "weights"), num_layers=layers),
        problem=problem,
        constraint=constraint(),
        constrained=True,
        dual=ProportionalIntegral(k_i=0.3, k_p=3.0),
        train=batch,
        val=batch,
        seed=0,
    )
    return partial(training._step, batch)


class PlainLista(nn.Module):
    """The textbook way: a linear layer each for W1 and W2, soft thresholding by sign and relu."""

    def __init__(self, features: int, atoms: int, layers: int) -> None:
        super().__init__()
        self.w1 = nn.ModuleList(nn.Linear(atoms, atoms, bias=False) for _ in range(layers))
        self.w2 = nn.ModuleList(nn.Linear(features, atoms, bias=False) for _ in range(layers))
        self.theta = nn.ParameterList(torch.full((atoms,), 0.01) for _ in range(layers))

    def forward(self, obs: Tensor, start: Tensor) -> list[Tensor]:
        states = [start]
        for w1, w2, theta in zip(self.w1, self.w2, self.theta, strict=True):
            v = w1(states[-1]) + w2(obs)
            states.append(torch.sign(v) * torch.relu(v.abs() - theta))
        return states


def plain_step(problem: SparseCoding, batch: Batch, layers: int) -> Callable[[], None]:
    """A step on the gradient norm, the gradients taken by autograd as Jacobians, layer by layer."""
    features, atoms = problem.dictionary.shape
    network = PlainLista(features, atoms, layers)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-6)
    multipliers = torch.ones(layers)

    def gradient_norm(y: Tensor) -> Tensor:
        total = lambda y: problem.objective(y, batch.obs)  # noqa: E731
        jacobian = torch.autograd.functional.jacobian(total, y, create_graph=True)  # (B, B, n)
        return jacobian.diagonal(dim1=0, dim2=1).T.norm(dim=1)

    def step() -> None:
        start = 0.1 * torch.randn(len(batch.obs), atoms)
        states = network(batch.obs, start)
        loss = (states[-1] - batch.target).square().sum(1).mean() / 2
        norms = [gradient_norm(y).mean() for y in states]
        slack = torch.stack([after / before.detach() - 0.9 for before, after in pairwise(norms)])
        optimizer.zero_grad()
        (loss + (multipliers * slack).sum()).backward()
        optimizer.step()

    return step


def median_seconds(functions: dict[str, Callable], repetitions: int) -> dict[str, float]:
    """Median wall time of each, their repetitions interleaved."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()  # warm up
    for _ in range(repetitions):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def gemm_flops(features: int, atoms: int, layers: int, batch: int) -> float:
    """Of the step's matrix products: W1 y forward and two backward (one in layer 1, whose input needs
    no gradient), W2 x forward and one backward."""
    w1 = 2 * batch * atoms * atoms * (3 * layers - 1)
    w2 = 2 * batch * atoms * features * layers * 2
    return w1 + w2


def measure(size: tuple[int, int, int, int], repetitions: int, threads: int) -> list[dict]:
    features, atoms, layers, batch_size = size
    problem, batch = make(features, atoms, batch_size)
    square = torch.randn(2048, 2048)
    part = Batch(*(values[: max(batch_size // PLAIN_SHARE, 1)] for values in batch))
    times = median_seconds(
        {
            "peak": lambda: square @ square,
            "distance": our_step(problem, batch, layers, Distance),
            "gradient": our_step(problem, batch, layers, GradientNorm),
            "plain part": plain_step(problem, part, layers),
        },
        repetitions,
    )
    peak = 2 * 2048**3 / times["peak"]
    plain = times["plain part"] * batch_size / len(part.obs)
    limit = gemm_flops(*size) / peak
    rows = []
    for constraint in ("distance", "gradient"):
        seconds = times[constraint]
        what = f"LISTA step, m {features}, n {atoms}, L {layers}, batch {batch_size}, {constraint}"
        rows.append(
            {
                "what": what,
                "seconds": seconds,
                "baseline": f"plain autograd, Jacobian gradients, {len(part.obs)} instances scaled up",
                "baseline_seconds": plain,
                "ratio": plain / seconds,
                "limit_seconds": limit,
                "fraction_of_limit": limit / seconds,
                "peak_bytes": None,
                "baseline_peak_bytes": None,
                "gemm_peak_gflops": peak / 1e9,
                "threads": threads,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repetitions, small size alone")
    quick = parser.parse_args().quick
    threads = torch.get_num_threads()
    rows = []
    for size in SIZES[:1] if quick else SIZES:
        rows += measure(size, 3 if quick else 9, threads)
    for row in rows:
        print(row["what"])
        print(
            f"  step {row['seconds'] * 1e3:9.1f} ms   GEMM peak {row['gemm_peak_gflops']:.0f} GFLOP/s"
            f"   limit {row['limit_seconds'] * 1e3:.1f} ms   "
            f"{100 * row['fraction_of_limit']:.0f} % of the limit"
        )
        print(f"  {row['ratio']:.1f} times as fast as {row['baseline']}")
    path = Path("outputs/benchmarks/lista.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
