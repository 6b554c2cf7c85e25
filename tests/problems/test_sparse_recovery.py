import math

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_score, recall_score

from sdunroll.checks import UserError
from sdunroll.data import SparseCodes, Synthetic
from sdunroll.problems import SparseCoding, sparse_recovery
from sdunroll.randomness import generator

SOURCE = SparseCodes(num_atoms=60, sparsity=0.1, num_val=200)


def make(**settings):
    problem = sparse_recovery(SOURCE, None, num_features=30, **settings)
    return problem, problem.instances(SOURCE.signals("val"))


def test_measurements_and_targets():
    problem, batch = make()
    assert torch.equal(batch.target, SOURCE.signals("val"))
    assert torch.allclose(batch.obs, batch.target @ problem.coding.dictionary.T)


def test_noise_has_its_level_and_is_the_same_at_each_call():
    problem, batch = make(snr_db=10.0)
    noise = batch.obs - batch.target @ problem.coding.dictionary.T
    assert noise.std().item() == pytest.approx(math.sqrt(0.1 * 60 / 30 / 10), rel=0.05)
    assert torch.equal(problem.instances(batch.target).obs, batch.obs)
    half = problem.instances(batch.target[:100])
    assert not torch.equal(half.obs, batch.obs[:100])  # of other codes, other noise


def test_the_noise_of_a_disturbed_code_is_that_of_the_clean_one():
    problem, batch = make(snr_db=10.0)
    shifted = problem.instances(batch.target + 1, clean=batch.target)
    assert torch.equal(shifted.target, batch.target)
    added = torch.ones_like(batch.target) @ problem.coding.dictionary.T
    assert torch.allclose(shifted.obs, batch.obs + added, atol=1e-5)


def test_the_objective_is_that_of_the_lasso():
    problem, batch = make(alpha=0.3)
    lasso = SparseCoding(problem.coding.dictionary, alpha=0.3)
    y = torch.randn(2, *batch.target.shape, generator=generator(0, "y"))
    for name in ("objective", "gradient", "step_length"):
        ours, theirs = (getattr(one, name)(y, batch.obs) for one in (problem, lasso))
        assert torch.equal(ours, theirs)


def test_figures_by_hand():
    problem, batch = make(snr_db=20.0)
    drop = torch.rand(batch.target.shape, generator=generator(0, "drop")) < 0.3
    add = torch.rand(batch.target.shape, generator=generator(1, "add")) < 0.1
    y = torch.where(drop, 0.0, batch.target) + add
    found = problem.figures(y[None], batch)
    errors, powers = problem.ratios(y[None], batch)["nmse_db"]
    for row, (estimate, code) in enumerate(zip(y.numpy(), batch.target.numpy(), strict=True)):
        true, got = code != 0, estimate != 0
        scores = {"y_true": true, "y_pred": got, "zero_division": 1.0}
        assert found["precision"][0, row].item() == pytest.approx(precision_score(**scores))
        assert found["recall"][0, row].item() == pytest.approx(recall_score(**scores))
        assert found["false_positives"][0, row] == np.sum(got & ~true)
        assert errors[0, row].item() == pytest.approx(np.sum((estimate - code) ** 2), rel=1e-4)
        assert powers[0, row].item() == pytest.approx(np.sum(code**2), rel=1e-4)
        if true.any():
            nmse = 10 * np.log10(np.sum((estimate - code) ** 2) / np.sum(code**2))
            assert found["sample_nmse_db"][0, row].item() == pytest.approx(nmse, abs=1e-3)


def test_an_exact_recovery_and_an_empty_code_are_finite():
    problem, batch = make()
    batch.target[0] = 0
    for values in problem.figures(batch.target[None], batch).values():
        assert values.isfinite().all()
    exact = problem.figures(batch.target[None], batch)
    assert (exact["precision"] == 1).all()
    assert exact["sample_nmse_db"][0, 0] == 0
    assert exact["sample_nmse_db"][0, 1] < -100


def test_the_oracle_alone_knows_the_support():
    problem, batch = make()
    other = batch._replace(target=torch.zeros_like(batch.target))
    for name, states in problem.baselines(batch).items():
        blind = next(problem.baselines(other)[name])
        assert torch.equal(next(states), blind) == (name != "oracle")


def test_refuses_other_data():
    with pytest.raises(UserError, match=r"^data: expected sparse codes for sparse recovery"):
        sparse_recovery(Synthetic(), None)
