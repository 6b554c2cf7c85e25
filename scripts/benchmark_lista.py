"""One LISTA training step against the machine's GEMM peak and against a plain implementation; bf16
against fp32; a constrained epoch against an unconstrained one.

    python scripts/benchmark_lista.py [--quick]

Prints a table and writes outputs/benchmarks/lista.json. The limit is the time that the step's matrix
products take at the GEMM peak of the step's precision, measured in the same run; all timings are the
median of interleaved repetitions, since other processes come and go. An epoch is four steps, validation
and dual step.
"""

from sdunroll.spinning import spin_briefly

spin_briefly()

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

from sdunroll.allocator import keep_freed_memory
from sdunroll.constraints import Distance, GradientNorm
from sdunroll.data import Batch
from sdunroll.networks import Lista
from sdunroll.perturbations import LayerNoise
from sdunroll.primal_dual import ProportionalIntegral
from sdunroll.problems import SparseCoding
from sdunroll.randomness import generator
from sdunroll.training import Training, TrainingSettings
from sdunroll.training.forward import multiplies_bf16

SIZES = ((256, 307, 10, 256), (1024, 1228, 10, 512))  # features, atoms, layers, batch
EPOCH_STEPS = 4
PLAIN_SHARE = 16  # the plain version's Jacobians are timed on this part of the batch, and scaled


def make(features: int, atoms: int, batch: int) -> tuple[SparseCoding, Batch]:
    """A random problem of that size; its targets are not optimal, which costs the same."""
    rng = generator(0, "benchmark")
    dictionary = torch.randn(features, atoms, generator=rng)
    problem = SparseCoding(dictionary / dictionary.norm(dim=0), alpha=0.1)
    obs = torch.rand(batch, features, generator=rng)
    return problem, Batch(obs, 0.1 * torch.randn(batch, atoms, generator=rng))


