"""Two processes that share each batch, one thread each, against one process with one thread.

    python scripts/benchmark_parallel.py [--quick]

Trains LISTA with constraints, both ways in turns, prints a table and writes
outputs/benchmarks/parallel.json. The limit is half the time of one process. Time is that of the steps,
without start-up and data; the median over epochs of one step each, since other processes come and go.
Where these keep the cores busy, the CPU time of a process says more. Both must reach the same losses, to
1e-4.
"""

from sdunroll.spinning import spin_briefly

spin_briefly()

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from sdunroll import distributed
from sdunroll.allocator import keep_freed_memory
from sdunroll.constraints import Distance
from sdunroll.data import Batch
from sdunroll.networks import Lista
from sdunroll.perturbations import LayerNoise
from sdunroll.primal_dual import ProportionalIntegral
from sdunroll.problems import SparseCoding
from sdunroll.provenance import peak_memory_bytes
from sdunroll.randomness import generator
from sdunroll.training import Training, TrainingSettings

SIZE = (1024, 1228, 10, 512)  # features, atoms, layers, batch
QUICK = (256, 307, 10, 256)


def make(size: tuple[int, int, int, int]) -> Training:
    """A constrained training of that size; its targets are not optimal, which costs the same."""
    features, atoms, layers, batch = size
    rng = generator(0, "benchmark")
    dictionary = torch.randn(features, atoms, generator=rng)
    problem = SparseCoding(dictionary / dictionary.norm(dim=0), alpha=0.1)
    obs = torch.rand(batch, features, generator=rng)
    data = Batch(obs, 0.1 * torch.randn(batch, atoms, generator=rng))
    settings = TrainingSettings(
        epochs=10**6,
        batch_size=batch,
        lr=1e-4,
        schedule="constant",
        optimizer=partial(torch.optim.Adam, fused=True),
        noise=LayerNoise,
    )
    return Training(
        settings,
        network=Lista(problem, generator(0, "weights"), num_layers=layers),
        problem=problem,
        constraint=Distance(),
        constrained=True,
        dual=ProportionalIntegral(k_i=0.3, k_p=3.0),
        train=data,
        val=Batch(data.obs[:8], data.target[:8]),
        order_seed=0,
        noise_seed=0,
        ranks=distributed.launched(),
    )


def work(size: tuple[int, int, int, int], steps: int, path: Path) -> None:
    """What each process does; the first writes the seconds and the losses of its steps to ``path``."""
    torch.set_num_threads(1)
    keep_freed_memory()
    training = make(size)
    seconds, cpu, losses = [], [], []
    with distributed.connected(torch.device("cpu")):
        for _ in range(steps):
            began, used = time.perf_counter(), time.process_time()
            (batch,) = training.loader
            loss, _ = training.steps.take(batch)
            seconds.append(time.perf_counter() - began)
            cpu.append(time.process_time() - used)
            losses.append(float(loss))
    if distributed.launched().rank == 0:
        peak = peak_memory_bytes()
        result = {"seconds": seconds, "cpu": cpu, "losses": losses, "peak": peak}
        path.write_text(json.dumps(result))


def run(processes: int, steps: int, *, quick: bool) -> dict:
    """The result of :func:`work` in so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        own = [__file__, "--worker", str(path), "--steps", str(steps), *["--quick"] * quick]
        launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [sys.executable, *launcher * (processes > 1), *own], env=environment, check=True
        )
        return json.loads(path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps, small size")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    size = QUICK if given.quick else SIZE
    if given.worker is not None:
        work(size, given.steps, given.worker)
        return
    rounds, steps = (1, 4) if given.quick else (4, 6)
    results: dict[int, list[dict]] = {1: [], 2: []}
    load = os.getloadavg()[0]
    for _ in range(rounds):
        for processes, found in results.items():
            found.append(run(processes, steps, quick=given.quick))
    # the first step of each warms up
    (alone, both), (alone_cpu, both_cpu) = (
        [
            statistics.median(value for one in results[count] for value in one[name][1:])
            for count in (1, 2)
        ]
        for name in ("seconds", "cpu")
    )
    pairs = zip(results[1][0]["losses"], results[2][0]["losses"], strict=True)
    gap = max(abs(one - other) / abs(one) for one, other in pairs)
    features, atoms, layers, batch = size
    row = {
        "what": f"LISTA step, m {features}, n {atoms}, L {layers}, batch {batch}: two processes",
        "seconds": both,
        "baseline": "one process",
        "baseline_seconds": alone,
        "ratio": alone / both,
        "limit_seconds": alone / 2,
        "fraction_of_limit": alone / 2 / both,
        "peak_bytes": results[2][0]["peak"],
        "baseline_peak_bytes": results[1][0]["peak"],
        "threads": 1,
        "cpu_seconds": both_cpu,
        "baseline_cpu_seconds": alone_cpu,
        "loss_gap": gap,
        "load_before": load,
    }
    print(row["what"])
    print(
        f"  step {both * 1e3:9.1f} ms   one process {alone * 1e3:.1f} ms   {row['ratio']:.2f} times as fast"
        f"   {100 * row['fraction_of_limit']:.0f} % of the limit"
    )
    print(
        f"  CPU time of a process: {both_cpu * 1e3:.1f} ms and {alone_cpu * 1e3:.1f} ms, "
        f"{alone_cpu / both_cpu:.2f} times as little"
    )
    print(f"  losses differ by {gap:.1e}; other processes kept {load:.1f} cores busy before")
    path = Path("outputs/benchmarks/parallel.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([row], indent=2) + "\n")
    print(path)
    if gap > 1e-4:
        sys.exit("the losses differ by more than 1e-4")


if __name__ == "__main__":
    main()
