from functools import partial

import cooper
import pytest
import torch
from cooper.optim.torch_optimizers.nupi_optimizer import nuPIInitType
from hypothesis import given
from hypothesis import strategies as st

from sdunroll.checks import InvalidValue
from sdunroll.primal_dual import Ascent, NotFinite, PrimalDual, ProportionalIntegral


def make(dual, start=(2.0, -1.0), lr=0.05, constraints=2, fused=False, **settings):
    weight = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=lr, fused=fused)
    method = PrimalDual(
        parameters=[("weight", weight)],
        optimizer=optimizer,
        dual=dual,
        num_constraints=constraints,
        **settings,
    )
    return weight, method


def loss_of(weight):
    return (weight - torch.tensor([3.0, 1.0], dtype=weight.dtype)).square().sum()


def slack_of(weight):
    return torch.stack([weight.sum() - 1, weight[0] - 1.5])


class Peer(cooper.ConstrainedMinimizationProblem):
    """The same problem as cooper states it."""

    def __init__(self):
        super().__init__()
        self.constraint = cooper.Constraint(
            constraint_type=cooper.ConstraintType.INEQUALITY,
            formulation_type=cooper.formulations.Lagrangian,
            multiplier=cooper.multipliers.DenseMultiplier(num_constraints=2, dtype=torch.float64),
        )

    def compute_cmp_state(self, weight):
        state = cooper.ConstraintState(violation=slack_of(weight))
        return cooper.CMPState(loss=loss_of(weight), observed_constraints={self.constraint: state})


@pytest.mark.parametrize("kind", ["ascent", "pi"])
def test_follows_cooper_step_by_step(kind):
    """Simultaneous primal descent and dual ascent (plain, or nuPI) on a problem with K = 2."""
    if kind == "ascent":
        dual = Ascent(rate=0.1)
        dual_optimizer = partial(torch.optim.SGD, lr=0.1, maximize=True)
    else:
        dual = ProportionalIntegral(k_i=0.1, k_p=0.5)
        dual_optimizer = partial(
            cooper.optim.nuPI,
            lr=1.0,
            Ki=torch.tensor(0.1, dtype=torch.float64),
            Kp=torch.tensor(0.5, dtype=torch.float64),
            init_type=nuPIInitType.ZEROS,
            maximize=True,
        )
    weight, method = make(dual)
    peer = Peer()
    their_weight = torch.nn.Parameter(weight.detach().clone())
    optimizer = cooper.optim.SimultaneousOptimizer(
        cmp=peer,
        primal_optimizers=torch.optim.SGD([their_weight], lr=0.05),
        dual_optimizers=dual_optimizer(peer.dual_parameters()),
    )
    # until the first clipped multiplier: nuPI clips the sum, ours the integral and the sum
    for _ in range(6 if kind == "pi" else 100):
        slack = slack_of(weight)
        method.primal_step(loss_of(weight), slack)
        method.dual_step(slack.detach())
        optimizer.roll(compute_cmp_state_kwargs={"weight": their_weight})
        assert torch.allclose(weight, their_weight, atol=1e-12)
        assert torch.allclose(method.multipliers, peer.constraint.multiplier.weight, atol=1e-12)
    assert method.multipliers.max() > 0.1


@pytest.mark.parametrize("dual", [Ascent(rate=0.5), ProportionalIntegral(k_i=0.05, k_p=0.5)])
def test_reaches_the_constrained_optimum(dual):
    """min ||w - (3, 1)||^2 with w_0 + w_1 <= 1 and w_0 <= 1.5: by KKT w = (1.5, -0.5), lambda = (3, 0)."""
    weight, method = make(dual)
    for _ in range(5000):
        slack = slack_of(weight)
        method.primal_step(loss_of(weight), slack)
        method.dual_step(slack.detach())
    assert torch.allclose(weight, torch.tensor([1.5, -0.5], dtype=torch.float64), atol=1e-3)
    assert method.multipliers[0].item() == pytest.approx(3, abs=0.02)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30))
def test_proportional_integral_by_hand(slacks):
    dual = ProportionalIntegral(k_i=0.3, k_p=2.0)
    state, integral = torch.zeros(1, dtype=torch.float64), 0.0
    for slack in slacks:
        state, multiplier = dual.step(state, torch.tensor([slack], dtype=torch.float64))
        integral = max(integral + 0.3 * slack, 0)
        assert multiplier.item() == pytest.approx(max(integral + 2.0 * slack, 0))
        assert multiplier >= 0


def test_smoothing_is_a_moving_average():
    _, method = make(Ascent(rate=1.0, smoothing=0.5))
    for slack in ([1.0, 0.0], [0.0, 1.0]):
        method.dual_step(torch.tensor(slack))
    # averages: (1, 0) at first, then (0.5, 0.5)
    assert method.multipliers.tolist() == [1.5, 0.5]


def test_without_constraints_it_is_the_plain_optimizer():
    weight, method = make(Ascent(rate=1.0), constraints=0)
    plain = torch.nn.Parameter(weight.detach().clone())
    optimizer = torch.optim.SGD([plain], lr=0.05)
    for _ in range(5):
        method.primal_step(loss_of(weight), slack_of(weight)[:0])
        method.dual_step(slack_of(weight)[:0].detach())
        optimizer.zero_grad()
        loss_of(plain).backward()
        optimizer.step()
    assert torch.equal(weight, plain)


