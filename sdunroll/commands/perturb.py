"""``sdunroll perturb``: disturb a trained network over a list of levels."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from sdunroll import checks, metrics
from sdunroll.commands.assemble import (
    Experiment,
    load_best,
    part_seed,
    seed_of,
    set_up_torch,
    working_in,
)
from sdunroll.commands.bounds import Bounds
from sdunroll.commands.eval import as_pictures
from sdunroll.commands.instantiate import instantiate
from sdunroll.constraints import distance
from sdunroll.data import Batch
from sdunroll.perturbations import Perturbation
from sdunroll.randomness import generator
from sdunroll.report import figures, tables
from sdunroll.runs import Run

COMPARED = 100  # test signals whose new observations are compared
PICTURED = 100  # test pictures from which one is chosen to be shown


class Seeds(NamedTuple):
    """Of the bootstrap, of the starts y_0, and of the noise or the attack."""

    bootstrap: int
    start: int
    disturbance: int


def main(config: DictConfig) -> None:
    """Perturb the run in ``config.run`` and write ``perturb/NAME.json`` into it."""
    name = checks.file_stem("name", config.name)
    own = checks.folder("run", config.run)
    with working_in(Path(own), f"perturb/{name}"):
        levels = _levels(config.levels)
        disturbances = [instantiate(config, "perturbation", level=level) for level in levels]
        count = _count(config.num_samples)
        device = set_up_torch(config)
        run, experiment = load_best(own, device, config.trust)
        seed = seed_of(config, run)
        seeds = Seeds(seed, *(part_seed(config, part, seed) for part in ("start", "disturbance")))
        other = None
        if config.against is not None:
            other = load_best(checks.folder("against", config.against), device, config.trust)
            _check_comparable(experiment, other[1], config.against, disturbances, seeds)
        perturb = partial(
            _perturb, disturbances=disturbances, count=count, seeds=seeds, delta=config.delta
        )
        result = {
            "perturbation": name,
            "settings": OmegaConf.to_container(config.perturbation, resolve=True),
            "label": _label(run),
            "notice": experiment.source.notice,
            "epoch": experiment.epoch,
            "seeds": seeds._asdict(),
            **perturb(experiment),
        }
        if other is not None:
            against, second = other
            result["against"] = {
                "run": str(against.folder), "label": _label(against), **perturb(second)
            }  # fmt: skip
        run.write_json(f"perturb/{name}.json", result)
        folder = run.folder / "perturb" / "figures"
        figures.levels(result, folder / f"{name}.png")
        figures.shift(result, folder / f"{name}_theory.png")
        if "psnr" in result["levels"][0]:
            both = [experiment] if other is None else [experiment, other[1]]
            names = [result["label"]] if other is None else [result["label"], _label(other[0])]
            _picture_levels(both, names, disturbances, seeds, folder / f"{name}_pictures.png")
    print(tables.level_table(result))
    if any(row["theory"] for row in result["levels"]):
        print(f"\n{tables.shift_table(result)}")
    if result["notice"]:
        print(f"data: {result['notice']}")
    print(f"\n{run.folder / 'perturb'}")


def _check_comparable(
    experiment: Experiment,
    other: Experiment,
    against: str,
    disturbances: list[Perturbation],
    seeds: Seeds,
) -> None:
    """Errors: runs whose test instances differ, so that their distances cannot be compared; where a
    perturbation replaces the observations, by what a run's own settings still do to the new ones."""
    obs, target = zip(experiment.instances("test"), other.instances("test"), strict=True)
    pairs = [target]
    if not disturbances[0].replaces_observations:
        pairs.append(obs)
    else:
        for disturbance in disturbances:
            made = [
                _disturbed(one, one.source.signals("test")[:COMPARED], disturbance, seeds)
                for one in (experiment, other)
            ]
            pairs += zip(*made, strict=True)
    if not all(one.shape == two.shape and torch.equal(one, two) for one, two in pairs):
        raise checks.InvalidValue(
            f"against: expected a run on the same data and problem, got {against} with others"
        )


def _levels(given: Any) -> list[float]:
    if not isinstance(given, ListConfig) or not len(given):
        raise checks.InvalidValue(
            f"levels: expected a list of numbers such as [0.5,1,2], got {given!r}"
        )
    return sorted({checks.number("levels", level, low=0) for level in given})


def _count(given: Any) -> int | None:
    return None if given is None else checks.integer("num_samples", given)


def _perturb(
    experiment: Experiment,
    *,
    disturbances: list[Perturbation],
    count: int | None,
    seeds: Seeds,
    delta: float,
) -> dict[str, Any]:
    signals = experiment.source.signals("test")[:count]
    clean = experiment.reference.instances(signals).to(experiment.device)
    bounds = Bounds(experiment, clean, seed=seeds.start, delta=delta)
    return {
        "first_layer": experiment.constraint.first_layer,
        "num_samples": len(signals),
        "levels": [
            _row(experiment, signals, disturbance, seeds, bounds) for disturbance in disturbances
        ],
    }


