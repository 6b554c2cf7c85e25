from itertools import pairwise

import pytest
import torch

from sdunroll.checks import InvalidValue
from sdunroll.data import SPLITS, Faces
from sdunroll.data.faces import FIRST_INDEX, render

SMALL = {"num_train": 30, "num_val": 20, "num_test": 10}


def test_a_face_depends_on_seed_and_index_alone():
    whole = render(range(5, 15), 16, 0)
    assert (render(range(8, 11), 16, 0) == whole[3:6]).all()
    assert not (render(range(8, 11), 16, 1) == whole[3:6]).all()


def test_more_faces_leave_the_first_as_they_are():
    few, many = Faces(size=16, **SMALL), Faces(size=16, **SMALL | {"num_train": 45})
    assert torch.equal(few.signals("train"), many.signals("train")[:30])
    assert torch.equal(few.signals("test"), many.signals("test"))


def test_splits_have_disjoint_indices_and_faces():
    starts = sorted(FIRST_INDEX.values())
    assert min(later - start for start, later in pairwise(starts)) >= 10**9
    faces = torch.cat([Faces(size=16, **SMALL).signals(split) for split in SPLITS]).flatten(1)
    distances = torch.cdist(faces, faces) + 1e9 * torch.eye(len(faces))
    assert distances.min() > 0.1


@pytest.mark.parametrize("size", [32, 64])
def test_faces_are_pictures_that_share_a_structure(size):
    faces = Faces(size=size, **SMALL).signals("train")
    assert faces.shape == (30, 3, size, size)
    assert faces.dtype == torch.float32
    assert faces.min() >= 0
    assert faces.max() <= 1
    middle = faces[..., size * 3 // 8 : size * 5 // 8, size * 3 // 8 : size * 5 // 8]
    corner = faces[..., : size // 4, : size // 4]
    assert middle.var(0).mean() < corner.var(0).mean()  # backgrounds vary more than faces
    assert faces.flatten(1).std(1).min() > 0.03


def test_sizes_are_the_same_faces():
    """The large picture, averaged over 2x2 pixels, is close to the small one."""
    small, large = (Faces(size=size, **SMALL).signals("test") for size in (32, 64))
    averaged = torch.nn.functional.avg_pool2d(large, 2)
    assert (averaged - small).abs().mean() < 0.02


def test_it_says_what_it_is():
    assert "synthetic" in Faces().notice
    with pytest.raises(InvalidValue, match="size"):
        Faces(size=4)
