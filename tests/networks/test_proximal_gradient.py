from functools import partial

import pytest
import torch

from sdunroll.checks import InvalidValue
from sdunroll.constraints import GradientNorm, SplitGradient
from sdunroll.networks import CnnProximal, FlowProximal, ProximalGradient
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


def test_steps_and_shrinkages_stay_positive():
    _, batch, network = setting()
    optimizer = torch.optim.SGD(network.parameters(), lr=10.0)
    run(network, batch).states[-1].sum().backward()
    network.log_mu.grad.fill_(1.0)
    for step in network.proximal:
        step.log_lambda.grad.fill_(1.0)
    optimizer.step()
    assert (network.log_mu.exp() > 0).all()
    assert all(step.log_lambda.exp() > 0 for step in network.proximal)


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
