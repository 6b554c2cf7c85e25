"""Each network of the LISTA family by its formula, or as the algorithm that it starts as."""

import math
from itertools import islice

import pytest
import torch

from sdunroll.checks import InvalidValue
from sdunroll.data import SparseCodes
from sdunroll.networks import (
    CoupledLista,
    GatedLista,
    HyperLista,
    Lamp,
    Lfista,
    Lista,
    StepLista,
)
from sdunroll.networks.parts import analytic_weight, select_support
from sdunroll.problems import sparse_recovery
from sdunroll.randomness import generator

SOURCE = SparseCodes(num_atoms=40, num_val=16)
PROBLEM = sparse_recovery(SOURCE, None, num_features=20, snr_db=30.0)
BATCH = PROBLEM.instances(SOURCE.signals("val"))
DICTIONARY = PROBLEM.coding.dictionary


def states(network, **arguments):
    return network(BATCH.obs, generator=generator(0, "start"), **arguments).states


def make(kind, layers=5, **settings):
    return kind(PROBLEM, generator(0, "weights"), num_layers=layers, **settings)


@pytest.mark.parametrize(
    ("kind", "settings", "solver"),
    [
        (Lista, {"start": "zero"}, "ista"),
        (Lista, {"start": "zero", "tied": True}, "ista"),
        (StepLista, {}, "ista"),
        (Lfista, {}, "fista"),
        (Lamp, {}, "amp"),
    ],
)
def test_starts_as_a_classical_solver(kind, settings, solver):
    expected = torch.stack(list(islice(PROBLEM.baselines(BATCH)[solver], 7)))
    assert torch.allclose(states(make(kind, 6, **settings)), expected, atol=1e-5)


def disturbed(network):
    """The network with weights that are not those of its start."""
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator(1, "weights"))
    return network


@pytest.mark.parametrize("weight", ["untied", "tied", "analytic"])
@pytest.mark.parametrize("selection", [0.0, 0.05])
def test_coupled_by_the_formula(weight, selection):
    network = disturbed(make(CoupledLista, weight=weight, selection=selection, max_selection=0.1))
    found = states(network)
    y = torch.zeros_like(BATCH.target)
    for layer in range(5):
        if weight == "analytic":
            w = analytic_weight(DICTIONARY)
        else:
            w = network.weights[layer if weight == "untied" else 0]
        gamma = 1 if weight == "untied" else network.gamma(layer + 1)
        v = y + gamma * (BATCH.obs - y @ DICTIONARY.T) @ w
        count = round(40 * min(selection * (layer + 1), 0.1))
        y = select_support(v, network.theta(layer + 1), count)
        assert torch.allclose(found[layer + 1], y, atol=1e-5)


def test_what_is_learned():
    """The names and numbers of the weights, with 5 layers, m 20 and n 40."""
    sizes = {
        kind: sum(weight.numel() for weight in make(CoupledLista, weight=kind).parameters())
        for kind in ("untied", "tied", "analytic")
    }
    assert sizes == {"untied": 5 * 800 + 5, "tied": 800 + 10, "analytic": 10}
    assert sum(weight.numel() for weight in make(HyperLista).parameters()) == 2
    tied, untied = (make(Lista, tied=tied) for tied in (True, False))
    assert [len(network.w1) for network in (tied, untied)] == [1, 5]
    assert [network.shares_weights for network in (tied, untied)] == [True, False]


def test_gated_by_the_formula():
    network = disturbed(make(GatedLista, selection=0.05, gate=0.5))
    found = states(network)
    y = torch.zeros_like(BATCH.target)
    for layer in range(5):
        theta, mu, nu, a = (
            values(layer + 1)
            for values in (network.theta, network.mu, network.nu, network.overshoot)
        )
        before = network.theta(layer) if layer else 0.0
        z = (1 + mu * before * torch.exp(-nu * y.abs())) * y
        v = z + (BATCH.obs - z @ DICTIONARY.T) @ network.weights[layer]
        u = select_support(v, theta, network.selected[layer])
        y = y + (1 + a * theta / ((u - y).abs() + 0.1)) * (u - y)
        assert torch.allclose(found[layer + 1], y, atol=1e-5)


