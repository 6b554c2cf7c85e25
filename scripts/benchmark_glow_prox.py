"""A training step of GLOW-Prox: reversible backpropagation against plain autograd, time and memory.

    python scripts/benchmark_glow_prox.py [--quick]

Each variant runs in a process of its own, so that its peak memory is its own: growth of the resident
set over what it was before the first step. The limit is the time that the convolutions' multiplications
alone would take at the matrix-product peak measured in the same run. Writes
outputs/benchmarks/glow_prox.json.
"""

from sdunroll.spinning import spin_briefly

spin_briefly()

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from timing import gemm_peak

from sdunroll.allocator import keep_freed_memory
from sdunroll.networks import FlowProximal, ProximalGradient
from sdunroll.problems import Inpainting, InverseImaging
from sdunroll.randomness import generator

OUT = Path("outputs/benchmarks/glow_prox.json")
FULL = {"depth": 18, "levels": 4, "layers": 5, "size": 64, "batch": 8, "width": 64}
QUICK = {"depth": 2, "levels": 2, "layers": 2, "size": 16, "batch": 2, "width": 8}


def network_of(sizes: dict[str, int], reversible: bool) -> tuple[ProximalGradient, torch.Tensor]:
    problem = InverseImaging(Inpainting(size=sizes["size"] * 3 // 8))
    images = torch.rand(sizes["batch"], 3, sizes["size"], sizes["size"])
    batch = problem.instances(images)
    proximal = partial(
        FlowProximal,
        depth=sizes["depth"],
        levels=sizes["levels"],
        width=sizes["width"],
        shift_bound=0.5,
        reversible=reversible,
    )
    network = ProximalGradient(
        problem, generator(0, "weights"), proximal=proximal, num_layers=sizes["layers"]
    )
    network.prepare(batch.obs, generator(0, "prepare"))
    return network, batch.obs


def multiplications(network: ProximalGradient, obs: torch.Tensor) -> int:
    """Of one forward pass, in the convolutions."""
    total = 0

    def count(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(module, torch.nn.Conv2d)
        total += output.numel() * module.weight[0].numel()

    hooks = [
        module.register_forward_hook(count)
        for module in network.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    with torch.no_grad():
        network(obs, generator=generator(0, "start"))
    for hook in hooks:
        hook.remove()
    return total


def measure(sizes: dict[str, int], reversible: bool, steps: int) -> dict[str, float]:
    """Seconds a step and the growth of memory; in this process."""
    keep_freed_memory()
    network, obs = network_of(sizes, reversible)
    work = multiplications(network, obs)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        network.zero_grad(set_to_none=True)
        path = network(obs, generator=generator(0, "start"))
        path.states[-1].square().sum().backward()
        seconds.append(time.perf_counter() - began)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": min(seconds[1:]),
        "bytes": (after - before) * 1024,
        "multiplications": work,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run")
    parser.add_argument("--measure", choices=["plain", "reversible"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes, steps = (QUICK, 1) if options.quick else (FULL, 2)
    if options.measure:
        print(json.dumps(measure(sizes, options.measure == "reversible", steps)))
        return
    found = {}
    for name in ("plain", "reversible"):
        command = [sys.executable, __file__, "--measure", name, *["--quick"] * options.quick]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout)
    plain, reversible = found["plain"], found["reversible"]
    # in forward passes: one forward, two backward, and one more to rebuild
    limit = 4 * plain["multiplications"] / gemm_peak(*[256 if options.quick else 4096] * 2)
    row = {
        "what": "training step, reversible",
        "sizes": sizes,
        "seconds": reversible["seconds"],
        "baseline": "training step, plain autograd",
        "baseline_seconds": plain["seconds"],
        "ratio": plain["seconds"] / reversible["seconds"],
        "limit_seconds": limit,
        "fraction_of_limit": limit / reversible["seconds"],
        "peak_bytes": reversible["bytes"],
        "baseline_peak_bytes": plain["bytes"],
    }
    shown = ", ".join(f"{name} {value}" for name, value in sizes.items())
    print(f"{shown}, {torch.get_num_threads()} threads")
    print(f"{'':<14}{'s/step':>8}{'memory':>12}")
    for name, values in found.items():
        print(f"{name:<14}{values['seconds']:>8.3f}{values['bytes'] / 2**20:>8.0f} MiB")
    print(
        f"reversible / plain: time {reversible['seconds'] / plain['seconds']:.2f}, memory "
        f"{reversible['bytes'] / max(plain['bytes'], 1):.2f}; matrix products alone would take "
        f"{100 * row['fraction_of_limit']:.0f} % of the reversible step"
    )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps([row], indent=1) + "\n")


if __name__ == "__main__":
    main()