def test_clipping():
    weight, method = make(Ascent(rate=1.0), lr=1.0, clip_norm=0.5, constraints=0)
    before = weight.detach().clone()
    method.primal_step(loss_of(weight), slack_of(weight)[:0])
    assert (weight - before).norm().item() == pytest.approx(0.5)
    assert weight.grad.norm().item() == pytest.approx(0.5)


def test_refuses_a_slack_of_the_wrong_shape():
    weight, method = make(Ascent(rate=1.0))
    with pytest.raises(
        ValueError, match=r"expected a scalar loss and a slack \(2,\), got .* \(1,\)"
    ):
        method.primal_step(loss_of(weight), slack_of(weight)[:1])
    with pytest.raises(ValueError, match=r"expected a slack \(2,\), got \(3,\)"):
        method.dual_step(torch.zeros(3))


@pytest.mark.parametrize("place", ["loss", "slack", "gradient"])
def test_stops_before_the_update_on_what_is_not_finite(place):
    weight, method = make(Ascent(rate=1.0))
    method.dual_step(torch.ones(2))
    before = weight.detach().clone()
    loss, slack = loss_of(weight), slack_of(weight)
    if place == "loss":
        loss = loss * torch.inf
    elif place == "slack":
        slack = slack + torch.nan
    else:  # the square root has an infinite slope at 0
        loss = loss + (weight.sum() - weight.detach().sum()).sqrt()
    with pytest.raises(
        NotFinite, match="gradient of weight is not finite" if place == "gradient" else "is"
    ):
        method.primal_step(loss, slack)
    assert torch.equal(weight, before)
    multipliers = method.multipliers.clone()
    with pytest.raises(NotFinite):
        method.dual_step(torch.tensor([0.0, torch.inf]))
    assert torch.equal(method.multipliers, multipliers)


@pytest.mark.parametrize("place", ["loss", "slack", "gradient"])
def test_where_nobody_waits_a_broken_step_changes_nothing(place):
    """As on a GPU; also not the steps after it."""
    start = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    weight = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([weight], lr=0.1, fused=True)
    dual = Ascent(rate=1.0, every="batch", smoothing=0.5)
    method = PrimalDual(
        parameters=[("weight", weight)], optimizer=optimizer, dual=dual, num_constraints=1
    )
    method.waits = False

    def step(spoil=None):
        loss, slack = weight.square().sum(), weight[:1] - 0.5
        if spoil == "loss":
            loss = loss * torch.inf
        elif spoil == "slack":
            slack = slack + torch.nan
        elif spoil == "gradient":  # the square root has an infinite slope at 0
            loss = loss + (weight.sum() - weight.detach().sum()).sqrt()
        method.primal_step(loss, slack)
        method.dual_step(slack.detach())

    def state():
        return [weight, method.multipliers, method.dual_state, method.smoothed]

    step()
    method.check()
    before = [value.detach().clone() for value in state()]
    assert not torch.equal(weight, start)
    for spoil in (place, None):
        step(spoil)
        assert all(map(torch.equal, state(), before))
        with pytest.raises(NotFinite, match="the Lagrangian or a gradient is not finite"):
            method.check()


def test_clipping_where_nobody_waits():
    found = []
    for waits in (True, False):
        weight, method = make(Ascent(rate=1.0), lr=1.0, clip_norm=0.5, fused=True)
        method.waits = waits
        for _ in range(20):  # at the end, there is nothing to clip
            method.primal_step(loss_of(weight), slack_of(weight))
            method.dual_step(slack_of(weight).detach())
        found.append(weight.detach())
    torch.testing.assert_close(*found)


def test_goes_on_from_its_state():
    dual = ProportionalIntegral(k_i=0.1, k_p=0.5, smoothing=0.5)
    weight, method = make(dual)

    def steps(weight, method, count):
        for _ in range(count):
            slack = slack_of(weight)
            method.primal_step(loss_of(weight), slack)
            method.dual_step(slack.detach())

    steps(weight, method, 5)
    other_weight, other = make(dual, start=weight.tolist())
    other.load_state_dict(method.state_dict())
    steps(weight, method, 5)
    steps(other_weight, other, 5)
    assert torch.equal(weight, other_weight)
    assert torch.equal(method.multipliers, other.multipliers)


def test_a_kept_state_stays_and_ends_what_was_broken():
    weight, method = make(Ascent(rate=1.0, every="batch"), fused=True)
    method.waits = False
    method.dual_step(torch.ones(2))
    kept = method.state_dict()
    method.dual_step(torch.ones(2))
    assert kept["multipliers"].tolist() == kept["dual_state"].tolist() == [1, 1]
    assert kept["smoothed"].tolist() == [1, 1]
    method.primal_step(loss_of(weight) * torch.nan, slack_of(weight))
    method.load_state_dict(kept)
    method.check()
    method.dual_step(torch.ones(2))
    assert method.multipliers.tolist() == [2, 2]
    assert kept["multipliers"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("kind", "settings", "name"),
    [
        (Ascent, {"rate": 0}, "rate"),
        (Ascent, {"rate": 1, "every": "week"}, "every"),
        (Ascent, {"rate": 1, "smoothing": 1}, "smoothing"),
        (ProportionalIntegral, {"k_i": 0, "k_p": 1}, "k_i"),
        (ProportionalIntegral, {"k_i": 1, "k_p": -1}, "k_p"),
    ],
)
def test_refuses(kind, settings, name):
    with pytest.raises(InvalidValue, match=name):
        kind(**settings)
