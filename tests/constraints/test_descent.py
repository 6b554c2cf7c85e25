import pytest
import torch

from sdunroll.checks import InvalidValue, UserError
from sdunroll.constraints import (
    DescentConstraint,
    Distance,
    GradientNorm,
    ObjectiveGap,
    distance,
    norm,
)
from sdunroll.data import Batch
from sdunroll.networks import Trajectory
from tests.conftest import make_batch, make_problem

BEFORE = torch.tensor([[4.0, 2.0], [3.0, 1.0]])  # (L, B)
AFTER = torch.tensor([[3.0, 1.0], [1.5, 0.5]])


def slack_of(constraint, before=BEFORE, after=AFTER):
    return constraint.slack_of(constraint.pairs(before, after).mean(-1))


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("ratio", [2 / 3 - 0.9, 1 / 2 - 0.9]),
        ("difference", [2 - 0.9 * 3, 1 - 0.9 * 2]),
        ("mean_ratio", [(3 / 4 + 1 / 2) / 2 - 0.9, 1 / 2 - 0.9]),
    ],
)
def test_forms_by_hand(form, expected):
    assert torch.allclose(slack_of(Distance(epsilon=0.1, form=form)), torch.tensor(expected))


@pytest.mark.parametrize("form", ["ratio", "difference", "mean_ratio"])
def test_terms_average_to_the_slack(form):
    constraint = Distance(epsilon=[0.1, 0.3], form=form)
    pairs = constraint.pairs(BEFORE, AFTER)
    terms = constraint.slack_terms(pairs, pairs.mean(-1))
    assert torch.allclose(terms.mean(1), slack_of(constraint))


def test_epsilon_by_layer_and_margin():
    constraint = Distance(epsilon=[0.1, 0.3])
    moments = constraint.pairs(BEFORE, AFTER).mean(-1)
    assert torch.allclose(constraint.slack_of(moments), torch.tensor([2 / 3 - 0.9, 1 / 2 - 0.7]))
    with_margin = constraint.slack_of(moments, margin=0.05)
    assert torch.allclose(with_margin, torch.tensor([2 / 3 - 0.85, 1 / 2 - 0.65]))


def test_the_last_epsilon_holds_for_the_layers_after_it():
    assert Distance(epsilon=0.2).epsilons(3) == (0.2, 0.2, 0.2)
    assert Distance(epsilon=[0.4, 0.3]).epsilons(4) == (0.4, 0.3, 0.3, 0.3)
    assert Distance(epsilon=[0.4, 0.3]).epsilons(1) == (0.4,)
    assert Distance(epsilon=[0.4, 0.3]).layers(1) == range(1, 2)
    before, after = torch.tensor([[2.0], [2.0], [2.0]]), torch.ones(3, 1)
    slack = slack_of(Distance(epsilon=[0.4, 0.3]), before, after)
    assert torch.allclose(slack, torch.tensor([0.5 - 0.6, 0.5 - 0.7, 0.5 - 0.7]))


class TwoNorms(DescentConstraint):
    parts = ("one", "two")

    def measure(self, problem, y, batch):
        return torch.stack([(y - batch.target).abs().sum(-1), distance(y, batch.target)])


@pytest.mark.parametrize("own", [False, True])
def test_a_network_cut_short_takes_the_first_epsilons_of_each_part(own):
    problem = make_problem()
    batch = make_batch(problem)
    path = path_of(problem, layers=2)
    if own:
        path = Trajectory(path.states, problems=[problem] * 2)
    one, two, three = (
        constraint.slack_of(constraint.moments(problem, path, batch))
        for constraint in (TwoNorms(epsilon=eps) for eps in (0.1, [0.1, 0.2], [0.1, 0.2, 0.3]))
    )
    assert torch.equal(three, two)
    assert torch.allclose(three - one, torch.tensor([0, 0.1, 0, 0.1]).double())


def test_staying_at_zero_counts_as_descent_and_leaving_it_does_not():
    constraint = Distance(epsilon=0.1)
    before = torch.zeros(2, 2)
    after = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    stays, leaves = slack_of(constraint, before, after)
    assert stays <= 0
    assert leaves > 0


