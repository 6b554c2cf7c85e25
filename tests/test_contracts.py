"""Contracts that every plug-in keeps: each config of each group is found, built and tried."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from sdunroll import cli
from sdunroll.commands.assemble import assemble, instantiate
from sdunroll.data import SPLITS
from sdunroll.randomness import generator
from tests.conftest import TINY

CONFIGS = cli.config_folder()
SMALL_DATA = [f"data.num_{split}=40" for split in SPLITS]
GROUPS = sorted(
    folder.name for folder in CONFIGS.iterdir() if folder.is_dir() and folder.name != "hydra"
)


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def composed(*overrides: str, command: str = "train"):
    cli.register_resolvers()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(command, overrides=list(overrides), return_hydra_config=True)
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
    OmegaConf.to_container(OmegaConf.create(resolved), resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("choice", choices("data"))
def test_data(choice):
    if choice == "cifar10":
        pytest.skip("needs an archive; read in tests/data/test_cifar10.py")
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
    return experiment_with(f"problem={request.param}")


def random_states(experiment, layers=2, seed=0):
    target = experiment.instances("val").target
    rng = generator(seed, "states")
    return torch.randn(layers, *target.shape, generator=rng, dtype=target.dtype)


def test_problem_shapes_and_optimum(built):
    problem, batch = built.problem, built.instances("val")
    y = random_states(built)
    count = len(batch.obs)
    assert problem.objective(y, batch.obs).shape == (2, count)
    assert problem.gradient(y, batch.obs).shape == y.shape
    assert problem.step_length(y, batch.obs).shape == (2, count)
    assert problem.reconstruct(batch.target).shape == batch.obs.shape
    best = problem.objective(batch.target, batch.obs)
    assert (problem.objective(y, batch.obs) >= best).all()
    assert problem.gradient(batch.target, batch.obs).abs().max() < 1e-3
    assert problem.step_length(batch.target, batch.obs).max() < 1e-4
    assert torch.equal(problem.optimum(batch.obs), batch.target)


def test_problem_baselines_approach_the_optimum(built):
    batch = built.instances("val")
    best = built.problem.objective(batch.target, batch.obs)
    for name, states in built.problem.baselines(batch.obs).items():
        gaps = [
            (built.problem.objective(next(states), batch.obs) - best).mean() for _ in range(200)
        ]
        assert gaps[-1] < 0.1 * gaps[0], name


def test_problem_restores_from_its_state(built):
    config = composed(*TINY)
    again = assemble(
        config,
        torch.device("cpu"),
        {"problem": built.problem.state_dict(), "network": built.network.state_dict()},
    )
    batch = built.instances("val")
    y = random_states(built)
    assert torch.equal(again.problem.objective(y, batch.obs), built.problem.objective(y, batch.obs))


@pytest.fixture(params=choices("network"))
def with_network(request):
    return experiment_with(f"network={request.param}")


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


def test_network_every_weight_gets_a_gradient(with_network):
    batch = with_network.instances("train")
    run(with_network, batch.obs).states.square().sum().backward()
    for name, weight in with_network.network.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.abs().sum() > 0, name


def test_network_treats_instances_alone(with_network):
    """Other instances in the batch make no difference."""
    batch = with_network.instances("val")
    with_network.network.start = "zero"  # a random start is drawn for the whole batch
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
    again = assemble(composed(*TINY), torch.device("cpu"), state)
    assert torch.equal(run(again, batch.obs).states, expected)


@pytest.mark.parametrize("choice", choices("constraint"))
def test_constraint(choice):
    experiment = experiment_with(f"constraint={choice}")
    batch = experiment.instances("train")
    path = run(experiment, batch.obs)
    constraint = experiment.constraint
    measured = constraint.measure(experiment.problem, path.states, batch)
    assert measured.shape == path.states.shape[:2]
    assert (measured >= -1e-5).all()
    assert constraint.measure(experiment.problem, batch.target, batch).abs().max() < 1e-3
    slack = constraint.slack(experiment.problem, path, batch)
    assert slack.shape == (experiment.network.num_layers,)
    slack.sum().backward()
    for name, weight in experiment.network.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name


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


@pytest.mark.parametrize("choice", choices("perturbation"))
def test_perturbation(choice):
    config = composed(f"perturbation={choice}", "run=none", command="perturb")
    assert config.name == choice
    experiment = experiment_with()
    batch = experiment.instances("test")

    def disturbed(level, seed=0):
        disturbance = instantiate(config, "perturbation", level=level)
        obs = disturbance.observe(batch.obs, generator(seed, "x"), experiment.source.value_range)
        perturb = disturbance.between_layers(experiment.problem, obs, generator(seed, "y"))
        return run(experiment, obs, perturb=perturb).states

    neutral = 1 if choice == "initial" else 0
    assert torch.equal(disturbed(neutral), run(experiment, batch.obs).states)
    some = disturbed(2)
    assert some.shape == (experiment.network.num_layers + 1, *batch.target.shape)
    assert not torch.equal(some, disturbed(neutral))
    assert torch.equal(some, disturbed(2))


def test_configs_are_found_beside_the_package():
    assert (CONFIGS / "train.yaml").is_file()
    assert Path(cli.__file__).resolve().parents[1] / "configs" == CONFIGS
