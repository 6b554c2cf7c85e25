import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdunroll.cache import Cache
from sdunroll.checks import InvalidValue, UserError
from sdunroll.data import Photos, Synthetic
from sdunroll.problems import SparseCoding, sparse_coding
from sdunroll.randomness import generator
from sdunroll.solvers import DictionaryLearning, duality_gap
from tests.conftest import make_batch, make_problem


def random_codes(problem, count, seed):
    shape = (count, problem.dictionary.shape[1])
    return torch.randn(shape, generator=generator(seed, "codes"), dtype=torch.float64)


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_gradient_by_finite_differences(seed):
    """Where no entry is 0 the subgradient is the gradient: central differences in float64."""
    problem = make_problem()
    y = random_codes(problem, 1, seed)
    y = y + 0.01 * y.sign()  # away from the kink
    obs = make_batch(problem, 1).obs
    steps = 1e-6 * torch.eye(y.shape[1], dtype=torch.float64)
    ahead, behind = problem.objective(y + steps, obs), problem.objective(y - steps, obs)
    numeric = (ahead - behind) / 2e-6
    assert torch.allclose(problem.gradient(y, obs)[0], numeric, atol=1e-7)


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_subgradient_has_the_least_norm(seed):
    """Its norm is the steepest descent rate, so no one-sided derivative falls faster (at kinks too)."""
    problem = make_problem()
    y = random_codes(problem, 1, seed)
    y[:, ::2] = 0
    obs = make_batch(problem, 1).obs
    g = problem.gradient(y, obs)
    norm = g.norm()
    step = 1e-7
    rate = (problem.objective(y - step * g / norm, obs) - problem.objective(y, obs)) / step
    assert rate.item() == pytest.approx(-norm.item(), rel=1e-4)
    others = torch.nn.functional.normalize(random_codes(problem, 50, seed + 1), dim=1)
    rates = (problem.objective(y + step * others, obs) - problem.objective(y, obs)) / step
    assert rates.min() >= -norm.item() * (1 + 1e-4)


@pytest.mark.parametrize("name", ["gradient", "gradient_mapping"])
def test_exactly_zero_at_an_optimum_that_can_be_written_down(name):
    """D = I, so y* = soft(x, alpha); values are powers of two, so nothing is rounded."""
    problem = SparseCoding(torch.eye(4, dtype=torch.float64), alpha=0.25)
    obs = torch.tensor([[1.0, -0.5, 0.125, 0.25]], dtype=torch.float64)
    best = torch.tensor([[0.75, -0.25, 0.0, 0.0]], dtype=torch.float64)
    assert torch.equal(problem.optimum(obs), best)
    assert torch.equal(getattr(problem, name)(best, obs), torch.zeros_like(best))
    assert getattr(problem, name)(best + 0.125, obs).abs().min() > 0


@pytest.mark.parametrize("name", ["gradient", "gradient_mapping"])
def test_zero_at_the_solved_optimum(problem, name):
    batch = make_batch(problem)
    assert getattr(problem, name)(batch.target, batch.obs).abs().max() < 1e-9


def test_gradient_mapping_is_one_step_of_ista(problem):
    batch = make_batch(problem)
    y = random_codes(problem, 20, 1)
    step = problem.baselines(batch)["ista"]
    next(step)
    first = next(step)  # from 0
    zero = torch.zeros_like(y)
    mapping = problem.gradient_mapping(zero, batch.obs)
    assert torch.allclose(zero - mapping / problem.lipschitz, first)
    assert torch.allclose(problem.step_length(zero, batch.obs), first.norm(dim=1))


def test_gradient_mapping_is_continuous_where_the_subgradient_jumps(problem):
    obs = make_batch(problem, 1).obs
    zero = torch.zeros(1, 16, dtype=torch.float64)
    tiny = torch.full_like(zero, 1e-10)
    jump = (problem.gradient(tiny, obs) - problem.gradient(zero, obs)).abs().max()
    smooth = problem.gradient_mapping(tiny, obs) - problem.gradient_mapping(zero, obs)
    assert jump > 0.01
    assert smooth.abs().max() < 1e-7


def test_layers_broadcast_over_instances(problem):
    batch = make_batch(problem)
    y = torch.stack([random_codes(problem, 20, seed) for seed in range(3)])
    for function in (problem.objective, problem.gradient, problem.step_length):
        one_by_one = torch.stack([function(layer, batch.obs) for layer in y])
        assert torch.allclose(function(y, batch.obs), one_by_one)


