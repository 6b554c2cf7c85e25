from functools import partial

import pytest
import torch

from sdunroll.checks import InvalidValue
from sdunroll.constraints import GradientNorm, Objective, SplitGradient
from sdunroll.networks import CnnProximal, FlowProximal, ProximalGradient
from sdunroll.networks.flow_steps import Coupling
from sdunroll.problems import Denoising, Inpainting, InverseImaging
from sdunroll.randomness import generator
from tests.conftest import make_problem
from tests.networks.test_flow import stirred

FLOW = partial(FlowProximal, depth=2, levels=2, width=4)


def setting(size=8, proximal=FLOW, dtype=torch.float64, **settings):
    """A problem, its batch and a network as after some training."""
    problem = InverseImaging(Inpainting(size=3))
    images = torch.rand(4, 3, size, size, generator=generator(0, "images"), dtype=dtype)
    batch = problem.instances(images)
    network = ProximalGradient(problem, generator(0, "weights"), proximal=proximal, **settings)
    network = stirred(network).to(dtype)
    network.prepare(batch.obs, generator(0, "prepare"))
    return problem, batch, network


def run(network, batch):
    return network(batch.obs, generator=generator(0, "start"))


def test_a_layer_by_hand():
    _, batch, network = setting(num_layers=2)
    path = run(network, batch)
    x, known = batch.obs[:, :3], batch.obs[:, 3:]
    y = x
    for index in range(2):
        v = y + network.log_mu[index].exp() * known * (x - known * y)
        step = network.proximal[index]
        latents = [z / (1 + step.log_lambda.exp()) for z in step.flow(v)]
        y = step.flow.inverse(latents)
        assert torch.allclose(path.states[index + 1], y, atol=1e-10)


def test_the_proximal_step_minimises_in_latent_space():
    """1/2 ||z - g(v)||^2 + lambda/2 ||z||^2 is least at z = g(prox(v))."""
    _, batch, network = setting()
    step, v = network.proximal[0], batch.target
    z = torch.cat([latent.flatten(1) for latent in step.flow(step(v))], 1)
    of_v = torch.cat([latent.flatten(1) for latent in step.flow(v)], 1)
    gradient = (z - of_v) + step.log_lambda.exp() * z
    assert gradient.abs().max() < 1e-8


def test_penalty_gradient_against_finite_differences():
    problem, batch, network = setting()
    layer = network.problems()[1]
    y = torch.rand(batch.target.shape, generator=generator(0, "y"), dtype=torch.float64)
    direction = torch.randn(y.shape, generator=generator(0, "d"), dtype=torch.float64)
    step = 1e-6
    ahead, behind = (layer.objective(y + sign * step * direction, batch.obs) for sign in (1, -1))
    slope = (layer.gradient(y, batch.obs) * direction).flatten(1).sum(1)
    assert torch.allclose((ahead - behind) / (2 * step), slope, rtol=1e-5)
    assert not torch.allclose(layer.gradient(y, batch.obs), problem.gradient(y, batch.obs))


def test_gradient_norms_can_be_trained():
    """Second derivatives through the flow, against finite differences of the slack."""
    problem, batch, network = setting(num_layers=2)
    constraint = GradientNorm(form="difference", detach_previous=False)

    def slack():
        return constraint.slack(problem, run(network, batch), batch).sum()

    weight = network.proximal[0].log_lambda
    (gradient,) = torch.autograd.grad(slack(), weight)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * 1e-5)
            values.append(slack().item())
            weight.sub_(sign * 1e-5)
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(gradient.item(), rel=1e-4)


@pytest.mark.parametrize("measure", [Objective, GradientNorm, SplitGradient])
def test_a_layer_does_not_descend_by_shrinking_its_own_penalty(measure):
    """With defaults, the first layer's slack, whose input is free of weights, has its full gradient:
    against finite differences along a direction of each weight."""
    problem, batch, network = setting(num_layers=1)
    constraint = measure(epsilon=0.1)

    def slack():
        moments = constraint.moments(problem, run(network, batch), batch)
        return constraint.slack_of(moments)[-1]  # of two parts that in latent space

    step = network.proximal[0]
    for weight in (step.log_lambda, step.flow.levels[0][0].log_diagonal, network.log_mu):
        (gradient,) = torch.autograd.grad(slack(), weight)
        direction = torch.randn(weight.shape, generator=generator(0, "d"), dtype=weight.dtype)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.add_(sign * 1e-5 * direction)
                values.append(slack().item())
                weight.sub_(sign * 1e-5 * direction)
        expected = (values[0] - values[1]) / 2e-5
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_no_gradient_to_the_layer_before_but_where_it_has_spare_descent():
    problem, batch, network = setting(num_layers=2)
    found = []
    for spare in (None, -10.0):
        constraint = Objective(epsilon=0.1, spare=None)
        constraint.spare = spare  # -10: every layer has descent to spare
        moments = constraint.moments(problem, run(network, batch), batch)
        weight = network.proximal[0].log_lambda
        (gradient,) = torch.autograd.grad(moments[0, 1], weight, allow_unused=True)
        found.append(gradient)
    assert found[0] is None or found[0] == 0
    assert found[1].abs() > 0


