"""What the reproduce scripts share: a suite of studies at several scales, each run made once.

A run's directory is named by its study, its seed and the hash of its resolved configuration (without
device, threads and paths), so that what is done is not done again and a changed setting is.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from commands import CommandFailed, Commands
from filelock import FileLock, Timeout
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sdunroll import cli
from sdunroll.report.collect import method_key

REFERENCE = Path("outputs/reference")
State = Literal["done", "running", "failed", "begun", "missing"]


@dataclass(frozen=True)
class Study:
    """One setting, trained with each seed.

    Attributes:
        name: of its run directories. overrides: of `sdunroll train`.
        perturbations: levels by perturbation, for `sdunroll perturb`.
        seeds: at most these of the scale's seeds, unless others are asked for; None for all.
        length: of its training, as a multiple of the others'; for the estimate of time alone.
    """

    name: str
    overrides: Sequence[str]
    perturbations: Mapping[str, str] = field(default_factory=dict)
    seeds: Sequence[int] | None = None
    length: float = 1.0


@dataclass(frozen=True)
class Scale:
    """How much of a suite is done.

    Attributes:
        parts: the parts that belong to it, by name, unless others are asked for.
        seeds: of each study.
        overrides: added to those of each study.
        levels: of perturbations, in place of the studies' own.
        alone: whether it has no parts but these, and they are at no other scale.
        minutes: that one run of length 1 takes, about. machine: on what; both for the estimate that is
            printed before it starts.
    """

    parts: Sequence[str]
    seeds: Sequence[int]
    minutes: float
    machine: str
    overrides: Sequence[str] = ()
    levels: Mapping[str, str] = field(default_factory=dict)
    alone: bool = False


@dataclass(frozen=True)
class Job:
    """One run of a study: its folder, the arguments of `sdunroll train`, its perturbations."""

    study: Study
    seed: int
    folder: Path
    overrides: list[str]
    perturbations: Mapping[str, str]

    def state(self) -> State:
        """What has become of it."""
        perturbed = (self.folder / f"perturb/{name}.json" for name in self.perturbations)
        trained = (self.folder / "summary.json").exists()
        if trained and self.is_evaluated() and all(path.exists() for path in perturbed):
            return "done"
        lock = self.beside("lock")
        try:
            if lock.exists():
                with FileLock(lock, timeout=0):
                    pass
        except Timeout:
            return "running"
        if self.beside("failed").exists():
            return "failed"
        return "begun" if (self.folder / "history.csv").exists() else "missing"

    def is_evaluated(self) -> bool:
        """Whether all that `sdunroll eval` writes is there."""
        wanted = ("metrics.json", "cost.json", "figures/per_layer.png")
        return all((self.folder / "eval" / name).exists() for name in wanted)

    def beside(self, ending: str) -> Path:
        """A file beside the run directory."""
        return self.folder.with_name(f"{self.folder.name}.{ending}")


class Suite:
    """The studies of one script and its command line.

    Args:
        name: of the folder below outputs/. parts: studies by part. scales: by name.
        description: for --help.
    """

    def __init__(
        self,
        name: str,
        parts: Mapping[str, Sequence[Study]],
        scales: Mapping[str, Scale],
        description: str,
    ) -> None:
        parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--scale", choices=[*scales], default="small")
        parser.add_argument("--status", action="store_true", help="say what is done, and end")
        parser.add_argument("--jobs", type=_positive, default=2, help="runs at once")
        parser.add_argument("--only", nargs="+", choices=[*parts], help="parts of it")
        parser.add_argument("--seeds", nargs="+", type=int, help="others than the scale's")
        self.options = parser.parse_args()
        self.parts = parts
        self.scale = scales[self.options.scale]
        allowed = self.scale.parts if self.scale.alone else _shared(parts, scales)
        if wrong := [part for part in self.options.only or () if part not in allowed]:
            parser.error(
                f"--only: expected of {', '.join(allowed)} at --scale {self.options.scale}, "
                f"got {', '.join(wrong)}"
            )
        self.runs = Path("outputs") / name / self.options.scale
        small = self.options.scale == "small"
        self.results = REFERENCE if small else self.runs / "report"
        self.call = Commands(threads=max(1, (os.cpu_count() or 1) // self.options.jobs))

    def jobs(self, parts: Sequence[str] | None = None) -> list[Job]:
        """The runs that are asked for; of ``parts``, those with any seed that there may be."""
        chosen = parts or self.options.only or self.scale.parts
        asked = self.options.seeds or self.scale.seeds
        seeds = asked if parts is None else sorted({*self.scale.seeds, *asked})
        cli.register_resolvers()
        with initialize_config_dir(str(cli.config_folder()), version_base="1.3"):
            found = [
                self._job(study, seed)
                for seed in seeds
                for part in chosen
                for study in self.parts[part]
                if study.seeds is None or seed in {*study.seeds, *(self.options.seeds or ())}
            ]
        return [*{job.folder: job for job in found}.values()]  # a study may be in several parts

    def _job(self, study: Study, seed: int) -> Job:
        overrides = [*study.overrides, *self.scale.overrides, f"seed={seed}"]
        try:
            config = OmegaConf.to_container(compose("train", overrides), resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            reason = cli.one_line(error, "train", overrides)
            raise SystemExit(f"{study.name} does not exist at this scale: {reason}") from None
        assert isinstance(config, dict)
        key = method_key({str(name): value for name, value in config.items()})
        folder = self.runs / f"{study.name}_seed{seed}_{key[:8]}"
        levels = {
            name: self.scale.levels.get(name, levels)
            for name, levels in study.perturbations.items()
        }
        return Job(study, seed, folder, overrides, levels)

    def run(self) -> None:
        """Make the runs that are missing, or say with --status which are. Ends the program if one
        fails, after all others are done."""
        jobs = self.jobs()
        states = [job.state() for job in jobs]
        if self.options.status:
            for job, state in zip(jobs, states, strict=True):
                print(f"{state:8} {job.folder}")
            raise SystemExit(0)
        missing = [job for job, state in zip(jobs, states, strict=True) if state != "done"]
        length = sum(job.study.length for job in missing)
        left = _duration(length * self.scale.minutes / self.options.jobs)
        print(
            f"{len(jobs)} runs, {len(missing)} to do, about {left} on {self.scale.machine}",
            flush=True,
        )
        bad, begun, finished = [], time.monotonic(), 0.0
        with ThreadPoolExecutor(self.options.jobs) as pool:
            results = pool.map(lambda job: _make(job, self.call), missing)
            for number, (job, good) in enumerate(zip(missing, results, strict=True), 1):
                bad += [] if good else [str(job.folder)]
                finished += job.study.length
                took = (time.monotonic() - begun) / 60
                left = _duration(took / finished * (length - finished))
                print(f"{number} of {len(missing)} finished, about {left} left", flush=True)
        if bad:
            raise SystemExit(f"not done: {', '.join(bad)}; see --status, then run again")

    def finished(self, parts: Sequence[str]) -> dict[str, dict[int, Path]]:
        """The finished runs of ``parts``, by study and seed."""
        found: dict[str, dict[int, Path]] = {}
        for job in self.jobs(parts):
            if job.state() == "done":
                found.setdefault(job.study.name, {})[job.seed] = job.folder
        return found

    def report(self, name: str, parts: Sequence[str]) -> None:
        """`sdunroll report` over the finished runs of ``parts``."""
        folders = [str(job.folder) for job in self.jobs(parts) if job.state() == "done"]
        if folders:
            arguments = [f"runs=[{','.join(folders)}]", f"hydra.run.dir={self.results / name}"]
            self.call(["report", *arguments])

    def write(self, name: str, found: Mapping[str, Any], table: str) -> None:
        """Write ``NAME.json`` and ``NAME.md`` among the results and print the table."""
        self.results.mkdir(parents=True, exist_ok=True)
        (self.results / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        (self.results / f"{name}.md").write_text(table + "\n")
        print(table)


def _positive(text: str) -> int:
    """A number of jobs, for the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


