"""Contracts that every plug-in keeps: each config of each group is found, built and tried."""

import dataclasses
from contextlib import suppress
from copy import deepcopy
from functools import cache
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from sdunroll import cli
from sdunroll.checks import InvalidValue
from sdunroll.commands.assemble import assemble
from sdunroll.commands.instantiate import instantiate
from sdunroll.data import SPLITS
from sdunroll.networks import HyperLista
from sdunroll.randomness import generator
from tests.conftest import TINY, TINY_OF, Transfers

CPU = torch.device("cpu")

CONFIGS = cli.config_folder()
SMALL_DATA = [f"data.num_{split}=40" for split in SPLITS]
GROUPS = sorted(
    folder.name for folder in CONFIGS.iterdir() if folder.is_dir() and folder.name != "hydra"
)


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def fields(experiment):
    return {
        field.name: getattr(experiment, field.name) for field in dataclasses.fields(experiment)
    } | {"instances": experiment.instances}


@cache
def composed_once(command: str, *overrides: str):
    cli.register_resolvers()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(command, overrides=list(overrides), return_hydra_config=True)


def composed(*overrides: str, command: str = "train"):
    config = deepcopy(composed_once(command, *overrides))
    HydraConfig.instance().set_config(config)
    return config


def experiment_with(*overrides: str):
    return assemble(composed(*TINY, *overrides), torch.device("cpu"))


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_is_known_to_a_command(group):
    texts = "".join((CONFIGS / f"{name}.yaml").read_text() for name in cli.COMMANDS)
    assert f"- {group}:" in texts
    assert choices(group)


@pytest.mark.parametrize(
    ("group", "choice"),
    [(group, choice) for group in GROUPS if group != "perturbation" for choice in choices(group)],
)
def test_every_config_composes_and_resolves(group, choice):
    config = composed(f"{group}={choice}")
    resolved = OmegaConf.to_container(config, resolve=False)
    resolved.pop("hydra")
    if "ImageFolder" in str(resolved["data"]):
        resolved["data"]["root"] = "pictures"  # which the user must name
    OmegaConf.to_container(OmegaConf.create(resolved), resolve=True, throw_on_missing=True)


def test_an_experiment_overrides_the_network_of_its_problem():
    one = composed("experiment=robust_cnn")
    other = composed("problem=glow_prox", "network=prox_cnn")
    assert one.network == other.network
    assert one.training == other.training != composed().training


@pytest.mark.parametrize("choice", choices("data"))
def test_data(choice):
    if choice in ("cifar10", "image_folder"):
        pytest.skip(f"needs files; read in tests/data/test_{choice}.py")
    source = instantiate(composed(f"data={choice}", *SMALL_DATA), "data")
    splits = {split: source.signals(split) for split in SPLITS}
    for split, signals in splits.items():
        assert signals.dtype == torch.float32
        assert signals.isfinite().all()
        assert torch.equal(signals, source.signals(split))
        if source.value_range is not None:
            assert source.value_range[0] <= signals.min() <= signals.max() <= source.value_range[1]
    assert not torch.equal(splits["train"][:32], splits["val"][:32])


@pytest.fixture(params=choices("problem"))
def built(request):
    return assemble(composed(*TINY_OF[request.param]), CPU)


def random_states(experiment, layers=2, seed=0):
    target = experiment.instances("val").target
    rng = generator(seed, "states")
    return torch.randn(layers, *target.shape, generator=rng, dtype=target.dtype)


def with_minimisers(problem, batch):
    """The batch with targets that minimise the objective; a recovery's true codes do not."""
    lasso = getattr(problem, "coding", None)
    return batch if lasso is None else lasso.instances(batch.obs)


def test_problem_shapes_and_optimum(built):
    problem, batch = built.problem, with_minimisers(built.problem, built.instances("val"))
    y = random_states(built)
    count = len(batch.obs)
    assert problem.objective(y, batch.obs).shape == (2, count)
    assert problem.gradient(y, batch.obs).shape == y.shape
    assert problem.step_length(y, batch.obs).shape == (2, count)
    signals = built.source.signals("val")
    assert problem.reconstruct(batch.target).numel() == signals.numel()
    assert problem.picture(batch.obs).numel() == signals.numel()
    best = problem.objective(batch.target, batch.obs)
    assert (problem.objective(y, batch.obs) >= best).all()
    assert problem.gradient(batch.target, batch.obs).abs().max() < 1e-3
    assert problem.step_length(batch.target, batch.obs).max() < 1e-4
    for values in problem.figures(y, batch).values():
        assert values.shape == (2, count)
        assert values.isfinite().all()
    for pair in problem.ratios(y, batch).values():
        assert all(part.shape == (2, count) and (part > 0).all() for part in pair)


def test_problem_gradient_is_that_of_the_objective(built):
    """Against finite differences of the objective, in float64."""
    problem, batch = built.problem.double(), built.instances("val")
    obs = batch.obs.double()
    y, direction = random_states(built, layers=2).double()
    step = 1e-6
    ahead, behind = (problem.objective(y + sign * step * direction, obs) for sign in (1, -1))
    slope = (problem.gradient(y, obs) * direction).flatten(1).sum(1)
    assert torch.allclose((ahead - behind) / (2 * step), slope, rtol=1e-5, atol=1e-6)