def test_hyper_by_the_formula():
    network = disturbed(make(HyperLista, selection=3.0))
    found = states(network)
    c1, c2 = network.c1(1).detach(), network.c2(1).detach()
    inverse, w = torch.linalg.pinv(DICTIONARY), analytic_weight(DICTIONARY)
    for row in range(len(BATCH.obs)):
        x, before, y = BATCH.obs[row], torch.zeros(40), torch.zeros(40)
        first = (inverse @ x).abs().sum()
        for layer in range(5):
            left = x - DICTIONARY @ y
            error = (inverse @ left).abs().sum()
            v = y + w.T @ left + c2 * (y != 0).sum() * (y - before)
            count = round(3 * max(0.0, math.log(first / error)))
            before, y = y, select_support(v[None], c1 * error, count)[0]
            assert torch.allclose(found[layer + 1, row], y, atol=1e-4)


def test_lfista_by_the_formula():
    network = disturbed(make(Lfista))
    found = states(network)
    for layer in range(1, 6):
        v = BATCH.obs @ network.we[layer - 1].T
        if layer > 1:
            v = v + found[layer - 1] @ network.wg[layer - 2].T
        if layer > 2:
            v = v + found[layer - 2] @ network.wm[layer - 3].T
        theta = network.theta(layer)
        expected = v.sign() * (v.abs() - theta).clamp_min(0)
        assert torch.allclose(found[layer], expected, atol=1e-5)


def test_what_lamp_carries_is_of_its_own_output():
    """A disturbance between the layers makes no entry count that the threshold had set to 0."""
    network = make(Lamp, 2)
    first = states(network)[1]
    moved = first + 0.01
    final = states(network, perturb=lambda index, y: y + 0.01 if index == 1 else y)[2]
    v = BATCH.obs - moved @ DICTIONARY.T + (first != 0).sum(1, keepdim=True) / 20 * BATCH.obs
    r = moved + v @ DICTIONARY
    theta = 1.1402 * v.norm(dim=1, keepdim=True) / math.sqrt(20)
    assert torch.allclose(final, r.sign() * (r.abs() - theta).clamp_min(0), atol=1e-5)


KINDS = [CoupledLista, GatedLista, HyperLista, Lamp, Lfista, StepLista, Lista]


@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_leaves_nothing_to_the_next(kind):
    network = make(kind)
    first = states(network)
    states(network, depth=2)
    assert torch.equal(states(network), first)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_layers_get_no_gradient_and_the_same_states(kind):
    """Whatever the networks carry from layer to layer."""
    network = disturbed(make(kind))
    free, frozen = states(network), states(network, frozen=4)
    assert torch.equal(free, frozen)
    weights = dict(network.named_parameters())
    loss = frozen[-1].square().sum()
    grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    for name, grad in zip(weights, grads, strict=True):
        if grad is None or network.shares_weights:
            continue
        if grad.shape[0] == 5 and grad.ndim in (1, 3):  # a part for each layer
            assert not grad[:4].any(), name
            assert name.startswith(("nu", "mu")) or grad[4].any(), name
        else:
            assert name.rsplit(".", 1)[1] in ("4", "3", "2"), name  # the last of its list
            assert grad.any(), name


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        (CoupledLista, {"weight": "loose"}),
        (CoupledLista, {"selection": 1.5}),
        (CoupledLista, {"threshold": 0}),
        (CoupledLista, {"decay": 0}),
        (GatedLista, {"gate": 0}),
        (HyperLista, {"selection": -1}),
        (HyperLista, {"momentum": 0}),
        (Lamp, {"tuning": 0}),
        (Lista, {"tied": 1}),
    ],
)
def test_refuses(kind, setting):
    with pytest.raises(InvalidValue, match=next(iter(setting))):
        make(kind, **setting)
