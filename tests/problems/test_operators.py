import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from sdunroll.checks import InvalidValue, UserError
from sdunroll.problems import Deblurring, Denoising, Inpainting
from sdunroll.randomness import generator


def draw(*shape, purpose="x"):
    return torch.rand(shape, generator=generator(0, purpose), dtype=torch.float64)


OPERATORS = [
    Inpainting(size=4),
    Inpainting(mask="random_box", size=[2, 5]),
    Inpainting(mask="random_pixels", rate=0.7),
    Denoising(),
    Deblurring(sigma=0.8),
]


@settings(max_examples=25, deadline=None)
@given(
    operator=st.sampled_from(OPERATORS),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(7, 12), st.integers(7, 12)),
    seed=st.integers(0, 1000),
)
def test_adjoint(operator, shape, seed):
    """<A y, x> = <y, A^T x>, also with a leading dimension."""
    rng = generator(seed, "adjoint")
    images = torch.rand(shape, generator=rng, dtype=torch.float64)
    obs = operator.observe(images, rng)
    y, x = (torch.randn(2, *shape, generator=rng, dtype=torch.float64) for _ in range(2))
    left, right = (operator(y, obs) * x).sum(), (y * operator.adjoint(x, obs)).sum()
    assert left.item() == pytest.approx(right.item(), rel=1e-10, abs=1e-10)
    assert operator(y, obs).norm() <= y.norm() * (1 + 1e-10)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: type(operator).__name__)
def test_observes_what_it_measures(operator):
    images = draw(3, 3, 10, 10)
    obs = operator.observe(images, generator(1, "noise"))
    low, high = operator.noise
    noise = operator.measurement(obs) - operator(images, obs)
    assert noise.std().item() == pytest.approx((low + high) / 2, rel=0.15, abs=1e-12)


def test_blur_is_that_of_scipy():
    images = draw(1, 1, 16, 16)
    blurred = Deblurring(sigma=1.0, noise=0.0)(images, images)[0, 0].numpy()
    expected = ndimage.gaussian_filter(images[0, 0].numpy(), 1.0, mode="wrap", truncate=3.0)
    assert np.allclose(blurred, expected, atol=1e-6)


def test_a_box_is_in_the_middle_and_moves():
    shape = torch.Size([2, 3, 8, 8])
    expected = torch.ones(8, 8)
    expected[2:6, 2:6] = 0
    masks = Inpainting(size=4)._masks(shape, generator(0, "m"))
    assert torch.equal(masks, expected.expand(2, 1, 8, 8))
    moved = Inpainting(size=4, offset=1)._masks(shape, generator(0, "m"))
    assert torch.equal(moved[..., 1:, 1:], masks[..., :-1, :-1])


def test_a_box_is_moved_at_random_within_a_range():
    operator = Inpainting(size=4, offset=[-1, 2])
    masks = operator._masks(torch.Size([500, 3, 10, 12]), generator(0, "m"))
    assert ((1 - masks).sum((1, 2, 3)) == 16).all()
    missing = 1 - masks[:, 0]
    tops, lefts = missing.amax(2).argmax(1), missing.amax(1).argmax(1)
    places = {(top - 3, left - 4) for top, left in zip(tops.tolist(), lefts.tolist(), strict=True)}
    assert places == {(down, right) for down in range(-1, 3) for right in range(-1, 3)}


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        ([2, -1], r"offset: expected \[low, high\] with low <= high, got \[2, -1\]"),
        ([0, 1.5], "offset: expected a whole number"),
        ("far", "offset: expected a whole number"),
        ([0, 1, 2], r"offset: expected a number or \[low, high\]"),
        ([], r"offset: expected a number or \[low, high\]"),
    ],
)
def test_offsets_that_are_no_range(offset, message):
    with pytest.raises(InvalidValue, match=message):
        Inpainting(size=4, offset=offset)


def test_random_boxes_have_the_sizes_asked_for_and_lie_inside():
    operator = Inpainting(mask="random_box", size=[2, 5])
    masks = operator._masks(torch.Size([500, 1, 10, 12]), generator(0, "m"))
    sides = (1 - masks).sum((1, 2, 3)).sqrt()
    assert set(sides.tolist()) == {2.0, 3.0, 4.0, 5.0}
    missing = (1 - masks).mean(0)[0]
    assert (missing > 0).all()  # every pixel is missing in some


def test_random_pixels_are_missing_at_the_rate():
    masks = Inpainting(mask="random_pixels", rate=0.3)._masks(
        torch.Size([50, 3, 20, 20]), generator(0, "m")
    )
    assert masks.shape == (50, 1, 20, 20)
    assert 1 - masks.mean().item() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("rate", [0.001, 0.999])
def test_some_pixels_are_missing_and_some_known_at_any_rate(rate):
    masks = Inpainting(mask="random_pixels", rate=rate)._masks(
        torch.Size([50, 3, 4, 4]), generator(0, "m")
    )
    known = masks.sum((1, 2, 3))
    assert known.min() >= 1
    assert known.max() <= 15


@pytest.mark.parametrize("offset", [3, -3, [-3, 2], [0, 3]])
def test_a_box_lies_inside(offset):
    shape = torch.Size([1, 1, 9, 9])
    assert (1 - Inpainting(size=4, offset=2)._masks(shape, generator(0, "m"))).sum() == 16
    with pytest.raises(InvalidValue, match=r"operator\.offset: expected at most 2 pixels"):
        Inpainting(size=4, offset=offset)._masks(shape, generator(0, "m"))


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: type(operator).__name__)
def test_the_peer_takes_grey_pictures(operator):
    obs = operator.observe(draw(1, 1, 12, 12), generator(0, "n"))
    known = operator.known(obs)
    picture = operator.measurement(obs)[0].permute(1, 2, 0).numpy()
    restored = operator.peer(picture, None if known is None else known[0, 0].numpy() > 0)
    assert restored.shape == (12, 12, 1)


