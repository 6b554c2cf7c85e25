import numpy as np
import pytest
import torch

from sdunroll.checks import InvalidValue
from sdunroll.data import gaussian_dictionary
from sdunroll.networks import parts
from sdunroll.networks.parts import (
    BAND,
    Positive,
    analytic_weight,
    first_thresholds,
    lasso_of,
    residual,
    select_support,
    selected,
    soft,
)
from sdunroll.problems import Denoising, InverseImaging, SparseRecovery
from sdunroll.randomness import generator
from sdunroll.solvers import soft_threshold


def drawn(*shape):
    return torch.randn(*shape, generator=generator(0, "drawn"), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(1,), (5,), (4, 1), (4, 5)])
def test_soft_threshold_and_its_gradients(shape):
    """The value by its definition, the gradients by finite differences."""
    v = drawn(4, 5).requires_grad_()
    theta = (0.3 + 0.2 * drawn(*shape).abs()).requires_grad_()
    assert torch.allclose(soft(v, theta), soft_threshold(v, theta))
    assert torch.autograd.gradcheck(soft, (v, theta))


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_support_selection_by_hand(count):
    v, theta = drawn(6, 5), torch.tensor([0.7], dtype=torch.float64)
    expected = np.zeros((6, 5))
    for row, values in enumerate(v.numpy()):
        largest = np.argsort(-np.abs(values))[:count]
        for place, value in enumerate(values):
            if abs(value) > 0.7:
                expected[row, place] = value - np.sign(value) * 0.7 * (place not in largest)
    assert np.allclose(select_support(v, theta, count).numpy(), expected)
    each = torch.full((6, 1), count)
    assert np.allclose(select_support(v, theta, each).numpy(), expected)


def test_support_selection_with_a_count_for_each_instance():
    v, theta = drawn(3, 5), torch.tensor([0.1], dtype=torch.float64)
    found = select_support(v, theta, torch.tensor([[0], [2], [5]]))
    for row, count in enumerate((0, 2, 5)):
        assert torch.equal(found[row], select_support(v, theta, count)[row])


def test_support_selection_gradients_by_finite_differences():
    """Where no entry is near theta."""
    v, theta = drawn(4, 5), torch.full((1,), 0.4, dtype=torch.float64)
    v = torch.where((v.abs() - theta).abs() < 1.1 * BAND * theta, 2 * v, v).requires_grad_()
    theta.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: select_support(a, b, 2), (v, theta))


@pytest.mark.parametrize("each", [False, True])
def test_support_selection_gradients_are_those_of_the_mean(each, monkeypatch):
    """The mean over many instances changes smoothly with theta and the scale of v, though each of them
    jumps: by finite differences, which the estimate approaches as its band gets narrow."""
    monkeypatch.setattr(parts, "BAND", 0.02)
    v, noise = drawn(2, 100_000, 5)
    count = torch.full((len(v), 1), 2) if each else 2

    def loss(change):
        theta, scale = torch.tensor([0.8, 1.0]).double() + change
        out = select_support(scale * v, theta.expand(1), count)
        return (out - noise).square().mean() / 2

    change = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(loss(change), change)
    steps = 0.02 * torch.eye(2, dtype=torch.float64)
    with torch.no_grad():
        wanted = [float(loss(step) - loss(-step)) / 0.04 for step in steps]
    assert found.tolist() == pytest.approx(wanted, rel=0.03)


def test_selected_grows_to_its_limit():
    assert selected(4, 100, share=0.05, most=0.12) == [5, 10, 12, 12]
    with pytest.raises(InvalidValue, match="selection"):
        selected(4, 100, share=2.0, most=0.1)