def _disturbed(
    experiment: Experiment, signals: torch.Tensor, disturbance: Perturbation, seeds: Seeds
) -> Batch:
    """The instances of ``signals`` under ``disturbance``, on the device."""
    rng = generator(seeds.disturbance, "perturb/observation")
    bounds = experiment.source.value_range
    instances = disturbance.instances(experiment.reference, signals, rng, bounds)
    return instances.to(experiment.device)


@torch.no_grad()
def _picture_levels(
    experiments: list[Experiment],
    labels: list[str],
    disturbances: list[Perturbation],
    seeds: Seeds,
    path: Path,
) -> None:
    """One picture under each level, as observed and as each network restores it; of the first
    :data:`PICTURED` the one whose final error is the median at the last level, by the first network."""
    signals = experiments[0].source.signals("test")[:PICTURED]

    def restored(experiment: Experiment, disturbance: Perturbation) -> tuple[Batch, torch.Tensor]:
        disturbance = disturbance.aim(experiment.network, seeds.start)
        data = _disturbed(experiment, signals, disturbance, seeds)
        noise = generator(seeds.disturbance, "evaluation/noise", data.obs.device)
        perturb = disturbance.between_layers(experiment.problem, data, noise)
        start = generator(seeds.start, "evaluation/start", data.obs.device)
        return data, experiment.network(data.obs, generator=start, perturb=perturb).states[-1]

    data, last = restored(experiments[0], disturbances[-1])
    order = distance(last, data.target).argsort()
    chosen = int(order[len(order) // 2])
    columns = []
    for disturbance in disturbances:
        results = [restored(experiment, disturbance) for experiment in experiments]
        observed = experiments[0].problem.picture(results[0][0].obs)[chosen]
        stack = [observed, *(final[chosen] for _, final in results), data.target[chosen]]
        shown = as_pictures(torch.stack(stack), signals.shape[1:])
        columns.append((f"level {disturbance.level:g}", shown))
    figures.images(
        columns,
        path,
        value_range=experiments[0].source.value_range or (0.0, 1.0),
        labels=["input", *labels, "clean"],
        notice=experiments[0].source.notice,
    )


@torch.no_grad()
def _row(
    experiment: Experiment,
    signals: torch.Tensor,
    disturbance: Perturbation,
    seeds: Seeds,
    bounds: Bounds,
) -> dict[str, Any]:
    """The figures at one level. The noise is drawn from the same seed at each level, so that levels
    differ in size alone; a shifted observation has an optimum of its own."""
    disturbance = disturbance.aim(experiment.network, seeds.start)
    data = _disturbed(experiment, signals, disturbance, seeds)
    measured = metrics.evaluate(
        experiment.network,
        experiment.problem,
        experiment.constraint,
        data,
        seed=seeds.start,
        noise_seed=seeds.disturbance,
        perturbation=disturbance,
        last_state=True,
    )
    names = [name for name in measured.states if name != "gradient_norm"]
    finals = torch.stack([measured.states[name][-1] for name in names])
    if not finals.isfinite().all():
        raise checks.UserError(
            f"levels: at level {disturbance.level:g} the network returns values that are not finite; "
            "take smaller levels"
        )
    resample = metrics.Bootstrap(len(data.obs), seed=seeds.bootstrap)
    rows = metrics.summarise(finals.double(), resample(finals.double()))
    names[names.index("distance")] = "final_distance"
    quantiles = dict(zip(names, metrics.quantiles(finals), strict=True))
    for name, pair in measured.ratios.items():
        names.append(name)
        rows += metrics.decibels(pair[:, -1:], resample)
    return {
        "level": disturbance.level,
        **{name: row["mean"] for name, row in zip(names, rows, strict=True)},
        "health": measured.health,
        "theory": bounds(data, measured.states.get("gradient_norm")),
        "descent_frequency": _descends(experiment, measured),
        "ci95": {name: row["ci95"] for name, row in zip(names, rows, strict=True)},
        "quantiles": quantiles,
    }


def _descends(experiment: Experiment, measured: metrics.LayerFigures) -> list[float]:
    """The share of instances that descend at each layer, in all parts of the measure, (L,)."""
    falls = (measured.after < measured.before).view(
        len(experiment.constraint.parts), -1, measured.after.shape[1]
    )
    return falls.all(0).double().mean(1).tolist()


def _label(run: Run) -> str:
    """A run in few words, for a legend."""
    method = "constrained" if run.config.constrained else "standard"
    return f"{run.folder.resolve().name} ({method}, seed {run.config.seed})"