def path_of(problem, layers=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    atoms = problem.dictionary.shape[1]
    states = torch.randn(layers + 1, 20, atoms, generator=rng, dtype=torch.float64)
    return Trajectory(states.requires_grad_())


@pytest.mark.parametrize(
    ("kind", "by_hand"),
    [
        (Distance, lambda p, y, b: (y - b.target).square().sum(-1).sqrt()),
        (GradientNorm, lambda p, y, b: p.gradient(y, b.obs).square().sum(-1).sqrt()),
        (ObjectiveGap, lambda p, y, b: p.objective(y, b.obs) - p.objective(b.target, b.obs)),
    ],
)
def test_measures_by_hand(kind, by_hand):
    problem = make_problem()
    batch = make_batch(problem)
    path = path_of(problem)
    measured = kind().measure(problem, path.states, batch)
    expected = torch.stack([by_hand(problem, y, batch) for y in path.states])
    assert measured.shape == (4, 20)
    assert torch.allclose(measured, expected)
    at_optimum = kind().measure(problem, batch.target, batch)
    assert at_optimum.abs().max() < 1e-8


def test_slack_is_of_the_constrained_layers():
    problem = make_problem()
    batch = make_batch(problem)
    path = path_of(problem)
    every = Distance().slack(problem, path, batch)
    but_the_first = Distance(first_layer=2).slack(problem, path, batch)
    assert every.shape == (3,)
    assert torch.equal(but_the_first, every[1:])


def test_a_perturbed_path_is_measured_from_what_each_layer_received():
    problem = make_problem()
    batch = make_batch(problem)
    clean = path_of(problem)
    received = clean.states[:-1] + 1
    constraint = Distance()
    before, after = constraint.measures(problem, Trajectory(clean.states, received), batch)
    assert torch.allclose(before, distance(received, batch.target))
    assert torch.allclose(after, distance(clean.states[1:], batch.target))


@pytest.mark.parametrize(
    ("settings", "reaches"),
    [
        ({"spare": None}, False),
        ({"detach_previous": False}, True),
        ({"spare": 0.2}, True),  # layer 2 descends by a third, 0.1 + 0.23
        ({"spare": 0.25}, False),
        ({"spare": 0.2, "margin": 0.3}, True),
        ({"spare": 0.2, "form": "difference"}, True),
    ],
)
@pytest.mark.parametrize("own", [False, True])
def test_where_the_gradient_reaches_the_layer_before(settings, reaches, own):
    """Whether the constraint of layer 3 sends a gradient to y_2, which layer 2 returned; also where each
    layer has an objective of its own."""
    problem = make_problem()
    batch = make_batch(problem)
    target = batch.target
    offsets = torch.tensor([4.0, 3.0, 2.0, 1.9], dtype=torch.float64).view(4, 1, 1)
    problems = [problem] * 3 if own else None
    path = Trajectory((target + offsets).requires_grad_(), problems=problems)
    constraint = Distance(epsilon=0.1, **settings)
    constraint.slack(problem, path, batch)[2].backward()
    reached = (path.states.grad.abs().sum((1, 2)) > 0).tolist()
    assert reached == [False, False, reaches, True]


def test_the_objective_gap_is_never_negative():
    """As it would be below a target that is not quite the optimum."""
    problem = make_problem()
    batch = make_batch(problem)
    inexact = batch._replace(target=batch.target + 0.1)
    assert (problem.objective(batch.target, batch.obs) < problem.objective(*inexact[::-1])).all()
    assert (ObjectiveGap().measure(problem, batch.target, inexact) == 0).all()


def test_a_measure_of_the_wrong_shape_is_refused():
    class Summed(DescentConstraint):
        def measure(self, problem, y, batch):
            return (y - batch.target).square().sum()

    problem = make_problem()
    with pytest.raises(UserError, match=r"Summed.measure, .*: expected .*\(4, 20\), got \(\)"):
        Summed().slack(problem, path_of(problem), make_batch(problem))


def test_refuses_detach_previous():
    with pytest.raises(InvalidValue, match="detach_previous"):
        Distance(detach_previous="sometimes")
    with pytest.raises(InvalidValue, match="spare"):
        Distance(spare=-0.1)


def test_distance_refuses_what_would_only_broadcast():
    target = torch.zeros(4, 6)
    assert distance(torch.ones(3, 4, 6), target).shape == (3, 4)
    with pytest.raises(ValueError, match="distance: expected y"):
        distance(torch.ones(6), target)
    with pytest.raises(ValueError, match="distance: expected y"):
        distance(torch.ones(4, 1), target)


def test_norm_and_its_gradient():
    y = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(norm(y, 2), torch.linalg.vector_norm(y, dim=-1))
    assert torch.autograd.gradcheck(lambda y: norm(y, 2), y)
    zero = torch.zeros(1, 4, requires_grad=True)
    norm(zero, 1).sum().backward()
    assert torch.equal(zero.grad, torch.zeros(1, 4))


def test_distance_of_images():
    y, target = torch.ones(2, 5, 3, 4, 4), torch.zeros(5, 3, 4, 4)
    assert torch.allclose(distance(y, target), torch.full((2, 5), 48.0).sqrt())


@pytest.mark.parametrize("epsilon", [0, 1, -0.1, 2, "much", [0.1, 1.5], []])
def test_refuses_epsilon(epsilon):
    with pytest.raises(InvalidValue, match="epsilon"):
        Distance(epsilon=epsilon)


def test_refuses_what_does_not_fit_the_network():
    with pytest.raises(InvalidValue, match="first_layer: expected at most"):
        Distance(first_layer=5).layers(4)
    with pytest.raises(InvalidValue, match=r"epsilon \+ margin"):
        Distance(epsilon=0.6, margin=0.5)


def test_batch_moves_together():
    batch = Batch(torch.zeros(2), torch.ones(2)).to("cpu")
    assert torch.equal(batch.target, torch.ones(2))


@pytest.mark.parametrize("form", ["ratio", "mean_ratio"])
def test_a_measure_that_grows_from_zero_is_a_large_finite_slack(form):
    constraint = Distance(epsilon=0.1, form=form)
    before = torch.tensor([[0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    after = torch.tensor([[0.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    pairs = constraint.pairs(before, after)
    slack = constraint.slack_of(pairs.mean(-1))
    assert slack[0].item() == pytest.approx(-0.9)
    assert slack[1].item() == pytest.approx(1e6, rel=1e-5)
    assert constraint.slack_terms(pairs, pairs.mean(-1)).isfinite().all()


@pytest.mark.parametrize("form", ["ratio", "difference", "mean_ratio"])
def test_the_standard_error_of_the_slack_is_its_spread_over_resamples(form):
    constraint = Distance(epsilon=0.1, form=form)
    rng = torch.Generator().manual_seed(0)
    before = 1 + torch.rand(2, 500, generator=rng)
    after = before * (0.5 + 0.5 * torch.rand(2, 500, generator=rng))
    pairs = constraint.pairs(before, after)
    drawn = torch.randint(500, (4000, 500), generator=rng)
    resampled = pairs[:, :, drawn].mean(-1).transpose(1, 2)  # (2, 4000, 2)
    spread = constraint.slack_of(resampled).std(0)
    torch.testing.assert_close(constraint.standard_error(pairs), spread, rtol=0.05, atol=0)
