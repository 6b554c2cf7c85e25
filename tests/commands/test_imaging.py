"""Inverse problems through the commands: the same files, with the figures of pictures."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from tests.conftest import TINY_OF

# drawn they are in the tour of the README and by the reproduce scripts
pytestmark = pytest.mark.usefixtures("undrawn")

GLOW = TINY_OF["glow_prox"]


@pytest.fixture
def trained(train_once):
    return train_once(*GLOW)


def read(path):
    return json.loads(path.read_text())


def test_eval(trained, sdunroll):
    outcome = sdunroll("eval", f"run={trained}")
    assert outcome.status == 0, outcome.err
    result = read(trained / "eval" / "metrics.json")
    names = {"distance", "psnr", "ssim", "hole_psnr", "hole_ssim", "known_rmse", "objective_gap"}
    for row in result["layers"]:
        assert names <= set(row)
        for name in names:
            assert row[name]["ci95"][0] <= row[name]["mean"] <= row[name]["ci95"][1]
    assert 0 < result["health"]["round_trip_error"] < 1e-5
    assert OmegaConf.load(trained / "config.yaml").network.proximal.shift_bound == 0.5
    assert result["epsilon"] == 0.3
    assert result["theory"] is None  # layers have objectives of their own
    assert result["notice"] == "synthetic faces, drawn by formula"
    assert set(result["baselines"]) == {"biharmonic", "harmonic fill"}
    for row in result["baselines"].values():
        assert row["iterations"] is None
        assert row["hole_psnr"]["mean"] > 5
    figures = {path.name for path in (trained / "eval" / "figures").iterdir()}
    assert figures == {"per_layer.png", "training.png", "reconstructions.png"}
    for text in ("PSNR in the hole", "biharmonic", "round trip error", "synthetic faces"):
        assert text in outcome.out


@pytest.mark.parametrize(
    ("perturbation", "settings"),
    [
        ("mask_moved", ["levels=[0,1]"]),
        ("layer_noise_fading", ["levels=[0,2]"]),
        ("input_noise_ramp", ["levels=[0,0.2]"]),
    ],
)
def test_perturb_against_another_run(trained, sdunroll, perturbation, settings):
    other = sdunroll("train", *GLOW, "constrained=false").run
    outcome = sdunroll(
        "perturb", f"run={trained}", f"against={other}", f"perturbation={perturbation}", *settings
    )
    assert outcome.status == 0, outcome.err
    result = read(trained / "perturb" / f"{perturbation}.json")
    undisturbed, disturbed = result["levels"]
    assert undisturbed["final_distance"] == pytest.approx(
        read(trained / "summary.json")["final_distance"], rel=1e-5
    )
    assert disturbed["hole_psnr"] != undisturbed["hole_psnr"]
    assert set(disturbed) >= {"psnr", "hole_psnr", "descent_frequency", "ci95"}
    assert "dB" in outcome.out
    assert "synthetic" in outcome.out
    figures = {path.name for path in (trained / "perturb" / "figures").iterdir()}
    assert figures == {f"{perturbation}.png", f"{perturbation}_pictures.png"}


def test_runs_on_other_masks_are_compared_on_the_same_one(trained, sdunroll):
    """Box against random boxes: a perturbation that brings its own mask needs the same targets alone."""
    kept = [item for item in GLOW if "operator" not in item]
    other = sdunroll("train", *kept, "operator.mask=random_box", "operator.size=[3,5]").run
    arguments = [f"run={trained}", f"against={other}"]
    noise = sdunroll("perturb", *arguments, "perturbation=layer_noise_fading", "levels=[0]")
    assert noise.status == 1
    assert "against: expected a run on the same data" in noise.err
    settings = ["perturbation=mask_moved", "perturbation.size=4", "levels=[0,1]"]
    moved = sdunroll("perturb", *arguments, *settings)
    assert moved.status == 0, moved.err


def test_runs_whose_settings_make_the_new_observations_others_are_not_compared(trained, sdunroll):
    def against(change, *settings):
        name = change.split("=")[0]
        if not Path(name).exists():
            kept = [item for item in GLOW if item.split("=")[0] != name]
            assert sdunroll("train", *kept, change, f"hydra.run.dir={name}").status == 0
        return sdunroll("perturb", f"run={trained}", f"against={name}", *settings)

    moved = ["perturbation=mask_moved", "levels=[0,1]"]
    size = ["perturbation=mask_size", "levels=[2]"]
    for outcome in (against("operator.size=3", *moved), against("operator.noise=0.1", *size)):
        assert outcome.status == 1
        assert "against: expected a run on the same data" in outcome.err
    assert not list((trained / "perturb").glob("*.json"))
    alike = against("operator.size=3", *moved, "perturbation.size=3")
    assert alike.status == 0, alike.err
    assert against("operator.size=3", *size).status == 0


def test_resume_goes_on_bit_for_bit_and_remembers_the_actnorm(sdunroll):
    """The data-dependent start is made once: a resumed run does not make it again."""
    whole = sdunroll("train", *GLOW).run
    half = sdunroll("train", *GLOW, "training.stop_after=1").run
    assert sdunroll("train", f"resume={half}").status == 0
    states = [
        torch.load(run / "checkpoints" / "last.pt", weights_only=True) for run in (whole, half)
    ]
    for name, weight in states[0]["network"].items():
        assert torch.equal(weight, states[1]["network"][name]), name
    moved = [name for name, _ in states[0]["network"].items() if name.endswith("log_scale")]
    assert all(states[0]["network"][name].abs().max() > 0.1 for name in moved)


def test_two_constraints_a_layer(sdunroll):
    outcome = sdunroll("train", *GLOW, "constraint=split_gradient")
    assert outcome.status == 0, outcome.err
    with (outcome.run / "history.csv").open() as file:
        header = next(csv.reader(file))
    labels = [f"{part}_{layer}" for part in ("x", "z") for layer in (1, 2, 3)]
    assert [f"slack_{label}" for label in labels] == [n for n in header if n.startswith("slack_")]
    assert len(read(outcome.run / "summary.json")["slack"]) == 6
    assert sdunroll("eval", f"run={outcome.run}").status == 0
    rows = read(outcome.run / "eval" / "metrics.json")["layers"]
    for row in rows[1:]:
        assert row["slack"]["mean"] == max(row["slack_x"]["mean"], row["slack_z"]["mean"])
        assert {"measured_x", "measured_z", "descent_frequency_x"} <= set(row)


@pytest.mark.parametrize("operator", ["denoising", "deblurring"])
def test_operators_without_a_hole_in_grey(sdunroll, operator):
    kept = [item for item in GLOW if "operator" not in item]
    sigma = ["operator.sigma=0.8"] if operator == "deblurring" else []
    outcome = sdunroll(
        "train", *kept, f"operator={operator}", *sigma, "data=photos", "data.color=false"
    )
    assert outcome.status == 0, outcome.err
    assert sdunroll("eval", f"run={outcome.run}").status == 0
    metrics = read(outcome.run / "eval" / "metrics.json")
    assert {"psnr", "ssim"} <= set(metrics["layers"][0])
    assert "hole_psnr" not in metrics["layers"][0]


def test_layers_that_do_nothing_at_the_start_are_refused_where_they_start_from_0(sdunroll):
    kept = [item for item in GLOW if "proximal" not in item]
    kept += ["network=prox_cnn", "constraint=objective_value"]
    outcome = sdunroll("train", *kept)
    assert outcome.status == 1
    assert "constraint.first_layer: layer 1 receives a measure of 0" in outcome.err
    outcome = sdunroll("train", *kept, "constraint.first_layer=2")  # as it says
    assert outcome.status == 0, outcome.err


def test_photographs_in_colour_and_grey(sdunroll):
    for color in ("true", "false"):
        outcome = sdunroll("train", *GLOW, "data=photos", f"data.color={color}")
        assert outcome.status == 0, outcome.err


def test_a_mask_from_a_file_is_kept_with_the_run(sdunroll, tmp_path):
    def draw(left):
        pixels = np.full((8, 8), 255, np.uint8)
        pixels[2:5, left : left + 3] = 0
        Image.fromarray(pixels).save(tmp_path / "mask.png")

    draw(1)
    kept = [item for item in GLOW if "operator" not in item]
    mask = f"operator.mask={tmp_path / 'mask.png'}"
    run = sdunroll("train", *kept, mask, "training.stop_after=1").run
    figures = []
    for change in (lambda: None, lambda: draw(4), (tmp_path / "mask.png").unlink):
        change()
        assert sdunroll("eval", f"run={run}").status == 0
        figures.append(read(run / "eval" / "metrics.json")["layers"])
    assert figures[0] == figures[1] == figures[2]
    outcome = sdunroll("train", f"resume={run}")
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=synthetic"], "error: data: expected pictures with values in [0, 1]"),
        (["network=lista"], "LISTA unrolls sparse coding"),
        (["operator.size=40"], "operator.size: expected less than the image's 8 pixels, got 40"),
        (["operator.mask=boxx"], "operator.mask: expected one of box"),
        (["network.proximal.depth=0"], "error: network.proximal.depth: expected a whole number"),
        (["operator.rate=2"], "error: operator.rate: expected a number"),
        (["training=layerwise"], "error: training.epochs: expected at least one a layer, 3,"),
        (
            ["training=layerwise", "training.epochs=3", "network.shared=true"],
            "network.shared=false",
        ),
        (
            ["constraint=split_gradient", "constraint.first_layer=1"],
            "error: constraint.first_layer: layer x_1 receives a measure of 0",
        ),
        (["problem=lista", "operator=denoising"], "error: operator: expected none"),
    ],
)
def test_refuses(sdunroll, overrides, message):
    kept = [item for item in GLOW if item.split("=")[0] not in {o.split("=")[0] for o in overrides}]
    if overrides[0] in ("data=synthetic", "network=lista"):
        kept = ["problem=glow_prox"]
    if overrides[0] == "problem=lista":
        kept = []
    outcome = sdunroll("train", *kept, *overrides)
    assert outcome.status == 1
    lines = [line for line in outcome.err.splitlines() if line]
    assert len(lines) == 1, outcome.err
    assert message in lines[0]
