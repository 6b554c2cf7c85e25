from itertools import islice, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdunroll.solvers import fista, ista, lipschitz, soft_threshold, solve_lasso
from tests.solvers.test_lasso import objective, random_lasso


@given(st.floats(-5, 5), st.floats(0, 3))
def test_soft_threshold_is_the_proximal_operator(v, threshold):
    """prox(v) minimises 1/2 (u - v)^2 + threshold |u|: no point of a fine grid is better."""
    v = torch.tensor(v, dtype=torch.float64)
    best = soft_threshold(v, threshold)

    def cost(u):
        return (u - v) ** 2 / 2 + threshold * u.abs()

    grid = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    assert cost(best) <= cost(grid).min() + 1e-12


def test_lipschitz_is_the_largest_eigenvalue_of_the_gram_matrix():
    dictionary, _ = random_lasso(9, 13, 1, seed=0)
    largest = torch.linalg.eigvalsh(dictionary.T @ dictionary).max().item()
    assert lipschitz(dictionary) == pytest.approx(largest, rel=1e-12)


@pytest.mark.parametrize(("solver", "iterations"), [(ista, 3000), (fista, 600)])
def test_converges_to_the_certified_optimum(solver, iterations):
    dictionary, obs = random_lasso(20, 24, 6, seed=1)
    start = torch.zeros(6, 24, dtype=torch.float64)
    last = next(islice(solver(dictionary, obs, 0.1, start=start), iterations, None))
    assert torch.allclose(last, solve_lasso(dictionary, obs, 0.1).codes, atol=1e-4)


@pytest.mark.parametrize("with_gram", [True, False])
def test_an_iteration_by_hand(with_gram):
    dictionary, obs = random_lasso(20, 24, 6, seed=1)
    gram = dictionary.T @ dictionary if with_gram else None
    start = torch.randn(6, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1 / lipschitz(dictionary)
    residual = start @ dictionary.T - obs
    expected = soft_threshold(start - step * residual @ dictionary, 0.1 * step)
    for solver in (ista, fista):
        found = next(islice(solver(dictionary, obs, 0.1, start=start, gram=gram), 1, None))
        torch.testing.assert_close(found, expected)


def test_ista_never_raises_the_objective():
    dictionary, obs = random_lasso(20, 24, 6, seed=2)
    start = torch.randn(6, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = [
        objective(dictionary, obs, y, 0.1)
        for y in islice(ista(dictionary, obs, 0.1, start=start), 50)
    ]
    assert all((b <= a + 1e-12).all() for a, b in pairwise(values))


@pytest.mark.parametrize("solver", [ista, fista])
def test_starts_at_the_start(solver):
    dictionary, obs = random_lasso(5, 6, 2, seed=3)
    start = torch.ones(2, 6, dtype=torch.float64)
    assert torch.equal(next(solver(dictionary, obs, 0.1, start=start)), start)
