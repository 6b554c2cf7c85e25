from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from sdunroll.randomness import generator
from sdunroll.solvers import duality_gap, solve_lasso
from sdunroll.solvers.feature_sign import feature_sign
from sdunroll.solvers.lasso import Admm
from tests.solvers.test_lasso import objective, random_lasso


@pytest.mark.parametrize(("features", "atoms"), [(20, 24), (30, 15), (10, 40)])
@pytest.mark.parametrize("start", ["zero", "random"])
def test_agrees_with_coordinate_descent_of_scikit_learn(features, atoms, start):
    dictionary, obs = random_lasso(features, atoms, 6, seed=features)
    gram, drive = dictionary.T @ dictionary, obs @ dictionary
    y = torch.zeros(6, atoms, dtype=torch.float64)
    if start == "random":  # on as many atoms as the signal has features, at most
        y[:, : min(features, atoms) // 2] = torch.randn(
            6, min(features, atoms) // 2, generator=generator(0, "start"), dtype=torch.float64
        )
    codes = torch.stack([feature_sign(*row, 0.1) for row in zip(y, [gram] * 6, drive, strict=True)])
    peer = Lasso(alpha=0.1 / features, fit_intercept=False, tol=1e-14, max_iter=200_000)
    expected = np.stack([peer.fit(dictionary.numpy(), x.numpy()).coef_ for x in obs])
    assert np.allclose(codes, expected, atol=1e-7)
    assert duality_gap(dictionary, obs, codes, 0.1).max() <= 1e-9


def test_no_step_makes_it_worse_though_the_start_has_more_atoms_than_features():
    dictionary, obs = random_lasso(10, 40, 1, seed=3)
    gram, drive = dictionary.T @ dictionary, (obs @ dictionary)[0]
    y = torch.randn(40, generator=generator(0, "start"), dtype=torch.float64)
    codes = [feature_sign(y, gram, drive, 0.1, max_steps=steps) for steps in (*range(30), 500)]
    values = [objective(dictionary, obs, code[None], 0.1).item() for code in codes]
    assert all(after <= before + 1e-9 for before, after in pairwise(values))
    assert duality_gap(dictionary, obs, codes[-1][None], 0.1) <= 1e-9


def test_it_goes_on_where_the_only_atom_leaves():
    gram = torch.tensor([[1.0, 0.3], [0.3, 1.0]], dtype=torch.float64)
    drive, start = torch.tensor([[0.9, 2.0], [0.01, 0.0]], dtype=torch.float64)
    # y_2 = (2 - alpha) alone is optimal: |0.9 - 0.3 y_2| < alpha
    assert torch.allclose(feature_sign(start, gram, drive, 1.0), torch.tensor([0.0, 1.0]).double())


def test_what_the_batched_solver_leaves_is_searched(monkeypatch):
    """Correlated atoms, as of bright patches, of which ADMM leaves some for long."""
    rng = generator(0, "correlated")
    dictionary = torch.rand(20, 30, generator=rng, dtype=torch.float64)
    dictionary /= dictionary.norm(dim=0)
    obs = torch.rand(40, 20, generator=rng, dtype=torch.float64)
    solution = solve_lasso(dictionary, obs, 0.002, tolerance=1e-10)
    limit = Admm.search_after
    assert solution.iterations.max() == limit
    assert solution.gap.max() <= 1e-10
    monkeypatch.setattr(Admm, "search_after", -1)
    slow = solve_lasso(dictionary, obs, 0.002, tolerance=1e-10)
    assert slow.iterations.max() > 2 * limit
    assert torch.allclose(solution.codes, slow.codes, atol=1e-7)
