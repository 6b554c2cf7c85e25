import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.sparse.linalg import spsolve

from sdunroll.randomness import generator
from sdunroll.solvers import harmonic_fill


def direct(image, known):
    """Laplace's equation with mirrored borders, by a sparse direct solver; (H, W) each."""
    height, width = image.shape
    matrix = sparse.lil_matrix((height * width, height * width))
    right = np.zeros(height * width)
    for row in range(height):
        for column in range(width):
            place = row * width + column
            if known[row, column]:
                matrix[place, place], right[place] = 1, image[row, column]
                continue
            for down, across in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                y, x = row + down, column + across
                if 0 <= y < height and 0 <= x < width:
                    matrix[place, place] += 1
                    matrix[place, y * width + x] -= 1
    return spsolve(matrix.tocsr(), right).reshape(height, width)


def test_against_a_direct_solver():
    rng = generator(0, "x")
    images = torch.rand(3, 2, 9, 11, generator=rng, dtype=torch.float64)
    known = (torch.rand(3, 1, 9, 11, generator=rng) > 0.6).double()
    filled = harmonic_fill(images, known)
    for image, mask, result in zip(images, known, filled, strict=True):
        for channel, values in zip(image, result, strict=True):
            assert np.allclose(values.numpy(), direct(channel.numpy(), mask[0].numpy()), atol=1e-4)


def test_a_plane_is_continued_and_known_pixels_stay():
    ticks = torch.arange(12.0)
    plane = (ticks[:, None] + 2 * ticks).expand(1, 1, 12, 12) / 36
    known = torch.ones(1, 1, 12, 12)
    known[..., 3:8, 4:9] = 0
    filled = harmonic_fill(plane, known)
    assert torch.allclose(filled, plane, atol=1e-4)
    assert torch.equal(filled[known > 0], plane[known > 0])


def test_its_gradient_is_that_of_the_linear_map():
    """<g, F v> = <F^T g, v> for the fill F, which is linear in the image."""
    rng = generator(0, "x")
    image, other, weight = torch.rand(3, 3, 2, 9, 11, generator=rng, dtype=torch.float64)
    known = (torch.rand(3, 1, 9, 11, generator=rng) > 0.6).double()
    known[0, :, 2:7, 3:8] = 0
    known[2] = 0  # nothing known
    image.requires_grad_()
    (harmonic_fill(image, known) * weight).sum().backward()
    expected = (harmonic_fill(other, known) * weight).sum()
    assert (image.grad * other).sum().item() == pytest.approx(expected.item(), abs=1e-3)
    assert (image.grad[:2] * known[:2] != 0).any()
    assert (image.grad * (1 - known) == 0).all()


def test_without_any_known_pixel_it_is_zero():
    assert torch.equal(
        harmonic_fill(torch.ones(1, 3, 5, 5), torch.zeros(1, 1, 5, 5)), torch.zeros(1, 3, 5, 5)
    )
