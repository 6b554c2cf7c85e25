"""Training steps on a GPU: as they are and replayed from a CUDA graph, of LISTA in fp32 and bf16 and of
GLOW-Prox, at the sizes of the paper.

    python scripts/benchmark_gpu.py [--quick]

Prints a table and writes outputs/benchmarks/gpu.json. The limit is the time that a step's matrix products
and convolutions, counted in the same run, take at the peak of a large product of its precision. Seconds
are the median over single steps, the host waiting for each.
"""

import argparse
import gc
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from benchmark_lista import make, our_training
from timing import timed

from sdunroll.commands.dry_run import flop_counter
from sdunroll.constraints import Distance, SplitGradient
from sdunroll.networks import FlowProximal, ProximalGradient
from sdunroll.perturbations import LayerNoise
from sdunroll.primal_dual import Ascent
from sdunroll.problems import Inpainting, InverseImaging
from sdunroll.randomness import generator
from sdunroll.training import Training, TrainingSettings
from sdunroll.training.captured import WARM_UP

OUT = Path("outputs/benchmarks/gpu.json")
LISTA = {"features": 1024, "atoms": 1228, "layers": 10, "batch": 512}
GLOW = {"depth": 18, "levels": 4, "width": 512, "layers": 5, "size": 64, "batch": 8}
SMALL_LISTA = {"features": 256, "atoms": 307, "layers": 10, "batch": 256}
SMALL_GLOW = {"depth": 4, "levels": 2, "width": 32, "layers": 4, "size": 32, "batch": 8}


def lista(sizes: dict[str, int], precision: str, cuda_graph: bool) -> Training:
    problem, batch = make(sizes["features"], sizes["atoms"], sizes["batch"])
    settings = {"precision": precision, "device": "cuda", "cuda_graph": cuda_graph}
    return our_training(problem, batch, sizes["layers"], Distance, **settings)


def glow_prox(sizes: dict[str, int], cuda_graph: bool) -> Training:
    problem = InverseImaging(Inpainting(size=sizes["size"] * 3 // 8))
    images = torch.rand(
        sizes["batch"], 3, sizes["size"], sizes["size"], generator=generator(0, "images")
    )
    batch = problem.instances(images)
    proximal = partial(
        FlowProximal, depth=sizes["depth"], levels=sizes["levels"], width=sizes["width"]
    )
    network = ProximalGradient(
        problem, generator(0, "weights"), proximal=proximal, num_layers=sizes["layers"]
    )
    settings = TrainingSettings(
        epochs=10**6,
        batch_size=sizes["batch"],
        lr=1e-6,
        schedule="constant",
        optimizer=partial(torch.optim.Adam, fused=True),
        noise=partial(LayerNoise, mode="fading"),
        noise_level=1.0,
    )
    batch = batch.to("cuda")
    network = network.to("cuda")
    network.prepare(batch.obs, generator(0, "prepare", "cuda"))
    return Training(
        settings,
        network=network,
        problem=problem.to("cuda"),
        constraint=SplitGradient(first_layer=2),
        constrained=True,
        dual=Ascent(rate=1e-3, every="batch"),
        train=batch,
        val=batch,
        order_seed=0,
        noise_seed=0,
        cuda_graph=cuda_graph,
    )


def step_seconds(training: Training, repetitions: int) -> float:
    def step() -> None:
        training.steps(training.train, lr=1e-6)
        torch.cuda.synchronize()

    for _ in range(WARM_UP + 2):  # until it has been recorded and replayed
        step()
    return statistics.median(timed(step)[0] for _ in range(repetitions))


def peak(dtype: torch.dtype, size: int = 8192) -> float:
    """Floating-point operations a second of a large product."""
    a = torch.randn(size, size, device="cuda").to(dtype)

    def product() -> None:
        a @ a
        torch.cuda.synchronize()

    product()
    return 2 * size**3 / statistics.median(timed(product)[0] for _ in range(9))


def measure(
    what: str, build: Callable[[bool], Training], ceiling: float, repetitions: int
) -> list[dict]:
    """Rows of the step as it is and replayed."""
    found: dict[bool, float] = {}
    for cuda_graph in (False, True):
        training = build(cuda_graph)
        found[cuda_graph] = step_seconds(training, repetitions)
        if not cuda_graph:
            with flop_counter() as flops:
                training.steps.take(training.train)
        del training
        gc.collect()
        torch.cuda.empty_cache()
    limit = flops.get_total_flops() / ceiling
    return [
        {
            "what": f"{what}, {'replayed' if cuda_graph else 'as it is'}",
            "seconds": seconds,
            "baseline": "as it is",
            "baseline_seconds": found[False],
            "ratio": found[False] / seconds,
            "limit_seconds": limit,
            "fraction_of_limit": limit / seconds,
            "peak_tflops": ceiling / 1e12,
            "device": torch.cuda.get_device_name(),
        }
        for cuda_graph, seconds in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions")
    quick = parser.parse_args().quick
    if not torch.cuda.is_available():
        raise SystemExit("benchmark_gpu: expected a CUDA device, found none that PyTorch can use")
    torch.backends.cudnn.allow_tf32 = False  # as the commands set it
    torch.backends.cudnn.deterministic = True
    sizes, glow = (SMALL_LISTA, SMALL_GLOW) if quick else (LISTA, GLOW)
    repetitions = 5 if quick else 20
    peaks = {"fp32": peak(torch.float32), "bf16": peak(torch.bfloat16)}
    rows = []
    for precision, ceiling in peaks.items():
        build = partial(lista, sizes, precision)
        rows += measure(f"LISTA {precision}", build, ceiling, repetitions)
    rows += measure("GLOW-Prox fp32", partial(glow_prox, glow), peaks["fp32"], 5)
    print(f"{torch.cuda.get_device_name()}, {sizes}, {glow}")
    for row in rows:
        print(
            f"{row['what']:<26}{1000 * row['seconds']:>10.2f} ms, {row['ratio']:.2f} times as fast as it "
            f"is, {100 * row['fraction_of_limit']:.0f} % of the limit"
        )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
