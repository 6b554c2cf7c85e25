"""Which runs are one method, and which results are left out."""

from pathlib import Path

import pytest

from sdunroll.report.collect import Record
from sdunroll.report.grouping import blocks, methods

CIFAR, FOLDER = "sdunroll.data.Cifar10", "sdunroll.data.ImageFolder"


def record(name, seed=0, data=FOLDER, root=None, perturbations=None, **settings):
    config = {
        "seed": seed,
        "constrained": True,
        "training": {"epochs": 2},
        "data": {"_target_": data, "root": root},
        **settings,
    }
    provenance = {"overrides": [f"data.root={root}"]}
    return Record(
        Path(name), config, provenance, {"feasible": True}, perturbations=perturbations or {}
    )


def runs_of(records):
    return [[one.folder.name for one in method.records] for method in methods(records)]


@pytest.mark.parametrize(
    ("data", "expected"), [(FOLDER, [["one"], ["two"]]), (CIFAR, [["one", "two"]])]
)
def test_pictures_of_another_folder_are_another_method_unless_a_checksum_makes_them_the_same(
    data, expected
):
    records = [record("one", 0, data, "here"), record("two", 1, data, "there")]
    assert runs_of(records) == expected
    assert len(blocks(methods(records))) == len(expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--config-dir", "mine", "seed=1"], ["--config-dir", "mine"]),
        (["seed=1", "-cd", "mine"], ["--config-dir", "mine"]),
        (["--config-dir=mine"], ["--config-dir", "mine"]),
        (["seed=1"], []),
    ],
)
def test_the_folder_of_configurations_is_part_of_how_to_repeat(given, expected):
    run = Record(Path("run"), {"seed": 0}, {"command_line": ["sdunroll train", *given]})
    assert run.config_folder == expected


def test_of_runs_with_the_same_seed_the_last_counts_and_the_other_is_named():
    first, last, other = record("first"), record("last"), record("other", seed=1)
    assert runs_of([first, last, other]) == [["last", "other"]]
    assert first.notes == ["left out: last has the same settings and seeds"]
    assert last.notes == other.notes == []


@pytest.mark.parametrize("change", [{"settings": {"norm": "linf"}}, {"num_samples": 10}])
def test_results_of_another_perturbation_are_left_out(change):
    usual = {"settings": {"norm": "l2"}, "num_samples": 100, "levels": []}
    found = [usual, usual | change, usual]
    runs = [record(f"{seed}", seed, perturbations={"noise": one}) for seed, one in enumerate(found)]
    elsewhere = record("elsewhere", root="there", perturbations={"noise": usual | change})
    methods([*runs, elsewhere])
    assert [list(one.perturbations) for one in runs] == [["noise"], [], ["noise"]]
    (note,) = runs[1].notes
    assert note.startswith("perturb/noise: with other settings or samples than those of other runs")
    assert list(elsewhere.perturbations) == ["noise"]