def test_split_gradient_by_hand():
    problem, batch, network = setting(num_layers=2)
    path = run(network, batch)
    before, after = SplitGradient().measures(problem, path, batch)
    for index in range(2):
        y, step = path.states[index + 1], network.proximal[index]
        data = problem.data_gradient(y, batch.obs).flatten(1).norm(dim=1)
        latents = torch.cat([z.flatten(1) for z in step.flow(y)], 1)
        assert torch.allclose(after[index], data)
        assert torch.allclose(after[2 + index], step.log_lambda.exp() * latents.norm(dim=1))
    assert torch.equal(before[1], after[0])  # the data term is the same for all layers
    assert not torch.allclose(before[3], after[2])  # the flow is not


def test_split_gradient_needs_a_latent_space():
    problem, batch, network = setting(proximal=CnnProximal)
    with pytest.raises(InvalidValue, match="split_gradient expects layers with a penalty"):
        SplitGradient().measures(problem, run(network, batch), batch)


@pytest.mark.parametrize("size", [8, 9, 13])
def test_any_size_is_restored(size):
    _, batch, network = setting(size=size)
    path = run(network, batch)
    assert path.states.shape[1:] == batch.target.shape
    assert network.health(path.states)["round_trip_error"] < 1e-10


def test_another_size_than_trained_on():
    _, _, network = setting(size=8)
    _, larger, _ = setting(size=20)
    assert run(network, larger).states[-1].shape == larger.target.shape


def test_small_steps_and_shrinkages_keep_a_gradient():
    _, batch, network = setting()
    with torch.no_grad():
        network.log_mu.fill_(-5.0)
        for step in network.proximal:
            step.log_lambda.fill_(-5.0)
    path = run(network, batch)
    path.states[-1].square().sum().backward()
    assert network.log_mu.grad[1:].abs().min() > 0  # y_0 keeps the known pixels: no step to take
    assert all(step.log_lambda.grad.abs() > 0 for step in network.proximal)


def test_a_shared_step_has_one_set_of_weights():
    _, batch, network = setting(shared=True, num_layers=3)
    assert len(network.proximal) == 1
    assert run(network, batch).states.shape[0] == 4


def test_starts():
    _, batch, measured = setting()
    _, _, harmonic = setting(start="harmonic")
    assert torch.equal(run(measured, batch).states[0], batch.obs[:, :3])
    filled = run(harmonic, batch).states[0]
    assert torch.allclose(filled * batch.obs[:, 3:], batch.obs[:, :3])
    assert (filled[..., 3, 3] > 0).all()


def test_denoising_has_no_hole():
    problem = InverseImaging(Denoising(noise=0.1))
    batch = problem.instances(torch.rand(3, 3, 8, 8, generator=generator(0, "images")))
    network = ProximalGradient(problem, generator(0, "w"), proximal=FLOW, start="harmonic")
    figures = problem.figures(run(network, batch).states, batch)
    assert set(figures) == {"psnr", "ssim"}


def test_refuses_codes():
    with pytest.raises(InvalidValue, match="restores pictures, got the problem SparseCoding"):
        ProximalGradient(make_problem(), generator(0, "w"), proximal=CnnProximal)


def test_a_cnn_inverts_nothing():
    proximal = CnnProximal(channels=1, generator=generator(0, "weights"))
    assert proximal.round_trip_error(torch.rand(2, 1, 8, 8)) is None


@pytest.mark.parametrize(("settings", "bound"), [({}, None), ({"shift_bound": 0.3}, 0.3)])
def test_the_bound_of_the_shifts_reaches_each_coupling(settings, bound):
    """Without the setting, as in runs that are older than it, there is none."""
    steps = [
        step for level in FLOW(3, generator(0, "weights"), **settings).flow.levels for step in level
    ]
    assert {step.shift_bound for step in steps if isinstance(step, Coupling)} == {bound}


def test_a_bound_of_the_shifts_is_above_zero():
    with pytest.raises(InvalidValue, match="shift_bound: expected a number > 0, got 0"):
        FLOW(3, generator(0, "weights"), shift_bound=0)
