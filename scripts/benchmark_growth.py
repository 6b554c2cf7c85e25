"""How time and memory of a training step grow with layers, atoms and batch of LISTA, and with the flow's
depth of GLOW-Prox.

    python scripts/benchmark_growth.py [--quick]

Each row doubles one size from the first and leaves the others. Time is the median of some steps, memory
the most bytes of tensors that a step makes; the baseline is plain autograd, where the layers run backwards
otherwise. The limit of the time is that of its floating-point operations at the GEMM peak measured in the
same run. Prints a table, writes outputs/benchmarks/growth.json and growth.png.
"""

from sdunroll.spinning import spin_briefly

spin_briefly()

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from timing import gemm_peak, timed
from torch import Tensor, nn

from sdunroll.allocator import keep_freed_memory
from sdunroll.commands.dry_run import flop_counter
from sdunroll.constraints import Distance
from sdunroll.data import Batch
from sdunroll.memory import LiveMemory
from sdunroll.networks import FlowProximal, Lista, ProximalGradient
from sdunroll.problems import Inpainting, InverseImaging, SparseCoding
from sdunroll.randomness import generator

OUT = Path("outputs/benchmarks")
LISTA = {"layers": 10, "atoms": 307, "batch": 256}
FLOWS = {"depth": 4}
Step = Callable[[], Tensor]


def lista(layers: int, atoms: int, batch: int) -> tuple[nn.Module, Step]:
    """A network on random problems of 256 features, and its Lagrangian at multipliers of 1."""
    rng = generator(0, "benchmark")
    dictionary = torch.randn(256, atoms, generator=rng)
    problem = SparseCoding(dictionary / dictionary.norm(dim=0), alpha=0.1)
    network = Lista(problem, generator(0, "weights"), num_layers=layers)
    obs = torch.rand(batch, 256, generator=rng)
    data = Batch(obs, 0.1 * torch.randn(batch, atoms, generator=rng))
    constraint = Distance()

    def loss() -> Tensor:
        path = network(obs, generator=generator(0, "start"))
        slack = constraint.slack(problem, path, data)
        return (path.states[-1] - data.target).square().sum(1).mean() + slack.sum()

    return network, loss


def glow_prox(depth: int, *, reversible: bool = True) -> tuple[nn.Module, Step]:
    """Two layers on pictures of 32x32."""
    problem = InverseImaging(Inpainting(size=12))
    obs = problem.instances(torch.rand(8, 3, 32, 32, generator=generator(0, "benchmark"))).obs
    flows = partial(FlowProximal, depth=depth, levels=2, width=32, reversible=reversible)
    network = ProximalGradient(problem, generator(0, "weights"), proximal=flows, num_layers=2)
    network.prepare(obs, generator(0, "prepare"))
    return network, lambda: network(obs, generator=generator(0, "start")).states[-1].square().mean()


def step(network: nn.Module, loss: Step) -> None:
    network.zero_grad(set_to_none=True)
    loss().backward()


def measure(
    make: Callable[..., tuple[nn.Module, Step]], sizes: dict[str, int], times: int
) -> dict[str, Any]:
    """Seconds, the median of ``times``, floating-point operations and bytes of a step."""
    network, loss = make(**sizes)
    seconds = [timed(lambda: step(network, loss))[0] for _ in range(times + 1)]
    network.zero_grad(set_to_none=True)
    with flop_counter() as flops, LiveMemory() as memory:
        step(network, loss)
    return {
        "seconds": statistics.median(seconds[1:]),
        "flops": flops.get_total_flops(),
        "bytes": memory.peak,
    }


def picture(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Time and memory against each size, relative to its smallest, both axes logarithmic."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("seconds", "bytes"), strict=True):
        for (name, rows), line in zip(found.items(), ("-o", "--s", "-.^", ":d", ":x"), strict=True):
            sizes = [row["size"] / rows[0]["size"] for row in rows]
            axes.plot(sizes, [row[what] / rows[0][what] for row in rows], line, ms=4, label=name)
        axes.plot(sizes, sizes, color="0.6", lw=0.8, label="proportional")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set(title={"seconds": "time of a step", "bytes": "memory of a step"}[what])
        axes.set(xlabel="size, in that of the first", ylabel="in that of the first")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one doubling: does it run")
    factors, times = ([1, 2], 1) if parser.parse_args().quick else ([1, 2, 4, 8], 7)
    keep_freed_memory()
    plain = partial(glow_prox, reversible=False)
    swept = [("layers", lista, LISTA), ("atoms", lista, LISTA), ("batch", lista, LISTA)]
    swept += [("depth", glow_prox, FLOWS), ("depth, plain autograd", plain, FLOWS)]
    peak, found = 2 * gemm_peak(2048, 2048), {}  # a multiplication is two operations
    print(f"{'':<32}{'size':>6}{'ms':>9}{'MiB':>9}{'GEMM limit':>13}")
    for name, make, sizes in swept:
        key = name.split(",")[0]
        title = f"{'LISTA' if make is lista else 'GLOW-Prox'}, {name}"
        for factor in factors:
            size = sizes[key] * factor
            row = {"size": size, **measure(make, {**sizes, key: size}, times)}
            row["fraction_of_limit"] = row["flops"] / peak / row["seconds"]
            found.setdefault(title, []).append(row)
            print(
                f"{title:<32}{size:>6}{1e3 * row['seconds']:>9.1f}{row['bytes'] / 2**20:>9.1f}"
                f"{row['fraction_of_limit']:>12.0%}"
            )
    picture(found, OUT / "growth.png")
    (OUT / "growth.json").write_text(json.dumps(found, indent=1) + "\n")
    print(OUT / "growth.png")


if __name__ == "__main__":
    main()
