"""Training on a GPU; left out where there is none."""

import math
from functools import partial

import pytest
import torch

from sdunroll.checks import UserError
from sdunroll.constraints import Distance, GradientNorm, ObjectiveGap, SplitGradient
from sdunroll.data import Batch
from sdunroll.networks import FlowProximal, Lista, ProximalGradient
from sdunroll.perturbations import LayerNoise
from sdunroll.primal_dual import NotFinite, ProportionalIntegral
from sdunroll.problems import Inpainting, InverseImaging
from sdunroll.randomness import generator
from sdunroll.runs import Run
from sdunroll.training import Training, TrainingSettings
from tests.conftest import TINY, make_batch, make_problem
from tests.training.test_loop import same

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(autouse=True)
def same_bits(monkeypatch):
    """As the commands set it."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def sparse_coding():
    problem = make_problem(dtype=torch.float32)
    network = Lista(problem, generator(0, "weights"), num_layers=3)
    return problem, network, make_batch(problem, 60), Distance(epsilon=0.3)


def inpainting():
    problem = InverseImaging(Inpainting(size=3))
    batch = problem.instances(torch.rand(20, 3, 8, 8, generator=generator(0, "images")))
    proximal = partial(FlowProximal, depth=2, levels=2, width=8)
    network = ProximalGradient(problem, generator(0, "weights"), proximal=proximal, num_layers=3)
    return problem, network, batch, SplitGradient(first_layer=2)


def make(
    parts=sparse_coding,
    *,
    device="cuda",
    constraint=None,
    precision="fp32",
    cuda_graph=False,
    every="epoch",
    network=None,
    **changes,
):
    problem, own, batch, usual = parts()
    settings = {
        "epochs": 6,
        "batch_size": 16,
        "lr": 1e-2,
        "schedule": "cosine",
        "optimizer": partial(torch.optim.Adam, fused=True),
        "noise": LayerNoise,
        "noise_level": 0.5,
        "clip_norm": 1.0,
    } | changes
    return Training(
        TrainingSettings(**settings),
        network=(network or own).to(device),
        problem=problem.to(device),
        constraint=constraint or usual,
        constrained=True,
        dual=ProportionalIntegral(k_i=1.0, k_p=3.0, every=every, smoothing=0.5),
        train=batch.to(device),
        val=Batch(*(values[:10] for values in batch)).to(device),
        order_seed=0,
        noise_seed=0,
        precision=precision,
        cuda_graph=cuda_graph,
    )


def figures(epoch):
    return [epoch.train_loss, epoch.val_loss, *epoch.slack, *epoch.multipliers, *epoch.val_slack]


@pytest.mark.parametrize("parts", [sparse_coding, inpainting])
def test_a_gpu_computes_what_a_processor_does(parts):
    found = []
    for device in ("cpu", "cuda"):
        training = make(parts, device=device, noise_level=0.0)
        training.network.start_std = 1e-6  # their random numbers differ
        training._prepare()
        loss, moments = training.steps.take(training.train)
        weights = [weight.grad.cpu() for weight in training.network.parameters()]
        found.append([loss.cpu(), moments.cpu(), *weights])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("every", ["epoch", "batch"])
@pytest.mark.parametrize(
    ("parts", "constraint"),
    [
        (sparse_coding, Distance(epsilon=[0.3, 0.2, 0.1])),
        (sparse_coding, GradientNorm()),
        (sparse_coding, ObjectiveGap()),
        (inpainting, SplitGradient(first_layer=2)),
    ],
)
def test_no_step_waits(parts, constraint, every):
    training = make(parts, constraint=constraint, every=every)
    training._prepare()
    training.steps.take(training.train)  # libraries are loaded
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.steps.take(training.train)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("parts", "changes"),
    [
        (sparse_coding, {}),
        (sparse_coding, {"every": "batch", "clip_norm": None}),
        (sparse_coding, {"precision": "bf16", "schedule": "constant"}),
        (sparse_coding, {"stages": "layerwise", "epochs": 12}),
        (sparse_coding, {"optimizer": partial(torch.optim.AdamW, fused=True)}),
        (inpainting, {"every": "batch", "lr": 1e-3}),
    ],
)
def test_replayed_steps_give_what_the_steps_do(parts, changes):
    plain, replayed = (make(parts, cuda_graph=graph, **changes) for graph in (False, True))
    for one, other in zip(plain.run(), replayed.run(), strict=True):
        assert figures(other) == pytest.approx(figures(one), rel=1e-3, abs=1e-4)
    assert len(replayed.steps.step.recorded) == 2  # the last batch of an epoch is smaller
    for weight, other in zip(
        plain.network.parameters(), replayed.network.parameters(), strict=True
    ):
        torch.testing.assert_close(weight, other, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("parts", [sparse_coding, inpainting])
def test_a_recorded_training_that_goes_on_gives_the_same_bits(parts, tmp_path):
    settings = {"cuda_graph": True, "every": "batch", "lr": 1e-3}
    whole = make(parts, **settings)
    list(whole.run())
    first = make(parts, **settings, stop_after=4)
    list(first.run())
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make(parts, **settings)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    list(second.run())
    assert same(whole.state_dict(), second.state_dict())


@pytest.mark.parametrize("before", [False, True])
def test_recording_may_begin_and_end_with_a_resume(before, tmp_path):
    losses = []
    for switched in (False, True):
        first = make(cuda_graph=before, stop_after=4)
        list(first.run())
        torch.save(first.state_dict(), tmp_path / "state.pt")
        second = make(cuda_graph=before != switched)
        state = torch.load(tmp_path / "state.pt", weights_only=True, map_location="cpu")
        second.load_state_dict(state)
        losses.append([epoch.val_loss for epoch in second.run()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_broken_step_is_found_by_the_end_of_its_epoch(cuda_graph):
    training = make(cuda_graph=cuda_graph)
    epochs = training.run()
    next(epochs)
    next(epochs)
    with torch.no_grad():
        training.network.w1[1][0, 0] = torch.inf
    before = {name: value.clone() for name, value in training.network.state_dict().items()}
    with pytest.raises(NotFinite, match=r"epoch 3: layer 2 returned values that are not finite"):
        next(epochs)
    assert same(before, dict(training.network.state_dict()))
    assert training.primal_dual.multipliers.isfinite().all()


def test_a_step_that_cannot_be_recorded_is_one_line():
    class Asks(Lista):
        def layer(self, index, y, shared):
            return super().layer(index, y, shared) * (1.0 if y.max().item() < math.inf else 0.0)

    problem = make_problem(dtype=torch.float32)
    asks = Asks(problem, generator(0, "weights"), num_layers=3)
    with pytest.raises(UserError, match=r"cuda_graph: expected .* take cuda_graph=false") as caught:
        list(make(network=asks, cuda_graph=True).run())
    assert "\n" not in str(caught.value)
    asks = Asks(problem, generator(0, "weights"), num_layers=3)
    assert len(list(make(network=asks).run())) == 6  # the same process goes on


def test_the_commands(sdunroll):
    train = ("train", *TINY, "training.epochs=6", "device=cuda")

    def losses(folder):
        return [row["val_loss"] for row in Run(folder).history()]

    plain, replayed = (sdunroll(*train, f"cuda_graph={graph}").run for graph in ("false", "true"))
    assert losses(replayed) == pytest.approx(losses(plain), rel=1e-3)
    part = sdunroll(*train, "cuda_graph=true", "training.stop_after=4").run
    assert sdunroll("train", f"resume={part}").status == 0
    assert losses(part) == losses(replayed)
    assert sdunroll(*train, "cuda_graph=true", "dry_run=true").status == 0
    assert sdunroll("eval", f"run={replayed}", "device=cuda").status == 0