def test_problem_instances_are_the_same_at_each_call_and_follow_a_disturbance(built):
    signals = built.source.signals("val")
    first, again = (built.reference.instances(signals) for _ in range(2))
    assert torch.equal(first.obs, again.obs)
    assert torch.equal(first.target, again.target)
    shifted = built.reference.instances(signals + 0.1, clean=signals)
    assert shifted.obs.shape == first.obs.shape
    assert not torch.equal(shifted.obs, first.obs)


def test_problem_baselines_approach_the_optimum(built):
    batch = built.instances("val")
    optimal = with_minimisers(built.problem, batch).target
    best = built.problem.objective(optimal, batch.obs)
    for name, states in built.problem.baselines(batch).items():
        gaps = [(built.problem.objective(y, batch.obs) - best).mean() for y in islice(states, 200)]
        assert gaps[-1] < 0.1 * gaps[0] or len(gaps) == 1, name
        assert gaps[-1] < 0.1 * built.problem.objective(0 * batch.target, batch.obs).mean(), name


def test_problem_restores_from_its_state(built, request):
    config = composed(*TINY_OF[request.node.callspec.params["built"]])
    state = {"problem": built.problem.state_dict(), "network": built.network.state_dict()}
    again = assemble(config, CPU, state)
    batch = built.instances("val")
    y = random_states(built)
    assert torch.equal(again.problem.objective(y, batch.obs), built.problem.objective(y, batch.obs))


@cache
def overrides_of(network: str) -> list[str]:
    """The overrides of a tiny run of this network, on the first problem that it takes, if there is one
    on that of its own name."""
    for problem in sorted(TINY_OF, key=lambda name: name != network):
        wanted = [*TINY_OF[problem], f"network={network}"]
        try:
            config = composed(*wanted)
        except ConfigCompositionException:  # settings that this network does not have
            wanted = [item for item in wanted if "network.proximal" not in item]
            config = composed(*wanted)
        with suppress(InvalidValue):  # another problem's network
            assemble(config, CPU)
            return wanted
    raise AssertionError(f"no problem takes network={network}")


@pytest.fixture(params=choices("network"))
def with_network(request):
    config = composed(*overrides_of(request.param))
    return SimpleNamespace(config=config, **fields(assemble(config, CPU)))


def stir(network):
    """Move the weights away from zeros and ones that a network may start with."""
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.01 * torch.randn(weight.shape, generator=generator(0, "weight")))


def run(experiment, obs, **arguments):
    return experiment.network(obs, generator=generator(5, "start"), **arguments)


def test_network_trajectory(with_network):
    network, batch = with_network.network, with_network.instances("val")
    path = run(with_network, batch.obs)
    assert path.states.shape == (network.num_layers + 1, *batch.target.shape)
    assert path.received is None
    assert torch.equal(path.inputs, path.states[:-1])
    assert torch.equal(path.outputs, path.states[1:])
    assert path.states.isfinite().all()
    assert torch.equal(path.states[0], network.initial(batch.obs, generator(5, "start")))
    assert torch.equal(path.states, run(with_network, batch.obs).states)


def test_network_perturbation_acts_between_the_layers(with_network):
    network, batch = with_network.network, with_network.instances("val")
    asked = []

    def shift(index, y):
        asked.append(index)
        return y + 0.1

    path = run(with_network, batch.obs, perturb=shift)
    assert asked == list(range(network.num_layers))
    assert torch.allclose(path.inputs, path.states[:-1] + 0.1)
    nothing = run(with_network, batch.obs, perturb=lambda index, y: y)
    assert torch.equal(nothing.states, run(with_network, batch.obs).states)


def test_network_every_weight_gets_a_gradient_and_nothing_is_read_back(with_network):
    batch = with_network.instances("train")
    stir(with_network.network)
    with Transfers() as transfers:
        run(with_network, batch.obs).states.square().sum().backward()
    # it asks how large the largest support is
    assert bool(transfers.seen) == isinstance(with_network.network, HyperLista)
    for name, weight in with_network.network.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.abs().sum() > 0, name


def test_network_treats_instances_alone(with_network):
    """Other instances in the batch make no difference."""
    batch = with_network.instances("val")
    if (
        getattr(with_network.network, "start", "zero") == "random"
    ):  # it is drawn for the whole batch
        with_network.network.start = "zero"
    whole = run(with_network, batch.obs).states
    half = run(with_network, batch.obs[:5]).states
    assert torch.allclose(whole[:, :5], half, atol=1e-5)


def test_network_saves_and_loads(with_network, tmp_path):
    batch = with_network.instances("val")
    with torch.no_grad():
        for weight in with_network.network.parameters():
            weight.add_(0.01)
    expected = run(with_network, batch.obs).states
    torch.save(with_network.network.state_dict(), tmp_path / "network.pt")
    state = {
        "network": torch.load(tmp_path / "network.pt", weights_only=True),
        "problem": with_network.problem.state_dict(),
    }
    again = assemble(with_network.config, CPU, state)
    assert torch.equal(run(again, batch.obs).states, expected)


