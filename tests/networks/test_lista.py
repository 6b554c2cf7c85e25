from itertools import islice

import pytest
import torch

from sdunroll.checks import InvalidValue
from sdunroll.networks import CoupledLista, Lista
from sdunroll.networks.parts import soft
from sdunroll.randomness import generator
from sdunroll.solvers import soft_threshold
from tests.conftest import make_batch, make_problem


def make(problem, **settings):
    return Lista(problem, generator(0, "weights"), **settings)


def test_starts_as_ista():
    """With the ISTA initialisation, layer l is iteration l of ISTA."""
    problem = make_problem(dtype=torch.float32)
    batch = make_batch(problem)
    obs = batch.obs
    path = make(problem, start="zero", num_layers=6)(obs, generator=generator(0, "start"))
    expected = torch.stack(list(islice(problem.baselines(batch)["ista"], 7)))
    assert torch.allclose(path.states, expected, atol=1e-5)


def test_layers_by_the_formula():
    problem = make_problem(dtype=torch.float32)
    obs = make_batch(problem).obs
    network = make(problem, init="random", num_layers=3)
    path = network(obs, generator=generator(0, "start"))
    y = path.states[0]
    for index in range(3):
        v = y @ network.w1[index].T + obs @ network.w2[index].T
        y = soft_threshold(v, network.theta[index].abs())
        assert torch.allclose(path.states[index + 1], y, atol=1e-6)


def test_soft_threshold_gradients_by_finite_differences():
    v = torch.tensor([[1.0, -2.0, 0.2, 3.0]], dtype=torch.float64, requires_grad=True)
    theta = torch.tensor([0.5, 0.5, 0.5, 4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(soft, (v, theta))
    assert torch.allclose(soft(v, theta), soft_threshold(v, theta))


def test_start():
    problem = make_problem(dtype=torch.float32)
    obs = make_batch(problem, 500).obs
    zero = make(problem, start="zero")
    assert torch.equal(zero.initial(obs, generator(0, "s")), torch.zeros(500, 16))
    random = make(problem, start_std=0.3)
    start = random.initial(obs, generator(0, "s"))
    assert start.std().item() == pytest.approx(0.3, rel=0.05)
    assert torch.equal(start, random.initial(obs, generator(0, "s")))


def test_weights_come_from_the_generator():
    problem = make_problem()
    one = Lista(problem, generator(0, "weights"), init="random")
    same = Lista(problem, generator(0, "weights"), init="random")
    other = Lista(problem, generator(1, "weights"), init="random")
    assert torch.equal(one.w2, same.w2)
    assert not torch.equal(one.w2, other.w2)
    assert one.w1[0].std().item() == pytest.approx(0.1 / 4, rel=0.2)  # 1 / sqrt(100 n), n = 16


@pytest.mark.parametrize(
    "setting", [{"num_layers": 0}, {"init": "xavier"}, {"start": "warm"}, {"start_std": 0}]
)
def test_refuses(setting):
    with pytest.raises(InvalidValue, match=next(iter(setting))):
        make(make_problem(), **setting)


def test_refuses_another_problem():
    with pytest.raises(InvalidValue, match="LISTA unrolls sparse coding, got the problem Linear"):
        make(torch.nn.Linear(2, 2))


def test_the_analytic_start_is_that_of_coupled_weights():
    problem = make_problem(dtype=torch.float32)
    obs = make_batch(problem).obs
    start = generator(0, "start")
    lista = make(problem, start="zero", init="analytic", num_layers=4)
    coupled = CoupledLista(problem, start, num_layers=4, selection=0.0)
    expected = coupled(obs, generator=start).states
    assert torch.allclose(lista(obs, generator=start).states, expected, atol=1e-4)
