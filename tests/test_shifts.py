import pytest
import torch

from sdunroll.checks import InvalidValue
from sdunroll.data import SparseCodes
from sdunroll.problems import sparse_recovery
from sdunroll.randomness import generator
from sdunroll.shifts import CoefficientShift, DictionaryShift, SnrShift, SparsityShift
from tests.conftest import make_problem

SOURCE = SparseCodes(num_atoms=100, num_val=400)
PROBLEM = sparse_recovery(SOURCE, None, num_features=50, snr_db=20.0)
CODES = SOURCE.signals("val")
DICTIONARY = PROBLEM.coding.dictionary


def instances(shift):
    return shift.instances(PROBLEM, CODES, generator(0, "shift"), None)


@pytest.mark.parametrize("level", [0.0, 10.0, 40.0])
def test_snr(level):
    batch = instances(SnrShift(level))
    clean = CODES @ DICTIONARY.T
    noise = batch.obs - clean
    measured = 10 * torch.log10(clean.square().mean() / noise.square().mean())
    assert abs(measured - level) < 0.2
    trained = PROBLEM.instances(CODES).obs - clean
    assert torch.allclose(noise / noise.norm(), trained / trained.norm(), atol=1e-5)
    assert torch.equal(batch.target, CODES)


@pytest.mark.parametrize("level", [0.03, 0.1, 0.3, 1.0])
def test_sparsity(level):
    batch = instances(SparsityShift(level))
    assert abs((batch.target != 0).float().mean().item() - level) < 0.005
    assert abs(batch.target[batch.target != 0].std().item() - 1) < 0.05
    both = (batch.target != 0) & (CODES != 0)
    assert torch.equal(batch.target[both], CODES[both])
    assert torch.equal(both, (batch.target if level < 0.1 else CODES) != 0)
    clean = batch.target @ DICTIONARY.T
    assert (batch.obs - clean).std().item() == pytest.approx(PROBLEM.std, rel=0.05)


@pytest.mark.parametrize("level", [0.01, 0.1])
def test_dictionary(level):
    problem = sparse_recovery(SOURCE, None, num_features=50)  # no noise
    batch = DictionaryShift(level).instances(problem, CODES, generator(0, "shift"), None)
    other = torch.linalg.lstsq(CODES, batch.obs).solution.T
    assert torch.allclose(other.norm(dim=0), torch.ones(100), atol=1e-4)
    moved = (other - DICTIONARY).norm(dim=0)
    assert moved.mean().item() == pytest.approx(level, rel=0.05)
    assert torch.equal(batch.target, CODES)


def test_coefficients():
    signs = instances(CoefficientShift(0.0))
    assert torch.equal(signs.target, CODES.sign())
    heavy = instances(CoefficientShift(2.0)).target[CODES != 0]
    assert heavy.var().item() == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize("shift", [SnrShift(1), SparsityShift(1), DictionaryShift(1)])
def test_refuses_another_problem(shift):
    with pytest.raises(InvalidValue, match=r"expected a run of sparse recovery .* SparseCoding"):
        shift.instances(make_problem(), CODES, generator(0, "shift"), None)


@pytest.mark.parametrize("level", [0, 1.5, "much"])
def test_refuses_a_share_that_is_none(level):
    with pytest.raises(InvalidValue, match="level"):
        SparsityShift(level)
