"""What the reproduce scripts share: runs made by the `sdunroll` commands, each of them once."""

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REFERENCE = Path("outputs/reference")


@dataclass(frozen=True)
class Study:
    """One setting, trained with each seed.

    Attributes:
        name: of its run directories, ``NAME_seedN``.
        overrides: of `sdunroll train`.
        perturbations: levels by perturbation, for `sdunroll perturb`.
        seeds: at most these of the seeds that are asked for; None for all.
    """

    name: str
    overrides: Sequence[str]
    perturbations: Mapping[str, str] = field(default_factory=dict)
    seeds: Sequence[int] | None = None


def call(arguments: list[str], threads: int) -> None:
    """One `sdunroll` command, printed as a user would type it."""
    print("sdunroll", shlex.join(arguments), flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "-m", "sdunroll", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"sdunroll {shlex.join(arguments)} failed:\n{done.stderr}")


def make_run(runs: Path, study: Study, seed: int, threads: int) -> None:
    """Train, perturb and evaluate one run, unless that is done."""
    folder = runs / f"{study.name}_seed{seed}"
    if not (folder / "summary.json").exists():
        begun = (folder / "checkpoints" / "last.pt").exists()
        fresh = [*study.overrides, f"seed={seed}", f"hydra.run.dir={folder}"]
        call(["train", *([f"resume={folder}"] if begun else fresh)], threads)
    for perturbation, levels in study.perturbations.items():
        if not (folder / "perturb" / f"{perturbation}.json").exists():
            arguments = [f"run={folder}", f"perturbation={perturbation}", f"levels={levels}"]
            call(["perturb", *arguments], threads)
    if not (folder / "eval" / "metrics.json").exists():
        call(["eval", f"run={folder}"], threads)


def make_all(runs: Path, parts: Mapping[str, Sequence[Study]], description: str) -> None:
    """Read the command line and make the runs that it asks for."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, a thread each")
    parser.add_argument("--only", nargs="*", default=list(parts), choices=[*parts])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    threads = max(1, math.floor((os.cpu_count() or 1) / options.jobs))
    wanted = [
        (study, seed)
        for part in options.only
        for seed in options.seeds
        for study in parts[part]
        if study.seeds is None or seed in study.seeds
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda job: make_run(runs, *job, threads), wanted))


def finished(runs: Path, study: Study) -> dict[int, Path]:
    """The finished runs of a study, by seed."""
    done = sorted(runs.glob(f"{study.name}_seed*/eval/metrics.json"))
    return {int(path.parts[-3].rsplit("seed", 1)[1]): path.parents[1] for path in done}


def read(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a run directory."""
    value: dict[str, Any] = json.loads((folder / name).read_text())
    return value


def origin(folder: Path) -> dict[str, Any]:
    """Where a run's figures come from: its overrides, revision, versions, cost."""
    provenance = read(folder, "provenance.json")
    return {
        "run": str(folder),
        "overrides": provenance["overrides"],
        "git": provenance["git"],
        "versions": provenance["versions"],
        "seconds": provenance["wall_seconds"],
        "peak_memory_gib": provenance["peak_memory_bytes"] / 2**30,
    }


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table whose first line is its header."""
    header, *rows = lines
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])


def write(name: str, found: Mapping[str, Any], table: str) -> None:
    """Write ``NAME.json`` and ``NAME.md`` and print the table."""
    REFERENCE.mkdir(parents=True, exist_ok=True)
    (REFERENCE / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    (REFERENCE / f"{name}.md").write_text(table + "\n")
    print(table)