def _shared(parts: Mapping[str, Sequence[Study]], scales: Mapping[str, Scale]) -> list[str]:
    """The parts of no scale that stands alone."""
    kept = {part for scale in scales.values() if scale.alone for part in scale.parts}
    return [part for part in parts if part not in kept]


def _duration(minutes: float) -> str:
    return f"{minutes / 60:.1f} hours" if minutes > 90 else f"{minutes:.0f} minutes"


def _make(job: Job, call: Commands) -> bool:
    """Train, perturb and evaluate a run as far as that is not done; whether it is done now."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(job.beside("lock"), timeout=2):  # --status may hold it for a moment
            job.beside("failed").unlink(missing_ok=True)
            _call_missing(job, call)
    except Timeout:
        print(f"{job.folder}: another process is at it", flush=True)
        return False
    except CommandFailed as error:
        job.beside("failed").write_text(f"{error}\n")
        print(error, file=sys.stderr, flush=True)
        return False
    return True


def _call_missing(job: Job, call: Commands) -> None:
    folder = job.folder
    if not (folder / "summary.json").exists():
        begun = (folder / "checkpoints" / "last.pt").exists()
        fresh = [*job.overrides, f"hydra.run.dir={folder}"]
        call(["train", *([f"resume={folder}"] if begun else fresh)])
    # a process for all that have the same levels, or each its own
    together: dict[tuple[str, ...], list[str]] = {}
    for name, levels in job.perturbations.items():
        if not (folder / "perturb" / f"{name}.json").exists():
            given = () if levels == _own_levels(name) else (f"levels={levels}",)
            together.setdefault(given, []).append(name)
    for given, names in together.items():
        several = ["-m"] * (len(names) > 1)
        call(["perturb", *several, f"run={folder}", f"perturbation={','.join(names)}", *given])
    if not job.is_evaluated():
        call(["eval", f"run={folder}"])


@cache
def _own_levels(perturbation: str) -> str:
    """Those that a perturbation takes unless it is told."""
    own = OmegaConf.load(cli.config_folder() / "perturbation" / f"{perturbation}.yaml").levels
    return str(list(own)).replace(" ", "")
