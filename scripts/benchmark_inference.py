"""What a LISTA network's answer costs, for one problem and for 1,000, beside as many iterations of FISTA.

    python scripts/benchmark_inference.py [--quick]

How far either comes depends on the training: `sdunroll eval` of a run has the iterations, and the time,
that FISTA takes to the network's own distance and objective. The limit is the larger of two times measured
in the same run: of the network's multiplications at the GEMM peak, and of reading its weights once. Prints
a table and writes outputs/benchmarks/inference.json.
"""

from sdunroll.spinning import spin_briefly

spin_briefly()

import argparse
import json
import statistics
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from timing import gemm_peak, timed

from sdunroll.networks import Lista
from sdunroll.problems import SparseCoding
from sdunroll.randomness import generator
from sdunroll.solvers import fista

OUT = Path("outputs/benchmarks/inference.json")
LAYERS = 10
SIZES = {False: ((256, 307), (1024, 1228)), True: ((16, 20),)}  # features, atoms; by quick
REPEATS = {False: 15, True: 2}


def bytes_per_second() -> float:
    """How fast memory is read that no cache holds."""
    block = torch.ones(2**26)  # 256 MiB
    return block.nbytes / statistics.median(timed(block.sum)[0] for _ in range(9))


@torch.no_grad()
def measure(
    features: int, atoms: int, batch: int, repeats: int, bandwidth: float
) -> dict[str, Any]:
    """The network and FISTA in turn, the median of each."""
    rng = generator(0, "benchmark")
    dictionary = torch.nn.functional.normalize(torch.randn(features, atoms, generator=rng), dim=0)
    problem = SparseCoding(dictionary, alpha=0.1)
    network = Lista(problem, generator(0, "weights"), num_layers=LAYERS)
    obs = torch.rand(batch, features, generator=rng)
    start = torch.zeros(batch, atoms)

    def iterate() -> object:
        iterates = fista(
            dictionary, obs, 0.1, start=start, constant=problem.lipschitz, gram=problem.gram
        )
        return next(islice(iterates, LAYERS, None))

    ours, theirs = [], []
    for _ in range(repeats + 1):
        ours.append(timed(lambda: network(obs, generator=rng).output)[0])
        theirs.append(timed(iterate)[0])
    weights = sum(weight.numel() for weight in network.parameters())
    limit = max(batch * weights / gemm_peak(max(batch, 256), atoms), 4 * weights / bandwidth)
    seconds, baseline = statistics.median(ours[1:]), statistics.median(theirs[1:])
    return {
        "what": "inference",
        "sizes": {"m": features, "n": atoms, "layers": LAYERS, "problems": batch},
        "seconds": seconds,
        "baseline": f"{LAYERS} iterations of FISTA",
        "baseline_seconds": baseline,
        "ratio": baseline / seconds,
        "limit_seconds": limit,
        "fraction_of_limit": limit / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run")
    quick = parser.parse_args().quick
    bandwidth = bytes_per_second()
    rows = [
        measure(features, atoms, batch, REPEATS[quick], bandwidth)
        for features, atoms in SIZES[quick]
        for batch in (1, 1000)
    ]
    print(
        f"{LAYERS} layers\n{'m':>6}{'problems':>10}{'LISTA, ms':>11}{'FISTA, ms':>11}{'limit, ms':>11}"
    )
    for row in rows:
        times = (row["seconds"], row["baseline_seconds"], row["limit_seconds"])
        print(f"{row['sizes']['m']:>6}{row['sizes']['problems']:>10}"
              + "".join(f"{1000 * value:>11.3f}" for value in times))  # fmt: skip
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