@pytest.mark.parametrize("choice", choices("constraint"))
@pytest.mark.parametrize("problem", choices("problem"))
def test_constraint(choice, problem):
    experiment = assemble(composed(*TINY_OF[problem], f"constraint={choice}"), CPU)
    batch = experiment.instances("train")
    experiment.network.prepare(batch.obs, generator(0, "prepare"))
    path = run(experiment, batch.obs)
    constraint = experiment.constraint
    num_layers = experiment.network.num_layers
    count = num_layers * len(constraint.parts)
    # no latent space, and targets that are not the minimisers of the objective
    refused = {"split_gradient": ("lista", "synthetic"), "objective": ("glow_prox", "synthetic")}
    if problem in refused.get(choice, ()):
        with pytest.raises(InvalidValue, match=r"take .*another constraint"):
            constraint.measures(experiment.problem, path, batch)
        return
    before, after = constraint.measures(experiment.problem, path, batch)
    assert before.shape == after.shape == (count, len(batch.obs))
    assert (before >= -1e-5).all()
    if choice == "distance":
        assert constraint.measure(experiment.problem, batch.target, batch).abs().max() == 0
    assert len(constraint.labels(num_layers)) == count
    slack = constraint.slack(experiment.problem, path, batch)
    assert slack.shape == (len(constraint.rows(num_layers)),)
    slack.sum().backward()
    for name, weight in experiment.network.named_parameters():
        assert weight.grad is not None or path.problems is not None, name
        assert weight.grad is None or weight.grad.isfinite().all(), name
    assert any(weight.grad is not None for weight in experiment.network.parameters())


@pytest.mark.parametrize("choice", choices("dual"))
def test_dual(choice):
    dual = instantiate(composed(f"dual={choice}"), "dual")
    state = multipliers = torch.zeros(2, dtype=torch.float64)
    violated = torch.tensor([1.0, -1.0], dtype=torch.float64)
    grown = []
    for _ in range(5):
        state, multipliers = dual.step(state, violated)
        grown.append(multipliers[0].item())
        assert multipliers[1] == 0
    assert grown == sorted(grown)
    assert grown[0] > 0
    for _ in range(10):
        state, multipliers = dual.step(state, -violated)
        assert (multipliers >= 0).all()
    assert multipliers[0] < grown[-1]


UNDISTURBED_AND_DISTURBED = {
    "initial": (1, 2),
    "mask_moved": (0, 1),
    "mask_pixels": (0.1, 0.5),
    "mask_size": (4, 2),
    "measurement_noise": (0, 0.1),
    "coefficients": (1, 0),
    "snr": (20, 10),
    "sparsity": (0.1, 0.2),
}
OF_RECOVERY = ("coefficients", "dictionary", "snr", "sparsity")


@pytest.mark.parametrize("choice", choices("perturbation"))
@pytest.mark.parametrize("problem", choices("problem"))
def test_perturbation(choice, problem):
    smaller = {
        "mask_moved": ["perturbation.size=4"],
        "adversarial": ["perturbation.steps=2"],
        "adversarial_layer": ["perturbation.steps=2"],
    }.get(choice, [])
    config = composed(f"perturbation={choice}", "run=none", *smaller, command="perturb")
    assert config.name == choice
    experiment = assemble(composed(*TINY_OF[problem]), CPU)
    stir(experiment.network)
    signals, bounds = experiment.source.signals("test"), experiment.source.value_range

    def disturbed(level, seed=0):
        disturbance = instantiate(config, "perturbation", level=level).aim(experiment.network, 5)
        batch = disturbance.instances(experiment.reference, signals, generator(seed, "x"), bounds)
        rng = generator(seed, "y")
        perturb = disturbance.between_layers(experiment.problem, batch, rng)
        return run(experiment, batch.obs, perturb=perturb).states

    neutral, other = UNDISTURBED_AND_DISTURBED.get(choice, (0, 2))
    if choice.startswith(("mask", "measurement")) and problem != "glow_prox":
        with pytest.raises(
            InvalidValue, match=r"expected a run of (inpainting|an inverse problem)"
        ):
            disturbed(other)
        return
    if choice in OF_RECOVERY and problem != "synthetic":
        with pytest.raises(InvalidValue, match="expected a run of sparse recovery"):
            disturbed(other)
        return
    plain = run(experiment, experiment.instances("test").obs).states
    assert torch.equal(disturbed(neutral), plain) == (choice != "mask_pixels")
    some = disturbed(other)
    assert some.shape == plain.shape
    from_zero = choice == "initial" and not plain[0].any()
    assert torch.equal(some, plain) == from_zero
    assert torch.equal(some, disturbed(other))


def test_configs_are_found_beside_the_package():
    assert (CONFIGS / "train.yaml").is_file()
    assert Path(cli.__file__).resolve().parents[1] / "configs" == CONFIGS
