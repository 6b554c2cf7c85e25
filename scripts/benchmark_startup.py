"""How long each command takes to start: its help, the refusal of a misspelt override, of a missing run.

    python scripts/benchmark_startup.py [--quick]

The baseline, and the limit of what needs torch, is `python -c "import torch, hydra"`; of what does not,
`python -c pass`. Each is the fastest of some calls in turn. Prints a table and writes
outputs/benchmarks/startup.json.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

OUT = Path("outputs/benchmarks/startup.json")
SDUNROLL = [sys.executable, "-m", "sdunroll"]
COMMANDS = ("train", "eval", "perturb", "report")
CALLS = {
    "python": [sys.executable, "-c", "pass"],
    "import torch, hydra": [sys.executable, "-c", "import torch, hydra"],
    "sdunroll --help": [*SDUNROLL, "--help"],
    **{f"{name} --help": [*SDUNROLL, name, "--help"] for name in COMMANDS},
    **{f"{name} sede=1": [*SDUNROLL, name, "sede=1"] for name in COMMANDS},
    "eval run=missing": [*SDUNROLL, "eval", "run=missing"],  # torch is there, and no run
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one call of each: does it run")
    times = 1 if parser.parse_args().quick else 5
    seconds = dict.fromkeys(CALLS, float("inf"))
    for _ in range(times):
        for name, call in CALLS.items():
            began = time.perf_counter()
            subprocess.run(call, capture_output=True, check=False)
            seconds[name] = min(seconds[name], time.perf_counter() - began)
    base = seconds["import torch, hydra"]
    print(f"{'':<24}{'seconds':>9}{'of the import of torch':>25}")
    for name, value in seconds.items():
        print(f"{name:<24}{value:>9.2f}{value / base:>25.2f}")
    rows = [
        {"what": name, "seconds": value, "baseline_seconds": base, "ratio": value / base,
         "limit_seconds": seconds["python"]}
        for name, value in seconds.items()
    ]  # fmt: skip
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
