"""Runs found on disk, gathered by setting: what a report is made of.

Runs whose configurations agree but for the seeds, the device, threads and paths are one method.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sdunroll import failed
from sdunroll.checks import UserError
from sdunroll.lock import in_use
from sdunroll.runs import Run, RunError

# settings that do not make another method
OWN = (
    "seed", "seeds", "device", "threads", "cuda_graph", "logger", "resume", "trust", "sweep", "retry",
    "dry_run",
)  # fmt: skip
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
    def key(self) -> str:
        """The hash of all that makes the method."""
        return method_key(self.config)


@dataclass(frozen=True)
class Method:
    """Runs of one setting, a seed each.

    Attributes:
        name: the overrides that tell it from the others; without any, "constrained" or "standard".
        records: its finished runs, by their seeds.
    """

    name: str
    records: list[Record]

    def values(self, *path: str | int) -> list[float]:
        """A figure of each run: what stands at ``path`` in its files, of the runs that have it."""
        found = []
        for record in self.records:
            value: Any = {
                "summary": record.summary,
                "metrics": record.metrics,
                "provenance": record.provenance,
                "cost": record.cost,
            }
            for part in path:
                if isinstance(value, dict):
                    value = value.get(part)
                elif isinstance(value, list) and isinstance(part, int) and part < len(value):
                    value = value[part]
                else:
                    value = None
            if value is not None:
                found.append(float(value["mean"] if isinstance(value, dict) else value))
        return found

    def levels(self, perturbation: str) -> list[float]:
        """The levels of a perturbation that some run was disturbed at."""
        found = [record.perturbations.get(perturbation, {}) for record in self.records]
        return sorted({row["level"] for result in found for row in result.get("levels", [])})

    def at_level(self, perturbation: str, level: float, name: str) -> list[float]:
        """A figure of each run at one level of a perturbation, of the runs that have it."""
        rows = [
            row
            for record in self.records
            for row in record.perturbations.get(perturbation, {}).get("levels", [])
        ]
        return [float(row[name]) for row in rows if row["level"] == level and name in row]


def method_key(config: Mapping[str, Any]) -> str:
    """The hash of a resolved configuration, without the seeds, the machine and paths."""
    kept = {name: value for name, value in config.items() if name not in OWN}
    kept["training"] = {**kept["training"], "stop_after": None}
    kept["data"] = {name: value for name, value in kept["data"].items() if name != "root"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


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
        elif root.is_dir():
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
            notes.append(f"not evaluated: call sdunroll eval run={folder}")
        metrics, cost = (None, None) if "eval" in stale else (metrics, cost)
        perturbations = {name: got for name, got in perturbations.items() if name not in stale}
    config = OmegaConf.to_container(run.config)
    assert isinstance(config, dict)
    return Record(
        folder, {str(name): value for name, value in config.items()}, run.provenance, summary,
        metrics, cost, perturbations, notes,
    )  # fmt: skip


def methods(records: Sequence[Record]) -> list[Method]:
    """The finished runs by method, in the order of their names."""
    groups: dict[str, dict[tuple[tuple[str, int], ...], Record]] = {}
    for record in records:
        if record.summary is not None:
            groups.setdefault(record.key, {})[record.seeds] = record  # of doubles, the last
    first = {key: next(iter(group.values())) for key, group in groups.items()}
    common = set.intersection(*(set(one.overrides) for one in first.values())) if first else set()
    names = {
        key: " ".join(item for item in one.overrides if item not in common)
        or ("constrained" if one.config["constrained"] else "standard")
        for key, one in first.items()
    }
    twice = {name for name in names.values() if list(names.values()).count(name) > 1}
    return sorted(
        (
            Method(
                f"{names[key]} ({key[:6]})" if names[key] in twice else names[key],
                [group[seeds] for seeds in sorted(group)],
            )
            for key, group in groups.items()
        ),
        key=lambda method: method.name,
    )


def blocks(methods: Sequence[Method]) -> list[tuple[str, list[Method]]]:
    """The methods apart by what they solve: a title and those with one problem, data and operator,
    whose figures can be compared. Of those with the same code the title says what differs."""
    groups: dict[str, list[Method]] = {}
    for method in methods:
        config = method.records[0].config
        what = {name: config.get(name) for name in ("problem", "data", "operator")}
        groups.setdefault(json.dumps(what, sort_keys=True), []).append(method)
    titles = [_title(group[0].records[0].config) for group in groups.values()]
    settings = [dict(_flat(json.loads(what))) for what in groups]
    found = []
    for title, own, group in zip(titles, settings, groups.values(), strict=True):
        peers = [other for one, other in zip(titles, settings, strict=True) if one == title]
        differs = [
            f"{name} {value}"
            for name, value in own.items()
            if any(other.get(name) != value for other in peers)
        ]
        found.append((", ".join([title, *differs]), group))
    return found


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of nested mappings by their dotted names."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _title(config: Mapping[str, Any]) -> str:
    """What is solved on which data, by the names of their code: "sparse coding, photos"."""
    parts = [config[name] for name in ("problem", "operator", "data") if config.get(name)]
    names = [str(part.get("_target_", "")).rsplit(".", 1)[-1] for part in parts]
    return ", ".join(name.replace("_", " ").lower() for name in names)
