"""Runs found on disk, with what was saved of them: what a report is made of."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sdunroll import failed
from sdunroll.checks import UserError, override
from sdunroll.lock import in_use
from sdunroll.runs import Run, RunError
from sdunroll.suggest import own_configs

# settings that do not make another method
OWN = (
    "seed", "seeds", "device", "threads", "cuda_graph", "logger", "resume", "trust", "sweep", "retry",
    "dry_run",
)  # fmt: skip
# data that a checksum makes the same wherever they lie
ANYWHERE = ("sdunroll.data.Cifar10",)
# overrides that a method's name leaves out
HIDDEN = (*OWN, "training.stop_after", "hydra", "launcher", "sweeper")
SIGNS = ("config.yaml", failed.NAME, "train.lock")  # of a run: saved, failed before, or just begun


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        folder: its directory.
        config: its configuration.
        provenance, summary, metrics, cost: the files of these names; None if missing.
        perturbations: the files in ``perturb/`` by name.
        notes: what is wrong with it, a line each.
    """

    folder: Path
    config: dict[str, Any]
    provenance: dict[str, Any]
    summary: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None
    cost: dict[str, Any] | None = None
    perturbations: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def seeds(self) -> tuple[tuple[str, int], ...]:
        """The seed, and those of its parts that were set by themselves, as overrides: (key, value)."""
        seed = int(self.config["seed"])
        parts = self.config.get("seeds", {}).items()
        own = sorted(
            (f"seeds.{part}", int(value)) for part, value in parts if value not in (None, seed)
        )
        return ("seed", seed), *own

    @property
    def overrides(self) -> list[str]:
        """What was typed, but for the seeds, the machine and the place."""
        given: list[str] = self.provenance.get("overrides", [])
        return sorted(item for item in given if not _is_hidden(item))

    @property
    def config_folder(self) -> list[str]:
        """The options that name a folder of configurations of the user's own, if any."""
        folders = own_configs(self.provenance.get("command_line", []))
        return [word for folder in folders for word in ("--config-dir", str(folder))]

    @property
    def key(self) -> str:
        """The hash of all that makes the method, the folder of its data with it."""
        root = data_settings(self.config).get("root")
        key = method_key(self.config)
        return key if root is None else hashlib.sha256(f"{key} {root}".encode()).hexdigest()


def method_key(config: Mapping[str, Any]) -> str:
    """The hash of a resolved configuration, without the seeds, the machine and paths."""
    kept = {name: value for name, value in config.items() if name not in OWN}
    kept["training"] = {**kept["training"], "stop_after": None}
    kept["data"] = {name: value for name, value in kept["data"].items() if name != "root"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def data_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides what the data are."""
    settings = dict(config.get("data") or {})
    if settings.get("_target_") in ANYWHERE:
        settings.pop("root", None)
    return settings


def _is_hidden(override: str) -> bool:
    name = override.lstrip("+~").split("=")[0]
    return any(name == hidden or name.startswith(f"{hidden}.") for hidden in HIDDEN)


def find(patterns: Sequence[str]) -> list[Record]:
    """The runs at and below the folders that match ``patterns``, folders or globs.

    Errors: :class:`UserError` for a pattern of which there is none.
    """
    found: dict[Path, Record] = {}
    empty = []
    for pattern in patterns:
        folders = set(_folders(pattern))
        records = {folder: _read(folder) for folder in folders - found.keys()}
        found |= {folder: record for folder, record in records.items() if record is not None}
        if folders.isdisjoint(found):
            empty.append(pattern)
    if empty:
        raise UserError(
            f"runs: expected run directories at or below {', '.join(empty)}, found none; "
            "`sdunroll train` prints a run's directory as its last line"
        )
    return [found[folder] for folder in sorted(found)]


def _folders(pattern: str) -> Iterator[Path]:
    path = Path(pattern)
    roots = [path] if path.exists() else sorted(Path(path.anchor or ".").glob(_relative(path)))
    for root in roots:
        if any((root / sign).is_file() for sign in SIGNS):
            yield root
        if root.is_dir():
            yield from (found.parent for sign in SIGNS for found in root.rglob(sign))


def _relative(path: Path) -> str:
    return str(path.relative_to(path.anchor)) if path.anchor else str(path)


def _read(folder: Path) -> Record | None:
    """The run in ``folder``; None if that is no run's; what cannot be read becomes a note."""
    reason = failed.reason(folder)
    state = None if reason is None else f"failed: {reason}"
    if in_use(folder / "train.lock"):
        state = "running"
    if not all((folder / name).is_file() for name in ("config.yaml", "provenance.json")):
        return None if state is None else Record(folder, {"seed": -1}, {}, notes=[state])
    try:
        run = Run(folder)
    except RunError as error:
        return Record(folder, {"seed": -1}, {}, notes=[str(error)])
    notes: list[str] = []

    def optional(name: str) -> dict[str, Any] | None:
        if not (folder / name).is_file():
            return None
        try:
            return run.read_json(name)
        except RunError as error:
            notes.append(str(error))
            return None

    summary, metrics = optional("summary.json"), optional("eval/metrics.json")
    cost = optional("eval/cost.json")
    perturbations = {
        path.stem: found
        for path in sorted((folder / "perturb").glob("*.json"))
        if (found := optional(f"perturb/{path.name}")) is not None
    }
    if summary is None:
        epochs = f"{len(run.history())} of {run.config.training.epochs} epochs"
        notes.append(f"{state or 'not finished'}: {epochs}")
    else:
        best = summary["best_epoch"]
        stale = [
            name
            for name, found in {"eval": metrics, **perturbations}.items()
            if found is not None and found.get("epoch", best) != best
        ]
        if stale:
            notes.append(
                f"made with other weights than the best epoch's, and left out: {', '.join(stale)}; "
                "call eval and perturb again"
            )
        if metrics is None:
            notes.append(f"not evaluated: call sdunroll eval {override('run', folder)}")
        metrics, cost = (None, None) if "eval" in stale else (metrics, cost)
        perturbations = {name: got for name, got in perturbations.items() if name not in stale}
    config = OmegaConf.to_container(run.config)
    assert isinstance(config, dict)
    return Record(
        folder, {str(name): value for name, value in config.items()}, run.provenance, summary,
        metrics, cost, perturbations, notes,
    )  # fmt: skip