def test_analytic_weight_minimises_the_coherence():
    """Against the solution of the optimality system of each column's quadratic program."""
    dictionary = gaussian_dictionary(8, 14, 0).double()
    found = analytic_weight(dictionary)
    gram = (dictionary @ dictionary.T).numpy()
    for column in range(14):
        d = dictionary[:, column].numpy()
        # min w^T G w s.t. d^T w = 1: [2 G, d; d^T, 0] [w; lambda] = [0; 1]
        system = np.block([[2 * gram, d[:, None]], [d[None], np.zeros((1, 1))]])
        expected = np.linalg.solve(system, np.r_[np.zeros(8), 1])[:8]
        assert np.allclose(found[:, column].numpy(), expected, atol=1e-10)


def test_no_feasible_weight_has_less_coherence():
    dictionary = gaussian_dictionary(8, 14, 0).double()
    best = analytic_weight(dictionary)
    assert torch.allclose((best * dictionary).sum(0), torch.ones(14, dtype=torch.float64))
    least = (best.T @ dictionary).square().sum()
    for size in (1e-3, 0.1, 1.0):
        move = size * drawn(8, 14)
        move = move - dictionary * (move * dictionary).sum(0)  # stays feasible: unit columns
        assert ((best + move).T @ dictionary).square().sum() > least


def test_analytic_weight_of_fewer_atoms_than_features():
    """w_i^T d_j = 0 for all other atoms, which then can be reached."""
    dictionary = gaussian_dictionary(14, 8, 0).double()
    product = analytic_weight(dictionary).T @ dictionary
    assert torch.allclose(product, torch.eye(8, dtype=torch.float64))


def test_positive_numbers_start_where_they_are_told():
    start = torch.tensor([0.5, 0.4, 3.0])
    values = Positive(start)
    assert torch.allclose(torch.cat([values(layer) for layer in (1, 2, 3)]), start)


@pytest.mark.parametrize(("selecting", "deviations"), [(True, 3), (False, 1)])
def test_thresholds_start_geometrically_down_to_the_noise(selecting, deviations):
    dictionary = gaussian_dictionary(20, 40, 0)
    settings = {"threshold": 0.5, "decay": 0.8, "selecting": selecting}
    geometric = torch.tensor([0.5 * 0.8**layer for layer in range(30)])
    quiet = SparseRecovery(dictionary, alpha=0.1, sparsity=0.1)
    assert torch.allclose(first_thresholds(quiet, 30, **settings), geometric)
    noisy = SparseRecovery(dictionary, alpha=0.1, sparsity=0.1, snr_db=20.0)
    noise = noisy.std * torch.randn(20_000, 20, generator=generator(0, "w"))
    least = deviations * (noise @ analytic_weight(dictionary)).std(0).mean().item()
    found = first_thresholds(noisy, 30, **settings)
    assert found[[0, -1]].tolist() == pytest.approx([0.5, least], rel=0.02)
    assert torch.allclose(found[1:] / found[:-1], found[1] / found[0])
    few = first_thresholds(noisy, 3, **settings)  # which do not come down to the noise
    assert torch.allclose(few, geometric[:3])


def test_residual():
    dictionary, y, obs = drawn(3, 5), drawn(2, 5), drawn(2, 3)
    assert torch.allclose(residual(obs, y, dictionary), obs - y @ dictionary.T)


def test_the_lasso_of_a_problem():
    recovery = SparseRecovery(gaussian_dictionary(4, 6, 0), alpha=0.1, sparsity=0.1)
    assert lasso_of(recovery, "X") is recovery.coding
    assert lasso_of(recovery.coding, "X") is recovery.coding
    with pytest.raises(InvalidValue, match="network: X unrolls sparse coding, got the problem Inv"):
        lasso_of(InverseImaging(Denoising()), "X")


def test_the_analytic_weight_of_an_atom_of_zeros_is_zero():
    dictionary = torch.randn(6, 9, generator=generator(0, "d"), dtype=torch.float64)
    dictionary[:, 2] = 0
    weight = analytic_weight(dictionary)
    assert weight.isfinite().all()
    assert (weight[:, 2] == 0).all()
