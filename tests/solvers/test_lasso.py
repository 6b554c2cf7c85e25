import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso

from sdunroll.randomness import generator
from sdunroll.solvers import NotConverged, RestartedFista, duality_gap, fista, solve_lasso
from sdunroll.solvers.lasso import polish


def random_lasso(features, atoms, count, seed, dtype=torch.float64):
    rng = generator(seed, "lasso")
    dictionary = torch.randn(features, atoms, generator=rng, dtype=dtype)
    obs = torch.randn(count, features, generator=rng, dtype=dtype)
    return dictionary / dictionary.norm(dim=0), obs


def objective(dictionary, obs, codes, alpha):
    return (obs - codes @ dictionary.T).square().sum(1) / 2 + alpha * codes.abs().sum(1)


@pytest.mark.parametrize(("features", "atoms"), [(20, 24), (30, 15), (10, 40)])
@pytest.mark.parametrize("alpha", [0.02, 0.3])
@pytest.mark.parametrize("solver", ["admm", "fista"])
def test_agrees_with_coordinate_descent_of_scikit_learn(features, atoms, alpha, solver):
    dictionary, obs = random_lasso(features, atoms, 8, seed=features)
    solution = solve_lasso(dictionary, obs, alpha, solver=solver, tolerance=1e-12)
    # scikit-learn divides the squared error by the number of features
    peer = Lasso(alpha=alpha / features, fit_intercept=False, tol=1e-14, max_iter=200_000)
    expected = np.stack([peer.fit(dictionary.numpy(), x.numpy()).coef_ for x in obs])
    assert np.allclose(solution.codes, expected, atol=1e-6)
    assert solution.gap.max() <= 1e-12


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_default_tolerance_by_dtype(dtype, bound):
    dictionary, obs = random_lasso(40, 48, 50, seed=1, dtype=dtype)
    solution = solve_lasso(dictionary, obs, 0.1)
    assert solution.codes.dtype == dtype
    assert solution.gap.max() <= bound
    # the gap that is reported bounds that of the codes that are returned
    exact = dictionary.double(), obs.double()
    least = objective(*exact, solve_lasso(*exact, 0.1, tolerance=1e-13).codes, 0.1)
    value = objective(*exact, solution.codes.double(), 0.1)
    assert (value - least <= solution.gap * value + 1e-12).all()
    if dtype == torch.float64:
        gap = duality_gap(dictionary, obs, solution.codes, 0.1)
        assert torch.allclose(solution.gap, gap, rtol=1e-9, atol=1e-14)


def test_rounding_does_not_keep_bright_signals_from_being_certified():
    """Rounded to float32, their codes give no dual point that certifies them."""
    dictionary, obs = random_lasso(60, 72, 20, seed=4, dtype=torch.float32)
    obs = obs.abs() * 100
    solution = solve_lasso(dictionary, obs, 0.1, max_iterations=2000)
    assert duality_gap(dictionary, obs, solution.codes, 0.1).max() > 1e-5
    assert solution.gap.max() <= 1e-5
    exact = dictionary.double(), obs.double()
    least = objective(*exact, solve_lasso(*exact, 0.1, tolerance=1e-11).codes, 0.1)
    value = objective(*exact, solution.codes.double(), 0.1)
    assert (value - least <= (solution.gap + 1e-11) * value).all()


def test_restarts_only_the_problem_whose_momentum_points_uphill_and_gains_by_it():
    dictionary, obs = random_lasso(60, 40, 6, seed=8)
    best = solve_lasso(dictionary, obs, 0.1, tolerance=1e-13).codes
    together = RestartedFista(dictionary, obs, 0.1)
    plain = fista(dictionary, obs, 0.1, start=torch.zeros_like(best))
    restarts = torch.zeros(6, dtype=torch.long)
    next(plain)
    for _ in range(150):
        codes, unrestarted = together.step(), next(plain)
        restarts += together.t[:, 0] < 2  # t' of t = 1 is (1 + sqrt 5) / 2
    assert (restarts > 1).all()
    assert len(restarts.unique()) > 1
    assert (codes - best).norm() < 1e-3 * (unrestarted - best).norm()
    alone = RestartedFista(dictionary, obs[2:3], 0.1)
    for _ in range(150):
        single = alone.step()
    assert torch.allclose(single[0], codes[2], atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.01, 1.0), st.floats(0, 1))
def test_gap_bounds_the_error_of_any_codes(seed, alpha, mix):
    dictionary, obs = random_lasso(8, 12, 3, seed=seed)
    best = solve_lasso(dictionary, obs, alpha, tolerance=1e-10).codes
    rng = generator(seed, "codes")
    codes = mix * best + (1 - mix) * torch.randn(best.shape, generator=rng, dtype=best.dtype)
    value = objective(dictionary, obs, codes, alpha)
    excess = value - objective(dictionary, obs, best, alpha)
    assert (excess <= duality_gap(dictionary, obs, codes, alpha) * value + 1e-9).all()


def test_all_codes_are_zero_where_alpha_is_large():
    dictionary, obs = random_lasso(10, 12, 5, seed=2)
    alpha = float((obs @ dictionary).abs().max())
    solution = solve_lasso(dictionary, obs, alpha)
    assert torch.equal(solution.codes, torch.zeros(5, 12, dtype=torch.float64))
    assert solution.iterations.max() == 0


def test_zero_observation_beside_others():
    dictionary, obs = random_lasso(10, 12, 3, seed=3)
    obs[1] = 0
    solution = solve_lasso(dictionary, obs, 0.1)
    assert torch.equal(solution.codes[1], torch.zeros(12, dtype=torch.float64))
    assert solution.codes[0].abs().sum() > 0


def test_repeated_atoms_make_the_equations_singular_but_not_the_optimum_wrong():
    dictionary, obs = random_lasso(10, 6, 4, seed=4)
    twice = torch.cat([dictionary, dictionary], 1)
    value = objective(twice, obs, solve_lasso(twice, obs, 0.05).codes, 0.05)
    expected = objective(dictionary, obs, solve_lasso(dictionary, obs, 0.05).codes, 0.05)
    assert torch.allclose(value, expected, rtol=2e-6)


def test_polish_is_exact_on_the_right_support():
    dictionary, obs = random_lasso(15, 20, 4, seed=5)
    best = solve_lasso(dictionary, obs, 0.2, tolerance=1e-13).codes
    rough = best * (1 + 0.3 * torch.rand(best.shape, generator=generator(0, "x")))
    polished = polish(rough, dictionary.T @ dictionary, obs @ dictionary, 0.2)
    assert torch.allclose(polished, best, atol=1e-10)


def test_says_so_when_it_does_not_converge():
    dictionary, obs = random_lasso(20, 24, 3, seed=6)
    with pytest.raises(NotConverged, match="3 of 3 problems have a relative duality gap above"):
        solve_lasso(dictionary, obs, 1e-4, tolerance=1e-15, max_iterations=20)


def test_not_finite_observations_are_no_optimum():
    dictionary, obs = random_lasso(10, 12, 2, seed=7)
    obs[0, 0] = torch.nan
    with pytest.raises(NotConverged, match="values that are not finite"):
        solve_lasso(dictionary, obs, 0.1, max_iterations=40)
