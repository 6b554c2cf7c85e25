import os
import signal

import numpy as np
import pytest
import skimage.data
import torch

from sdunroll.checks import InvalidValue, UserError
from sdunroll.data import SPLITS, Photos, photos

SMALL = {"num_train": 300, "num_val": 200, "num_test": 200}


def numbered_pictures(color):
    """Pictures in which every pixel has a value of its own."""
    shapes = {"one": (60, 400, 1), "two": (50, 333, 1)}
    start, pictures = 1, {}
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        pictures[name] = np.arange(start, start + count, dtype=np.float64).reshape(shape)
        start += count
    return pictures


def test_no_pixel_is_in_two_splits(monkeypatch):
    monkeypatch.setattr(photos, "load_pictures", numbered_pictures)
    monkeypatch.setattr(photos, "HALF_UP_TO", 0)  # means over pixels are checked below
    seen = {}
    for split in SPLITS:
        seen[split] = set(Photos(**SMALL).signals(split).unique().tolist())
    assert not seen["train"] & seen["val"]
    assert not seen["train"] & seen["test"]
    assert not seen["val"] & seen["test"]
    assert min(map(len, seen.values())) > 1000


@pytest.mark.parametrize("changed", SPLITS)
def test_a_pixel_decides_its_own_split_alone(monkeypatch, changed):
    """Also through the half-resolution copies: new pixels in one band change that split only."""
    plain = {split: Photos(**SMALL).signals(split) for split in SPLITS}
    load = photos.load_pictures

    def altered(color):
        pictures = {name: picture.copy() for name, picture in load(color).items()}
        for picture in pictures.values():
            photos.band(picture, changed)[:] = 1 - photos.band(picture, changed)
        return pictures

    monkeypatch.setattr(photos, "load_pictures", altered)
    for split in SPLITS:
        same = torch.equal(Photos(**SMALL).signals(split), plain[split])
        assert same == (split != changed)


@pytest.mark.parametrize("color", [False, True])
def test_the_photographs_that_are_kept_cannot_be_altered(color):
    for picture in photos.load_pictures(color).values():
        with pytest.raises(ValueError, match="read-only"):
            picture[:] = 0


def test_bands_cover_the_picture():
    picture = np.arange(101.0)[None, :, None]
    joined = np.concatenate([photos.band(picture, split) for split in SPLITS], axis=1)
    assert np.array_equal(joined, picture)


def test_halved_is_the_mean_of_blocks():
    picture = np.arange(15.0).reshape(3, 5, 1)
    assert np.array_equal(photos.halved(picture)[..., 0], [[3.0, 5.0]])


def test_crops_are_real_crops_and_not_flat():
    crops = Photos(**SMALL).signals("test")
    assert crops.shape == (200, 1, 16, 16)
    assert crops.dtype == torch.float32
    assert 0 <= crops.min() < crops.max() <= 1
    assert crops.flatten(1).std(1, unbiased=False).min() >= photos.FLAT


def test_crops_are_the_windows_at_the_positions_drawn(monkeypatch):
    """In that order, in every area, more than are looked at at once."""
    monkeypatch.setattr(photos, "CROPS_AT_ONCE", 7)
    areas = [area[:20, :30] for area in numbered_pictures(color=False).values()]
    windows = [
        area[row : row + 8, column : column + 8].transpose(2, 0, 1)
        for area in areas
        for row in range(13)
        for column in range(23)
    ]
    drawn = torch.randint(len(windows), (40,), generator=torch.Generator().manual_seed(0))
    crops = photos.random_crops(areas, 8, 40, torch.Generator().manual_seed(0))
    assert np.array_equal(crops, [windows[position] for position in drawn])


def test_flat_areas_are_left_out():
    flat_beside_noise = np.concatenate([np.zeros((20, 60, 1)), np.eye(20)[..., None]], axis=1)
    crops = photos.random_crops([flat_beside_noise], 8, 50, torch.Generator().manual_seed(0))
    assert crops.std((1, 2, 3)).min() >= photos.FLAT


def test_flat_areas_of_a_colour_are_left_out():
    sky = np.broadcast_to([0.2, 0.5, 0.9], (20, 60, 3))
    noise = np.random.default_rng(0).random((20, 20, 3))
    areas = [np.concatenate([sky, noise], axis=1)]
    crops = photos.random_crops(areas, 8, 50, torch.Generator().manual_seed(0))
    assert crops.std((2, 3)).max(1).min() >= photos.FLAT


def test_same_seed_same_crops_other_seed_others():
    assert torch.equal(Photos(**SMALL).signals("val"), Photos(**SMALL).signals("val"))
    assert not torch.equal(Photos(**SMALL).signals("val"), Photos(**SMALL, seed=1).signals("val"))


def test_color():
    crops = Photos(**SMALL, color=True, size=32).signals("val")
    assert crops.shape == (200, 3, 32, 32)
    assert not torch.equal(crops[:, 0], crops[:, 1])


def test_refuses_crops_larger_than_a_band():
    with pytest.raises(UserError, match="have no room for crops of 200"):
        Photos(size=200).signals("val")


@pytest.mark.parametrize("setting", [{"num_train": 0}, {"size": 1}, {"seed": -1}, {"color": "no"}])
def test_refuses(setting):
    with pytest.raises(InvalidValue, match=next(iter(setting))):
        Photos(**setting)


def test_ctrl_c_waits_until_the_photographs_are_read(monkeypatch):
    """imageio prints a traceback of its own where it is interrupted."""
    coffee, read = skimage.data.coffee, []

    def interrupted():
        os.kill(os.getpid(), signal.SIGINT)
        read.append("coffee")
        return coffee()

    monkeypatch.setattr(skimage.data, "coffee", interrupted)
    with pytest.raises(KeyboardInterrupt):
        photos.load_pictures.__wrapped__(True)  # which may have been read before
    assert read == ["coffee"]
