import pytest
import torch
from sklearn.decomposition import MiniBatchDictionaryLearning

from sdunroll.checks import InvalidValue, UserError
from sdunroll.data import Synthetic
from sdunroll.solvers import DictionaryLearning, solve_lasso
from tests.solvers.test_lasso import objective


def cost(dictionary, signals, alpha):
    codes = solve_lasso(dictionary, signals, alpha).codes
    return objective(dictionary, signals, codes, alpha).mean().item()


# the peer's inner solver stops after 1,000 sweeps, which is close enough
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_as_good_as_the_online_learning_of_scikit_learn():
    source = Synthetic(num_features=16, num_atoms=20, sparsity=0.1, num_train=1000, num_test=200)
    train, test = source.signals("train"), source.signals("test")
    peer = MiniBatchDictionaryLearning(
        20, alpha=0.1, max_iter=10, batch_size=100, fit_algorithm="cd", random_state=0, tol=0
    ).fit(train.numpy())
    learned = DictionaryLearning(alpha=0.1, passes=10, batch_size=100)(train, 20)
    theirs = torch.from_numpy(peer.components_.T.copy()).to(test)
    assert cost(learned, test, 0.1) <= 1.02 * cost(theirs, test, 0.1)
    # both are far better than a dictionary of signals, where learning starts
    start = torch.nn.functional.normalize(train[:20].T, dim=0)
    assert cost(learned, test, 0.1) <= 0.9 * cost(start, test, 0.1)


def test_columns_have_unit_norm_and_the_cost_falls():
    signals = Synthetic(num_features=16, num_atoms=20, num_train=1000).signals("train")
    costs = []
    for passes in (1, 8):
        dictionary = DictionaryLearning(alpha=0.1, passes=passes, batch_size=128)(signals, 20)
        assert torch.allclose(dictionary.norm(dim=0), torch.ones(20), atol=1e-5)
        costs.append(cost(dictionary, signals[:200], 0.1))
    assert costs[1] < 0.95 * costs[0]


def test_same_seed_same_dictionary():
    signals = Synthetic(num_features=8, num_atoms=10, num_train=200).signals("train")
    learn = DictionaryLearning(alpha=0.1, passes=2, seed=3)
    assert torch.equal(learn(signals, 10), learn(signals, 10))
    other = DictionaryLearning(alpha=0.1, passes=2, seed=4)
    assert not torch.equal(learn(signals, 10), other(signals, 10))


def test_an_atom_without_use_is_replaced():
    """Signals in one direction use one atom; the others must still be finite, unit vectors."""
    signals = torch.ones(100, 6)
    dictionary = DictionaryLearning(alpha=0.1, passes=3, batch_size=20)(signals, 8)
    assert torch.allclose(dictionary.norm(dim=0), torch.ones(8), atol=1e-5)


def test_no_two_atoms_are_replaced_by_the_same_signal():
    """Few of the atoms are used at this alpha, and the last batch is one signal."""
    signals = torch.randn(65, 8, generator=torch.Generator().manual_seed(0))
    learned = DictionaryLearning(alpha=4.0, passes=1, batch_size=64)(signals, 32)
    overlaps = (learned.T @ learned).fill_diagonal_(0)
    assert overlaps.max() < 1 - 1e-4


def test_refuses_fewer_signals_than_atoms():
    with pytest.raises(UserError, match=r"expected at least 5 training signals .* got 3"):
        DictionaryLearning(alpha=0.1)(torch.cat([torch.eye(3), torch.zeros(4, 3)]), 5)


@pytest.mark.parametrize("setting", [{"alpha": 0}, {"alpha": 0.1, "passes": 0}])
def test_refuses(setting):
    with pytest.raises(InvalidValue):
        DictionaryLearning(**setting)