def test_optima_come_from_the_cache_and_are_made_anew_for_other_data(tmp_path, monkeypatch):
    plain = make_problem()
    problem = SparseCoding(plain.dictionary, alpha=0.1, cache=Cache(tmp_path))
    obs = make_batch(plain).obs
    first = problem.optimum(obs)
    solved = []
    solve = problem._solve
    monkeypatch.setattr(problem, "_solve", lambda obs: solved.append(1) or solve(obs))
    assert torch.equal(problem.optimum(obs), first)
    assert not solved
    problem.optimum(obs + 0.1)
    assert len(solved) == 1


def test_fista_with_restart_finds_the_same_optima_kept_apart_from_the_others(tmp_path):
    plain = make_problem()
    obs = make_batch(plain).obs
    by_admm, by_fista = (
        SparseCoding(plain.dictionary, alpha=0.1, solver=solver, cache=Cache(tmp_path)).optimum(obs)
        for solver in ("admm", "fista")
    )
    assert len([*tmp_path.glob("*.pt")]) == 2
    assert torch.allclose(by_admm, by_fista, atol=1e-5)
    with pytest.raises(UserError, match=r"solver: expected one of admm, fista, got .newton."):
        SparseCoding(plain.dictionary, alpha=0.1, solver="newton")


def test_certificate_is_small_at_the_optimum_and_large_elsewhere(problem):
    batch = make_batch(problem)
    assert problem.certificate(batch.target, batch.obs).max() <= 1e-6
    assert problem.certificate(batch.target + 0.1, batch.obs).min() > 1e-3


def test_certificate_is_small_for_the_rounded_optimum_of_bright_signals():
    problem = SparseCoding(make_problem(dtype=torch.float32).dictionary, alpha=0.1)
    obs = make_batch(problem).obs.abs() * 1000
    codes = problem.optimum(obs)
    assert duality_gap(problem.dictionary, obs, codes, 0.1).max() > 1e-5  # by their own dual point
    assert problem.certificate(codes, obs).max() <= 1e-5


def test_factory_takes_the_dictionary_of_the_source_or_learns_one(tmp_path):
    learner = DictionaryLearning(alpha=0.1, passes=1)
    settings = {"alpha": 0.1, "overcompleteness": 1.2, "learner": learner}
    synthetic = Synthetic(num_features=10, num_atoms=14, num_train=20)
    made = sparse_coding(synthetic, Cache(None), **settings)
    assert torch.equal(made.dictionary, synthetic.dictionary)
    photos = Photos(size=5, num_train=100)
    learned = sparse_coding(photos, Cache(tmp_path), **settings)
    assert learned.dictionary.shape == (25, 30)
    assert torch.allclose(learned.dictionary.norm(dim=0), torch.ones(30), atol=1e-5)
    again = sparse_coding(photos, Cache(tmp_path), **settings)
    assert torch.equal(again.dictionary, learned.dictionary)


def test_factory_restores_the_dictionary_of_a_checkpoint():
    state = make_problem().state_dict()
    source = Photos(size=5, num_train=100)
    restored = sparse_coding(
        source, Cache(None), state, alpha=0.1, overcompleteness=1.2, learner=None
    )
    assert torch.equal(restored.dictionary, state["dictionary"])


@pytest.mark.parametrize("alpha", [0, -1, "much"])
def test_refuses(alpha):
    with pytest.raises(InvalidValue, match="alpha"):
        SparseCoding(torch.eye(3), alpha=alpha)


def test_a_dictionary_learner_of_ones_own_is_called_anew(tmp_path):
    """Nothing is known of what decides its result, so nothing of it is kept."""
    photos = Photos(size=4, num_train=20, num_val=5, num_test=5)
    calls = []

    def learner(signals, num_atoms):
        calls.append((tuple(signals.shape), num_atoms))
        return torch.eye(16, num_atoms)

    for _ in range(2):
        made = sparse_coding(
            photos, Cache(tmp_path), alpha=0.1, overcompleteness=1.5, learner=learner
        )
    assert calls == [((20, 16), 24)] * 2
    assert torch.equal(made.dictionary, torch.eye(16, 24))
