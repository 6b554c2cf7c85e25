"""The attack is real: against closed forms, against random noise, monotone in radius and steps."""

import pytest
import torch

from sdunroll.adversarial import Adversarial, ascend, project, steepest
from sdunroll.checks import InvalidValue
from sdunroll.constraints import Distance, distance
from sdunroll.metrics import evaluate
from sdunroll.networks import Lista, UnrolledNetwork
from sdunroll.perturbations import Perturbation, random_direction
from sdunroll.problems import Inpainting, InverseImaging
from sdunroll.randomness import generator
from tests.conftest import make_batch, make_problem

PROBLEM = make_problem()
BATCH = make_batch(PROBLEM, 20)
SIGNALS = BATCH.obs


class Identity(UnrolledNetwork):
    """y_l = w y_{l-1}, with w = 1: the worst change after any layer has a closed form."""

    def __init__(self):
        super().__init__(num_layers=4)
        self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def initial(self, obs, generator):
        """Away from the targets by more than the ball in every entry, so that there is one maximum."""
        away = torch.randn(len(obs), 16, generator=generator, dtype=obs.dtype)
        return BATCH.target + away + 2 * away.sign()

    def layer(self, index, y, shared):
        return self.weight * y


class RandomNoise(Perturbation):
    """A random direction of the norm of the attack's ball, in the same place."""

    def __init__(self, level, *, where):
        super().__init__(level)
        self.where = where

    def disturb(self, signals, generator, value_range):
        size = self.level if self.where == "input" else 0.0
        return signals + size * random_direction(signals, generator)

    def between_layers(self, problem, batch, generator):
        def perturb(index, y):
            size = self.level * problem.step_length(y, batch.obs)[:, None]
            moved = y + size * random_direction(y, generator)
            return moved if self.where == "layer" and index == 3 else y

        return perturb


def lista(num_layers=6):
    return Lista(PROBLEM, generator(0, "weights"), num_layers=num_layers).double()


def final_distances(network, attack, seed=3):
    """Of the attacked instances, as an evaluation sees them, (N,)."""
    aimed = attack.aim(network, seed)
    data = aimed.instances(PROBLEM, SIGNALS, generator(seed, "x"), None)
    found = evaluate(network, PROBLEM, Distance(), data, seed=seed, perturbation=aimed)
    return found.states["distance"][-1]


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_worst_change_of_a_distance_is_along_it(norm):
    """max ||v + delta|| is ||v|| + r at delta = r v / ||v||; in l-infinity at delta = r sign(v)."""
    v = torch.randn(30, 5, generator=generator(0, "v"), dtype=torch.float64)
    v = v + v.sign()  # beyond the ball in every entry, so that there is one maximum
    radius = torch.rand(30, generator=generator(0, "r"), dtype=torch.float64)

    def loss(delta):
        size = (v + delta).norm(dim=1)
        return size, (v + delta) / size[:, None]

    settings = {"norm": norm, "steps": 20, "restarts": 1, "generator": generator(0, "start")}
    delta = ascend(loss, v, radius, **settings)
    worst = radius[:, None] * (v / v.norm(dim=1, keepdim=True) if norm == "l2" else v.sign())
    expected = (v + worst).norm(dim=1)
    torch.testing.assert_close((v + delta).norm(dim=1), expected, rtol=1e-3, atol=0)
    assert ((v + delta).norm(dim=1) <= expected * (1 + 1e-9)).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_projection_is_the_nearest_point_of_the_ball(norm):
    order = 2 if norm == "l2" else torch.inf
    delta = torch.randn(50, 4, generator=generator(0, "d"), dtype=torch.float64)
    radius = torch.full((50,), 0.7, dtype=torch.float64)
    projected = project(delta, radius, norm)
    sizes = torch.linalg.vector_norm(projected, ord=order, dim=1)
    assert (sizes <= 0.7 + 1e-12).all()
    inside = torch.linalg.vector_norm(delta, ord=order, dim=1) <= 0.7
    assert torch.equal(projected[inside], delta[inside])
    others = 0.7 * random_direction(delta, generator(1, "o"))  # in both balls
    gap = (delta - projected).norm(dim=1)
    assert ((delta - others).norm(dim=1) >= gap - 1e-12).all()


