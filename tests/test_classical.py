"""Classical solvers beside a network, by hand; and what of them is kept for the next network."""

import importlib
import json
import math
from itertools import islice

import pytest
import torch

from sdunroll import classical
from sdunroll.cache import Cache
from sdunroll.data import SparseCodes
from sdunroll.problems import SparseCoding, sparse_recovery
from tests.conftest import make_batch, make_problem

NOTHING_KEPT = Cache(None)


@pytest.fixture(scope="module")
def setting():
    problem = make_problem(dtype=torch.float32)
    return problem, make_batch(problem, 60)


def figures(problem, batch, cache=NOTHING_KEPT, **changes):
    settings = {"iterations": 4, "distance_goal": 0.5, "gap_goal": 0.1, "limit": 300, "seed": 0}
    return classical.baseline_figures(problem, batch, **settings | changes, cache=cache)


def iterates(problem, batch, name, count):
    return list(islice(problem.baselines(batch)[name], count + 1))


def mean_distance(y, batch):
    return (y - batch.target).norm(dim=1).mean().item()


def test_baselines(setting):
    problem, batch = setting
    best = problem.objective(batch.target, batch.obs).mean()
    found = figures(problem, batch)
    assert found.keys() == {"ista", "fista"}
    for name, row in found.items():
        states = iterates(problem, batch, name, 300)
        distances = [mean_distance(y, batch) for y in states]
        gaps = [(problem.objective(y, batch.obs).mean() - best).item() for y in states]
        assert row["iterations"] == 4
        assert row["distance"]["mean"] == pytest.approx(distances[4], rel=1e-5)
        reached = row["iterations_to_final_distance"]
        assert distances[reached] <= 0.5 < min(distances[:reached])
        reached = row["iterations_to_final_objective"]
        assert gaps[reached] <= 0.1 < min(gaps[:reached])
        assert row["converged"]["iterations"] == 300
        converged = row["converged"]["distance"]["mean"]
        assert converged == pytest.approx(distances[300], rel=1e-5, abs=1e-12)


def test_a_baseline_that_does_not_get_there_says_so(setting):
    found = figures(*setting, distance_goal=0.0, gap_goal=-1.0, limit=20)
    assert found["ista"]["iterations_to_final_distance"] is None
    assert found["ista"]["iterations_to_final_objective"] is None


def test_a_network_of_more_layers_than_the_limit(setting):
    problem, batch = setting
    row = figures(problem, batch, iterations=30, limit=20)["ista"]
    assert (row["iterations"], row["converged"]["iterations"]) == (30, 30)
    assert row["distance"] == row["converged"]["distance"]


def test_one_answer():
    problem, batch = recovery()
    row = figures(problem, batch)["oracle"]
    (answer,) = problem.baselines(batch)["oracle"]
    assert row["iterations"] is None
    assert row["iterations_to_final_distance"] is None
    assert "converged" not in row
    assert row["distance"]["mean"] == pytest.approx(mean_distance(answer, batch), abs=1e-6)


def test_a_solver_that_diverges_is_left_before_its_numbers_overflow():
    """AMP, with twenty times as many atoms as measurements."""
    problem, batch = recovery(num_atoms=500, num_features=25)
    row = figures(problem, batch)["amp"]
    states = iterates(problem, batch, "amp", 300)
    assert mean_distance(states[100], batch) == math.inf
    count = row["converged"]["iterations"]
    assert row["iterations"] == 4 < count < 300
    start, last, after = (mean_distance(states[k], batch) for k in (0, count, count + 1))
    assert last <= 1e6 * start < after
    assert row["converged"]["distance"]["mean"] == pytest.approx(last, rel=1e-5)
    assert json.dumps(row, allow_nan=False)


def recovery(num_atoms=20, num_features=10, **changes):
    source = SparseCodes(num_atoms=num_atoms, num_val=30)
    problem = sparse_recovery(source, None, num_features=num_features, **changes)
    return problem, problem.instances(source.signals("val"))


def coding():
    problem = make_problem()
    return problem, make_batch(problem)


@pytest.mark.parametrize("make", [coding, recovery])
def test_a_path_is_computed_once(make, tmp_path, monkeypatch):
    problem, batch = make()
    cache = Cache(tmp_path)
    expected = figures(problem, batch)
    assert figures(problem, batch, cache) == expected
    with monkeypatch.context() as patched:
        patched.setattr(classical, "distance", None)  # which the path alone needs
        assert figures(problem, batch, cache) == expected
        # for a network of other figures and of another depth, too
        other = figures(problem, batch, cache, iterations=7, distance_goal=1.0)
    assert other == figures(problem, batch, iterations=7, distance_goal=1.0)


def test_whatever_decides_a_path_is_in_its_key(tmp_path, monkeypatch):
    problem, batch = recovery()
    cache = Cache(tmp_path)

    def entries(problem, batch, limit=10):
        classical.paths(problem, batch, limit, cache)
        return len(list(tmp_path.glob("*.pt")))

    assert entries(problem, batch) == entries(problem, batch) == 1
    assert entries(problem, batch, limit=11) == 2
    assert entries(problem, batch._replace(target=2 * batch.target)) == 3
    assert entries(problem, batch._replace(obs=2 * batch.obs)) == 4
    assert entries(recovery(alpha=0.3)[0], batch) == 5
    assert entries(recovery(seed=1)[0], batch) == 6  # another dictionary
    assert entries(problem.coding, batch) == 7
    module = importlib.import_module("sdunroll.problems.sparse_recovery")
    with monkeypatch.context() as patched:
        patched.setattr(module, "AMP_TUNING", 2.0)
        assert entries(problem, batch) == 8
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert entries(problem, batch) == 9
    finally:
        torch.set_num_threads(threads)


def test_nothing_is_kept_of_what_a_derived_problem_may_do_otherwise(tmp_path):
    class Own(SparseCoding):
        pass

    problem = make_problem()
    own = Own(problem.dictionary, alpha=float(problem.alpha))
    assert json.dumps(problem.cache_key())
    assert own.cache_key() is None
    figures(own, make_batch(problem), Cache(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_costs_time_alone(setting, tmp_path):
    (tmp_path / "file").touch()
    assert figures(*setting, Cache(tmp_path / "file")) == figures(*setting)