def test_a_mask_from_a_picture(tmp_path):
    pixels = np.full((6, 6), 255, np.uint8)
    pixels[1, 2] = 0
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    operator = Inpainting(mask=str(tmp_path / "mask.png"))
    obs = operator.observe(draw(2, 3, 6, 6), generator(0, "m"))
    assert torch.equal(obs[0, -1], torch.from_numpy(pixels / 255))
    with pytest.raises(InvalidValue, match=r"expected a picture of 8 x 8 pixels.* got 6 x 6"):
        operator.observe(draw(2, 3, 8, 8), generator(0, "m"))
    Image.fromarray(0 * pixels).save(tmp_path / "dark.png")
    dark = Inpainting(mask=str(tmp_path / "dark.png"))
    with pytest.raises(InvalidValue, match="36 of them dark"):
        dark.observe(draw(2, 3, 6, 6), generator(0, "m"))
    (tmp_path / "mask.txt").write_text("no picture")
    for name, reason in (("mask.txt", "not a picture"), ("gone.png", "No such file")):
        with pytest.raises(UserError, match=rf"operator.mask: expected one of box.*{reason}"):
            Inpainting(mask=str(tmp_path / name)).read_picture()


def test_a_mask_of_16_bits_is_that_of_8(tmp_path):
    pixels = np.full((8, 8), 65535, np.uint16)
    pixels[2:5, 2:5] = 10_000
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    known = Inpainting(mask=str(tmp_path / "mask.png")).read_picture()
    assert torch.equal(known == 0, torch.from_numpy(pixels < 65535))


def test_each_picture_has_its_noise_level():
    operator = Denoising(noise=[0.1, 0.5])
    zeros = torch.zeros(200, 3, 16, 16)
    levels = operator.observe(zeros, generator(0, "n")).flatten(1).std(1)
    assert levels.min() == pytest.approx(0.1, abs=0.02)
    assert levels.max() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"mask": "boxes"}, "mask: expected one of box, random_box"),
        ({"mask": 7}, "mask: expected one of box, random_box"),
        ({"size": 0}, "size: expected a whole number"),
        ({"size": 4.7}, "size: expected a whole number"),
        ({"mask": "random_box", "size": [3, 5.9]}, "size: expected a whole number"),
        ({"size": [3, 5]}, "a range needs mask=random_box"),
        ({"mask": "random_box", "size": [5, 3]}, "low <= high"),
        ({"rate": 1.0}, "rate: expected a number"),
        ({"noise": -0.1}, "noise: expected a number"),
        ({"noise": [0.1, 0.2, 0.3]}, r"expected a number or \[low, high\]"),
    ],
)
def test_refuses(settings_, message):
    with pytest.raises(InvalidValue, match=message):
        Inpainting(**settings_)


def test_refuses_a_hole_as_large_as_the_picture():
    with pytest.raises(InvalidValue, match="less than the image's 8 pixels, got 8"):
        Inpainting(size=8).observe(draw(1, 3, 8, 8), generator(0, "m"))
    assert Inpainting(size=7).observe(draw(1, 3, 8, 8), generator(0, "m")).shape == (1, 4, 8, 8)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: type(operator).__name__)
def test_the_classical_peer_restores(operator):
    """On a periodic picture, since the blur is, it is nearer than what was measured."""
    ticks = 2 * torch.pi * torch.arange(24, dtype=torch.float64) / 24
    waves = torch.sin(3 * ticks)[:, None] * torch.cos(4 * ticks)
    smooth = (0.5 + 0.4 * waves).expand(1, 3, 24, 24)
    obs = operator.observe(smooth, generator(0, "n"))
    known = operator.known(obs)
    picture = operator.measurement(obs)[0].permute(1, 2, 0).numpy()
    restored = operator.peer(picture, None if known is None else known[0, 0].numpy() > 0)
    clean = smooth[0].permute(1, 2, 0).numpy()
    assert restored.shape == clean.shape
    assert np.square(restored - clean).mean() < 0.7 * np.square(picture - clean).mean()


@pytest.mark.parametrize("side", [15, 16])
def test_the_peer_takes_a_kernel_that_is_wider_than_the_picture(side):
    operator = Deblurring(sigma=3, noise=0.001)
    picture = torch.rand(1, 1, side, side, generator=generator(0, "x"))
    blurred = operator(picture, picture)[0, 0].numpy()
    as_peer = np.outer(operator._line(side), operator._line(side))
    periodic = np.fft.ifft2(np.fft.fft2(picture[0, 0]) * np.fft.fft2(np.fft.ifftshift(as_peer)))
    np.testing.assert_allclose(periodic.real, blurred, atol=1e-5)
    assert operator.peer(blurred[..., None], None).shape == (side, side, 1)


def test_refuses_a_blur_as_wide_as_the_picture():
    blur = Deblurring(sigma=4)
    with pytest.raises(InvalidValue, match=r"operator.sigma: expected a blur of less than"):
        blur.forward(
            torch.zeros(1, 1, 8, 8), blur.observe(torch.zeros(1, 1, 64, 64), generator(0, "x"))
        )
