"""Runs gathered by setting, and settings by what they solve.

Runs whose configurations agree but for the seeds, the device, threads and the like are one method.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdunroll.report.collect import Record, data_settings


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


def methods(records: Sequence[Record]) -> list[Method]:
    """The finished runs by method, in the order of their names; what is left out is noted in its record."""
    finished = [record for record in records if record.summary is not None]
    _leave_out_other_perturbations(finished)
    groups: dict[str, dict[tuple[tuple[str, int], ...], Record]] = {}
    for record in finished:
        group = groups.setdefault(record.key, {})
        if (double := group.get(record.seeds)) is not None:
            double.notes.append(f"left out: {record.folder} has the same settings and seeds")
        group[record.seeds] = record
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
        groups.setdefault(_task(method.records[0]), []).append(method)
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


def _task(record: Record) -> str:
    """What is solved, on which data."""
    config = record.config
    what = {"problem": config.get("problem"), "data": data_settings(config)}
    return json.dumps(what | {"operator": config.get("operator")}, sort_keys=True)


def _leave_out_other_perturbations(records: Sequence[Record]) -> None:
    """Of the results under one perturbation on the same data, keep those with the settings that most
    have: others are of another perturbation, whatever its name."""
    found: dict[tuple[str, str], list[tuple[str, Record]]] = {}
    for record in records:
        for name, result in record.perturbations.items():
            what = [result.get("settings"), result.get("num_samples")]
            of_name = found.setdefault((_task(record), name), [])
            of_name.append((json.dumps(what, sort_keys=True), record))
    for (_, name), results in found.items():
        [(usual, _)] = Counter(settings for settings, _ in results).most_common(1)
        for settings, record in results:
            if settings != usual:
                del record.perturbations[name]
                record.notes.append(
                    f"perturb/{name}: with other settings or samples than those of other runs, and left "
                    "out; call perturb again, or with a name of its own"
                )


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