def test_the_steepest_direction_gains_most_for_its_norm():
    gradient = torch.randn(20, 6, generator=generator(0, "g"), dtype=torch.float64)
    gain = {norm: (gradient * steepest(gradient, norm)).sum(1) for norm in ("l2", "linf")}
    torch.testing.assert_close(gain["l2"], gradient.norm(dim=1))
    torch.testing.assert_close(gain["linf"], gradient.abs().sum(1))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_after_a_layer_it_finds_the_closed_form(norm):
    network = Identity()
    start = network.initial(BATCH.obs, generator(3, "evaluation/start"))
    away = start - BATCH.target
    length = PROBLEM.step_length(start, BATCH.obs)[:, None]
    direction = away / away.norm(dim=1, keepdim=True) if norm == "l2" else away.sign() / 4
    expected = (away + 0.5 * length * direction).norm(dim=1)
    attack = Adversarial(0.5, where="layer", norm=norm, steps=20)
    torch.testing.assert_close(final_distances(network, attack), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("where", ["input", "layer"])
def test_it_is_stronger_than_random_noise_of_the_same_norm(where):
    network = lista()
    plain = final_distances(network, Adversarial(0.0, where=where))
    attacked = final_distances(network, Adversarial(0.5, where=where))
    assert (attacked >= plain - 1e-9).all()
    random = final_distances(network, RandomNoise(0.5, where=where))
    assert attacked.mean() - plain.mean() > 2 * (random.mean() - plain.mean())


@pytest.mark.parametrize("where", ["input", "layer"])
def test_it_grows_with_the_radius_and_with_the_steps(where):
    network = lista()
    by_radius = [
        final_distances(network, Adversarial(level, where=where)).mean().item()
        for level in (0.0, 0.1, 0.3, 0.9)
    ]
    assert by_radius == sorted(by_radius)
    assert by_radius[0] < by_radius[1]
    by_steps = [
        final_distances(network, Adversarial(0.5, where=where, steps=steps)).mean().item()
        for steps in (1, 4, 16)
    ]
    assert by_steps == sorted(by_steps)
    assert by_steps[0] < by_steps[-1]


def test_more_restarts_are_never_weaker():
    network = lista()
    few, many = (
        final_distances(network, Adversarial(0.5, restarts=count, steps=3)) for count in (1, 4)
    )
    assert (many >= few - 1e-9).all()
    assert many.mean() > few.mean()


def test_attacked_signals_stay_in_the_ball_and_in_range_and_have_targets_of_their_own():
    network, signals = lista(), SIGNALS.clamp(-1, 1)
    aimed = Adversarial(0.3).aim(network, 0)
    data = aimed.instances(PROBLEM, signals, generator(0, "x"), (-1.0, 1.0))
    assert ((data.obs - signals).norm(dim=1) <= 0.3 + 1e-9).all()
    assert data.obs.abs().max() <= 1
    torch.testing.assert_close(data.target, PROBLEM.optimum(data.obs))
    assert not data.obs.requires_grad


def test_the_gradient_passes_through_the_optimum():
    """Against central differences of the true final distance, in float64."""
    network = lista()
    direction = torch.randn(SIGNALS.shape, generator=generator(0, "d"), dtype=torch.float64)

    def final(signals):
        batch = PROBLEM.instances(signals, keep=False)
        return network(batch.obs, generator=generator(0, "evaluation/start")).output, batch.target

    with torch.enable_grad():
        signals = SIGNALS.clone().requires_grad_()
        distance(*final(signals)).sum().backward()
    slope = (signals.grad * direction).sum(1)
    step = 1e-6
    with torch.no_grad():
        ahead, behind = (distance(*final(SIGNALS + sign * step * direction)) for sign in (1, -1))
    torch.testing.assert_close(slope, (ahead - behind) / (2 * step), rtol=1e-3, atol=1e-4)


def test_of_inpainting_the_known_pixels_alone_are_attacked_and_the_target_stays():
    problem = InverseImaging(Inpainting(mask="box", size=4), channels=1)
    pictures = torch.rand(6, 1, 8, 8, generator=generator(0, "p"))

    class Sharpen(Identity):
        def initial(self, obs, generator):
            return obs[:, :1]

        def layer(self, index, y, shared):
            return 1.2 * self.weight.float() * y

    aimed = Adversarial(0.5).aim(Sharpen(), 0)
    data = aimed.instances(problem, pictures, generator(0, "x"), (0.0, 1.0))
    plain = problem.instances(pictures)
    assert torch.equal(data.target, pictures)
    assert torch.equal(data.obs[:, 1:], plain.obs[:, 1:])  # the same masks
    assert not torch.equal(data.obs, plain.obs)
    assert (data.obs * (1 - data.obs[:, 1:])).abs().max() == 0


def test_refuses_layers_that_pass_nothing_on():
    assert Adversarial(1.0, where="layer", layer=5).aim(lista(), 0).layer == 5
    with pytest.raises(InvalidValue, match="layers 1 to 5, which pass something on, got 6"):
        Adversarial(1.0, where="layer", layer=6).aim(lista(6), 0)
    with pytest.raises(InvalidValue, match="one layer of this network passes nothing on"):
        Adversarial(1.0, where="layer").aim(lista(1), 0)


@pytest.mark.parametrize(
    "settings", [{"where": "output"}, {"norm": "l1"}, {"steps": 0}, {"restarts": 0}, {"level": -1}]
)
def test_refuses(settings):
    with pytest.raises(InvalidValue):
        Adversarial(**({"level": 1.0} | settings))
