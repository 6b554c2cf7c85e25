"""The certified optimum of LASSO problems against scikit-learn's coordinate descent at an equal duality
gap; and what it takes to prepare data of CIFAR-10's size.

    python scripts/benchmark_optimum.py [--quick] [--only optimum|preparation]

Problems are photo patches over a dictionary learned from others. Both solvers run on one thread until
the largest relative duality gap of any problem, measured by the same formula in float64, is at most 1e-5.
scikit-learn gets the Gram matrix and the largest of the tolerances 1e-2, 1e-3 .. that comes to that. The
limit is the time that the matrix products of the solver's iterations take at the float32 GEMM peak
measured in the same run. Preparation, of a dictionary and the targets of 50,000 patches of 32x32, runs in a
process of its own on all cores; its memory is the peak resident set. Prints a table and writes
outputs/benchmarks/optimum.json.
"""

from sdunroll.spinning import spin_briefly

spin_briefly()

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso
from timing import gemm_peak, timed
from torch import Tensor

from sdunroll.cache import Cache
from sdunroll.data import Photos
from sdunroll.problems import sparse_coding
from sdunroll.solvers import DictionaryLearning, duality_gap, solve_lasso

OUT = Path("outputs/benchmarks/optimum.json")
ALPHA, GAP = 0.1, 1e-5
PROBLEMS = {False: {"size": 16, "count": 2000}, True: {"size": 6, "count": 64}}  # by quick
PREPARED = {False: {"size": 32, "count": 50_000}, True: {"size": 6, "count": 512}}
MEMORY = 6 * 2**30  # bytes that should do


def patches(size: int, count: int) -> tuple[Tensor, Tensor]:
    """A dictionary (m, n), 1.2 atoms a pixel, and other patches (count, m)."""
    source = Photos(size=size, num_train=2000, num_val=1, num_test=count)
    learner = DictionaryLearning(alpha=ALPHA, passes=1)
    dictionary = learner(source.signals("train").flatten(1), int(1.2 * size**2))
    return dictionary, source.signals("test").flatten(1)


def coordinate_descent(dictionary: Tensor, obs: Tensor) -> tuple[float, float, float]:
    """Seconds, worst gap and tolerance of scikit-learn's Lasso, which minimises P / m."""
    atoms, signals = dictionary.double().numpy(), obs.double().numpy()
    for exponent in range(2, 12):
        seconds, codes = timed(lambda tolerance=10.0**-exponent: _fit(atoms, signals, tolerance))
        gap = duality_gap(dictionary, obs, torch.from_numpy(codes), ALPHA).max().item()
        if gap <= GAP:
            return seconds, gap, 10.0**-exponent
    raise RuntimeError(f"scikit-learn did not come to a gap of {GAP:g}, but to {gap:.1e}")


def _fit(atoms: Any, signals: Any, tolerance: float) -> Any:
    solver = Lasso(
        ALPHA / len(atoms), fit_intercept=False, precompute=atoms.T @ atoms,
        tol=tolerance, max_iter=100_000,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return solver.fit(atoms, signals.T).coef_


def compare(size: int, count: int) -> dict[str, Any]:
    """Ours against theirs."""
    torch.set_num_threads(1)
    dictionary, obs = patches(size, count)
    solve_lasso(dictionary, obs[:8], ALPHA, tolerance=GAP)  # the first call takes longer
    runs = [timed(lambda: solve_lasso(dictionary, obs, ALPHA, tolerance=GAP)) for _ in range(3)]
    seconds, solution = statistics.median(run[0] for run in runs), runs[0][1]
    theirs, gap, tolerance = coordinate_descent(dictionary, obs)
    atoms = dictionary.shape[1]
    products = float(solution.iterations.sum()) * atoms**2
    limit = products / gemm_peak(min(count, 1024), atoms)
    return {
        "what": "optimum",
        "sizes": {"problems": count, "m": len(dictionary), "n": atoms},
        "seconds": seconds,
        "gap": solution.gap.max().item(),
        "baseline": f"scikit-learn Lasso, precomputed Gram matrix, tol {tolerance:g}",
        "baseline_seconds": theirs,
        "baseline_gap": gap,
        "ratio": theirs / seconds,
        "limit_seconds": limit,
        "fraction_of_limit": limit / seconds,
    }


def prepare(size: int, count: int) -> dict[str, Any]:
    """Dictionary and certified targets of ``count`` patches, in this process."""
    source = Photos(size=size, num_train=count, num_val=1, num_test=1)
    learner = DictionaryLearning(alpha=ALPHA, passes=4)
    with tempfile.TemporaryDirectory() as folder:
        learning, problem = timed(
            lambda: sparse_coding(
                source, Cache(Path(folder)), alpha=ALPHA, overcompleteness=1.2, learner=learner
            )
        )
        obs = source.signals("train").flatten(1)
        solving, targets = timed(lambda: problem.optimum(obs))
        worst = problem.certificate(targets, obs).max().item()
    return {
        "what": "preparation",
        "sizes": {"patches": count, "m": size**2, "n": targets.shape[1]},
        "dictionary_seconds": learning,
        "optimum_seconds": solving,
        "gap": worst,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "limit_bytes": MEMORY,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run")
    parser.add_argument("--only", choices=["optimum", "preparation"])
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        print(json.dumps(prepare(**PREPARED[options.quick])))
        return
    rows = []
    if options.only != "preparation":
        row = compare(**PROBLEMS[options.quick])
        rows.append(row)
        shown = ", ".join(f"{name} {value}" for name, value in row["sizes"].items())
        print(f"optimum, {shown}, one thread\n{'':<14}{'seconds':>9}{'worst gap':>12}")
        print(f"{'sdunroll':<14}{row['seconds']:>9.2f}{row['gap']:>12.1e}")
        print(f"{'scikit-learn':<14}{row['baseline_seconds']:>9.2f}{row['baseline_gap']:>12.1e}")
        print(
            f"{row['ratio']:.1f} times faster; its iterations' matrix products alone would take "
            f"{100 * row['fraction_of_limit']:.0f} % of the time\n"
        )
    if options.only != "optimum":
        command = [sys.executable, __file__, "--prepare", *["--quick"] * options.quick]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        shown = ", ".join(f"{name} {value}" for name, value in row["sizes"].items())
        print(
            f"preparation, {shown}: dictionary {row['dictionary_seconds']:.1f} s, optimum "
            f"{row['optimum_seconds']:.1f} s (worst gap {row['gap']:.1e}); memory "
            f"{row['peak_bytes'] / 2**30:.2f} GiB of {row['limit_bytes'] / 2**30:.0f}"
        )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