def our_training(
    problem: SparseCoding,
    batch: Batch,
    layers: int,
    constraint: type,
    *,
    steps: int = 1,
    constrained: bool = True,
    precision: str = "fp32",
    device: str = "cpu",
    cuda_graph: bool = False,
) -> Training:
    """A training as `sdunroll train` does it, of so many steps an epoch."""
    settings = TrainingSettings(
        epochs=10**6,
        batch_size=len(batch.obs),
        lr=1e-6,
        schedule="constant",
        optimizer=partial(torch.optim.Adam, fused=True),
        noise=LayerNoise,
    )
    return Training(
        settings,
        network=Lista(problem, generator(0, "weights"), num_layers=layers).to(device),
        problem=problem.to(device),
        constraint=constraint(),
        constrained=constrained,
        dual=ProportionalIntegral(k_i=0.3, k_p=3.0),
        train=Batch(*(values.repeat(steps, 1) for values in batch)).to(device),
        val=Batch(*(values[: len(values) // 2] for values in batch)).to(device),
        order_seed=0,
        noise_seed=0,
        precision=precision,
        cuda_graph=cuda_graph,
    )


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


def plain_step(
    problem: SparseCoding, batch: Batch, layers: int, constraint: type
) -> Callable[[], None]:
    """A step of the plain network, one measure after the other; the gradients of the objective are
    taken by autograd as Jacobians."""
    features, atoms = problem.dictionary.shape
    network = PlainLista(features, atoms, layers)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-6)
    multipliers = torch.ones(layers)

    def distance(y: Tensor) -> Tensor:
        return (y - batch.target).norm(dim=1)

    def gradient_norm(y: Tensor) -> Tensor:
        def objective(y: Tensor) -> Tensor:
            return problem.objective(y, batch.obs)

        jacobian = torch.autograd.functional.jacobian(objective, y, create_graph=True)  # (B, B, n)
        return jacobian.diagonal(dim1=0, dim2=1).T.norm(dim=1)

    measure = distance if constraint is Distance else gradient_norm

    def step() -> None:
        start = 0.1 * torch.randn(len(batch.obs), atoms)
        states = network(batch.obs, start)
        loss = (states[-1] - batch.target).square().sum(1).mean() / 2
        measured = [measure(y).mean() for y in states]
        slack = torch.stack([after / before.detach() - 0.9 for before, after in pairwise(measured)])
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


def gemm_flops(features: int, atoms: int, layers: int, batch: int, constraint: type) -> float:
    """Of the step's matrix products: W1 y forward and two backward (one in layer 1, whose input needs
    no gradient), W2 x forward and one backward; for the gradient norm also D^T (D y - x) of each
    state forward, and of each layer's output backward."""
    w1 = 2 * batch * atoms * atoms * (3 * layers - 1)
    w2 = 2 * batch * atoms * features * layers * 2
    measure = 0 if constraint is Distance else 4 * batch * atoms * features * (2 * layers + 1)
    return w1 + w2 + measure


def measure(size: tuple[int, int, int, int], repetitions: int, threads: int) -> list[dict]:
    features, atoms, layers, batch_size = size
    problem, batch = make(features, atoms, batch_size)
    square = torch.randn(2048, 2048)
    part = Batch(*(values[: max(batch_size // PLAIN_SHARE, 1)] for values in batch))
    constraints = {"distance": Distance, "gradient": GradientNorm}
    functions: dict[str, Callable] = {"peak": lambda: square @ square}
    for name, constraint in constraints.items():
        training = our_training(problem, batch, layers, constraint)
        functions[name] = partial(training.steps.take, batch)
    functions["plain distance"] = plain_step(problem, batch, layers, Distance)
    functions["plain gradient"] = plain_step(problem, part, layers, GradientNorm)
    times = median_seconds(functions, repetitions)
    peak = 2 * 2048**3 / times["peak"]
    # Jacobians grow with the square of the batch: scaling a part up linearly flatters the baseline
    times["plain gradient"] *= batch_size / len(part.obs)
    baselines = {
        "distance": "plain autograd, layer by layer",
        "gradient": f"plain autograd with Jacobians, {len(part.obs)} instances scaled up linearly",
    }
    rows = []
    for name, constraint in constraints.items():
        limit = gemm_flops(*size, constraint) / peak
        rows.append(
            {
                "what": f"LISTA step, m {features}, n {atoms}, L {layers}, batch {batch_size}, {name}",
                "seconds": times[name],
                "baseline": baselines[name],
                "baseline_seconds": times[f"plain {name}"],
                "ratio": times[f"plain {name}"] / times[name],
                "limit_seconds": limit,
                "fraction_of_limit": limit / times[name],
                "peak_bytes": None,
                "baseline_peak_bytes": None,
                "gemm_peak_gflops": peak / 1e9,
                "threads": threads,
            }
        )
    return rows


def compare(size: tuple[int, int, int, int], repetitions: int, threads: int) -> list[dict]:
    """bf16 against fp32, and an epoch with constraints against one without."""
    features, atoms, layers, batch_size = size
    problem, batch = make(features, atoms, batch_size)
    # a processor that emulates bfloat16 takes minutes for the large product
    width = 2048 if multiplies_bf16(torch.device("cpu")) else 256
    square = torch.randn(width, width).bfloat16()
    functions: dict[str, Callable] = {"peak": lambda: square @ square}
    for precision in ("fp32", "bf16"):
        training = our_training(problem, batch, layers, Distance, precision=precision)
        functions[precision] = partial(training.steps.take, batch)
    for constrained in (True, False):
        training = our_training(
            problem, batch, layers, Distance, steps=EPOCH_STEPS, constrained=constrained
        )
        functions[f"epoch {constrained}"] = partial(next, training.run())
    times = median_seconds(functions, repetitions)
    peak = 2 * width**3 / times["peak"]
    limit = gemm_flops(*size, Distance) / peak
    what = f"m {features}, n {atoms}, L {layers}, batch {batch_size}"
    empty = {"peak_bytes": None, "baseline_peak_bytes": None, "threads": threads}
    return [
        {
            "what": f"LISTA step in bf16, {what}",
            "seconds": times["bf16"],
            "baseline": "the same step in fp32",
            "baseline_seconds": times["fp32"],
            "ratio": times["fp32"] / times["bf16"],
            "limit_seconds": limit,
            "fraction_of_limit": limit / times["bf16"],
            "gemm_peak_gflops": peak / 1e9,
            **empty,
        },
        {
            "what": f"epoch with constraints, {what}",
            "seconds": times["epoch True"],
            "baseline": "an epoch without",
            "baseline_seconds": times["epoch False"],
            "ratio": times["epoch False"] / times["epoch True"],
            "limit_seconds": None,
            "fraction_of_limit": None,
            **empty,
        },
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repetitions, small size alone")
    quick = parser.parse_args().quick
    keep_freed_memory()  # as the commands do
    threads = torch.get_num_threads()
    rows = []
    for size in SIZES[:1] if quick else SIZES:
        rows += measure(size, 3 if quick else 9, threads)
        rows += compare(size, 3 if quick else 9, threads)
    for row in rows:
        print(row["what"])
        line = f"  {row['seconds'] * 1e3:9.1f} ms"
        if row["limit_seconds"] is not None:
            line += (
                f"   GEMM peak {row['gemm_peak_gflops']:.0f} GFLOP/s   limit "
                f"{row['limit_seconds'] * 1e3:.1f} ms   {100 * row['fraction_of_limit']:.0f} % of it"
            )
        print(line)
        print(f"  {row['ratio']:.2f} times as fast as {row['baseline']}")
    path = Path("outputs/benchmarks/lista.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
