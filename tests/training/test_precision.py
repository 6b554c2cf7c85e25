"""Training with the network's matrix products in bfloat16."""

import csv
import os
from functools import partial
from pathlib import Path

import pytest
import torch

from sdunroll.checks import InvalidValue
from sdunroll.distributed import ALONE
from sdunroll.networks import CnnProximal, FlowProximal, Lista, ProximalGradient
from sdunroll.primal_dual import ProportionalIntegral
from sdunroll.problems import Deblurring, Inpainting, InverseImaging
from sdunroll.randomness import generator
from sdunroll.training import Training, forward
from sdunroll.training.forward import Forward
from tests.conftest import TINY
from tests.training.test_loop import TRAIN, make


def tensors(state):
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors(value)


def test_bf16_trains_as_well_and_keeps_all_but_the_products_in_float32(monkeypatch):
    products, states = set(), set()
    layer = Lista.layer

    def watched(self, index, y, shared):
        products.add(shared[0].dtype)
        states.add(y.dtype)
        return layer(self, index, y, shared)

    monkeypatch.setattr(Lista, "layer", watched)
    final = {}
    for precision in ("fp32", "bf16"):
        training = make(precision=precision, epochs=30, schedule="cosine")
        seen = training.primal_dual.primal_step
        slacks = []
        training.primal_dual.primal_step = lambda loss, slack, seen=seen, kept=slacks: (
            kept.append((loss.dtype, slack.dtype)) or seen(loss, slack)
        )
        *_, last = training.run()
        final[precision] = last.val_distance
        assert set(slacks) == {(torch.float32, torch.float32)}
        assert states == {torch.float32}
        floats = [one for one in tensors(training.state_dict()) if one.is_floating_point()]
        assert {one.dtype for one in floats} == {torch.float32, torch.float64}
        assert training.primal_dual.multipliers.dtype == torch.float64
    assert products == {torch.float32, torch.bfloat16}
    assert final["bf16"] != final["fp32"]
    assert final["bf16"] == pytest.approx(final["fp32"], rel=0.01)


def test_validation_is_in_float32():
    one, other = make(precision="bf16"), make(precision="fp32")
    assert one._validate().loss == other._validate().loss
    loss, fewer = (
        training.forward(TRAIN, training.stage, constrained=True).loss for training in (other, one)
    )
    assert fewer != loss
    torch.testing.assert_close(fewer, loss, rtol=0.02, atol=0)


@pytest.mark.parametrize(("proximal", "works"), [(CnnProximal, True), (FlowProximal, False)])
def test_flows_need_all_digits(proximal, works):
    problem = InverseImaging(Inpainting(size=3))
    images = problem.instances(torch.rand(4, 3, 8, 8, generator=generator(0, "images")))
    network = ProximalGradient(
        problem, generator(0, "weights"), proximal=partial(proximal, width=4), num_layers=2
    )
    settings = make(epochs=1).settings
    arguments = {
        "network": network,
        "problem": problem,
        "constraint": make().constraint,
        "constrained": True,
        "dual": ProportionalIntegral(k_i=1.0, k_p=1.0),
        "train": images,
        "val": images,
        "order_seed": 0,
        "noise_seed": 0,
    }
    if works:
        assert len(list(Training(settings, **arguments, precision="bf16").run())) == 1
        return
    with pytest.raises(InvalidValue, match=r"precision: expected fp32 .* take precision=fp32"):
        Training(settings, **arguments, precision="bf16")


def test_a_start_that_is_computed_has_all_digits():
    """A blurred picture, blurred again."""
    problem = InverseImaging(Deblurring())
    images = problem.instances(torch.rand(4, 3, 16, 16, generator=generator(0, "images")))
    network = ProximalGradient(
        problem, generator(0, "weights"), proximal=partial(CnnProximal, width=4), num_layers=2
    )
    settings = {"problem": problem, "constraint": None, "noise": None, "seed": 0}
    settings |= {"device": torch.device("cpu"), "ranks": ALONE, "precision": "bf16"}
    passes = Forward(network=network, **settings)
    with passes.autocast:
        path, *_ = passes.run(images, generator(0, "start"), depth=2)
    assert path.states.dtype == torch.float32
    assert torch.equal(path.states[0], network.initial(images.obs, generator(0, "start")))


def test_the_run_remembers_its_precision(sdunroll):
    whole = sdunroll("train", *TINY, "precision=bf16").run
    part = sdunroll("train", *TINY, "precision=bf16", "training.stop_after=1").run
    plain = sdunroll("train", *TINY).run
    assert sdunroll("train", f"resume={part}").status == 0
    losses = []
    for run in (whole, part, plain):
        with (run / "history.csv").open() as file:
            losses.append([row["train_loss"] for row in csv.DictReader(file)])
    assert losses[0] == losses[1] != losses[2]
    assert sdunroll("eval", f"run={whole}").status == 0


def test_another_precision_is_refused(sdunroll):
    outcome = sdunroll("train", *TINY, "precision=fp8")
    assert outcome.status == 1
    assert "precision: expected one of fp32, bf16, got 'fp8'" in outcome.err


@pytest.mark.parametrize(("precision", "has", "warns"), [("bf16", False, True), ("bf16", True, False),
                                                         ("fp32", False, False)])  # fmt: skip
def test_an_emulated_bf16_is_said_to_be_slow(monkeypatch, caplog, precision, has, warns):
    monkeypatch.setattr(forward, "multiplies_bf16", lambda device: has)
    make(precision=precision)
    assert ("no instructions for bf16" in caplog.text) == warns


def test_the_processor_is_asked_for_bf16():
    flags = (
        set(Path("/proc/cpuinfo").read_text().split()) if os.path.exists("/proc/cpuinfo") else set()
    )
    if "flags" not in flags:
        pytest.skip("the flags of this processor are not in /proc/cpuinfo")
    assert forward.multiplies_bf16(torch.device("cpu")) == (
        {"avx512bw", "avx512vl", "avx512dq"} <= flags
    )
