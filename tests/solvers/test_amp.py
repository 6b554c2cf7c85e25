import sys
from itertools import islice

import numpy as np
import pytest
import torch

from sdunroll.data import SparseCodes, gaussian_dictionary
from sdunroll.randomness import generator
from sdunroll.solvers import amp, least_squares_on, solve_lasso


def instances(features=60, atoms=120, count=20, sparsity=0.05):
    codes = SparseCodes(num_atoms=atoms, sparsity=sparsity, num_val=count).signals("val").double()
    dictionary = gaussian_dictionary(features, atoms, 0).double()
    return dictionary, codes @ dictionary.T, codes


def test_amp_by_the_formula():
    dictionary, obs, codes = instances(count=3)
    found = list(islice(amp(dictionary, obs, 1.2, start=torch.zeros_like(codes)), 4))
    for row in range(3):  # one instance, in numpy
        D, x = dictionary.numpy(), obs[row].numpy()
        y, v = np.zeros(120), np.zeros(60)
        for step in range(1, 4):
            v = x - D @ y + np.count_nonzero(y) / 60 * v
            r = y + D.T @ v
            y = np.sign(r) * np.maximum(np.abs(r) - 1.2 * np.sqrt(np.mean(v**2)), 0)
            assert np.allclose(found[step][row].numpy(), y)


def test_amp_ends_at_an_optimum_of_the_lasso():
    """With D^T v = alpha sign(y) at a fixed point, alpha = threshold (1 - ||y||_0 / m)."""
    dictionary, obs, codes = instances(features=200, atoms=400, count=1, sparsity=0.02)
    obs = obs + 0.05 * torch.randn(obs.shape, generator=generator(0, "w"), dtype=torch.float64)
    y = next(islice(amp(dictionary, obs, 1.5, start=torch.zeros_like(codes)), 300, None))
    alpha = ((obs - y @ dictionary.T) @ dictionary).abs().max().item()
    optimum = solve_lasso(dictionary, obs, alpha).codes
    assert (y - optimum).norm() < 1e-3 * optimum.norm()


def test_least_squares_on_the_support_is_numpys():
    dictionary, obs, codes = instances()
    obs = obs + 0.1 * torch.randn(obs.shape, generator=generator(0, "w"), dtype=torch.float64)
    found = least_squares_on(dictionary, obs, codes != 0)
    assert torch.equal(found != 0, codes != 0)
    for row in range(len(codes)):
        support = (codes[row] != 0).numpy()
        values = np.linalg.lstsq(dictionary[:, support].numpy(), obs[row].numpy(), rcond=None)[0]
        assert np.allclose(found[row, support].numpy(), values)


def test_least_squares_in_parts(monkeypatch):
    dictionary, obs, codes = instances()
    whole = least_squares_on(dictionary, obs, codes != 0)
    monkeypatch.setattr(sys.modules["sdunroll.solvers.amp"], "COLUMN_ENTRIES", 1)
    assert torch.allclose(least_squares_on(dictionary, obs, codes != 0), whole)


def test_least_squares_recovers_without_noise_and_with_empty_supports():
    dictionary, obs, codes = instances()
    codes[0] = 0
    obs[0] = 0
    found = least_squares_on(dictionary, obs, codes != 0)
    assert torch.allclose(found, codes, atol=1e-10)
    nothing = least_squares_on(dictionary, obs, torch.zeros_like(codes, dtype=torch.bool))
    assert not nothing.any()


@pytest.mark.parametrize(("snr_db", "after", "expected"), [(None, 16, -30.4), (40.0, 25, -35.0)])
def test_amp_at_the_published_place(snr_db, after, expected):
    """NMSE in dB at m 250, n 500, p 0.1 within 1 dB, on the benchmark of Borgerding, Schniter, Rangan,
    "AMP-Inspired Deep Networks for Sparse Linear Inverse Problems", https://arxiv.org/abs/1612.01183."""
    from sdunroll.problems import sparse_recovery

    source = SparseCodes(num_val=100)
    problem = sparse_recovery(source, None, snr_db=snr_db)
    batch = problem.instances(source.signals("val"))
    y = next(islice(problem.baselines(batch)["amp"], after, None))
    errors, powers = problem.ratios(y[None], batch)["nmse_db"]
    assert float(10 * (errors.mean() / powers.mean()).log10()) == pytest.approx(expected, abs=1)
