import numpy as np
import pytest
import torch
from skimage import metrics as peers

from sdunroll.cache import Cache
from sdunroll.checks import UserError
from sdunroll.data import Faces, Synthetic
from sdunroll.problems import Deblurring, Inpainting, InverseImaging, inverse_imaging
from sdunroll.randomness import generator


@pytest.fixture
def setting():
    problem = InverseImaging(Inpainting(size=4, noise=0.05))
    clean = torch.rand(5, 3, 12, 12, generator=generator(0, "clean"))
    return problem, problem.instances(clean)


def states_of(batch):
    noise = torch.randn(2, *batch.target.shape, generator=generator(0, "states"))
    return batch.target + 0.2 * noise


def test_figures_are_those_of_scikit_image(setting):
    problem, batch = setting
    y = states_of(batch)
    found = problem.figures(y, batch)
    for k in range(2):
        for b in range(5):
            state = y[k, b].clamp(0, 1).permute(1, 2, 0).numpy()
            clean = batch.target[b].permute(1, 2, 0).numpy()
            psnr = peers.peak_signal_noise_ratio(clean, state, data_range=1.0)
            ssim, of_pixels = peers.structural_similarity(
                clean, state, data_range=1.0, channel_axis=-1, full=True
            )
            assert found["psnr"][k, b].item() == pytest.approx(psnr, abs=1e-3)
            assert found["ssim"][k, b].item() == pytest.approx(ssim, abs=1e-4)
            hole = (slice(4, 8), slice(4, 8))
            in_hole = peers.peak_signal_noise_ratio(clean[hole], state[hole], data_range=1.0)
            assert found["hole_psnr"][k, b].item() == pytest.approx(in_hole, abs=1e-3)
            assert found["hole_ssim"][k, b].item() == pytest.approx(
                of_pixels[hole].mean(), abs=1e-4
            )
            squares = np.square(state - clean).mean(-1)
            known = (squares.sum() - squares[hole].sum()) / (144 - 16)
            assert found["known_rmse"][k, b].item() == pytest.approx(known**0.5, abs=1e-5)


def test_a_perfect_picture_has_a_finite_psnr(setting):
    problem, batch = setting
    found = problem.figures(batch.target[None], batch)
    assert found["psnr"].eq(100).all()
    assert found["ssim"].min() > 0.9999


def test_the_data_term_by_hand(setting):
    problem, batch = setting
    y = states_of(batch)
    x, known = batch.obs[:, :3], batch.obs[:, 3:]
    expected = ((known * y - x) ** 2).sum((-3, -2, -1)) / 2
    assert torch.allclose(problem.objective(y, batch.obs), expected)
    assert torch.allclose(problem.gradient(y, batch.obs), known * (known * y - x))


def test_targets_stay_clean_when_signals_are_disturbed(setting):
    problem, batch = setting
    clean = batch.target
    shifted = problem.instances(clean + 0.3, clean=clean)
    assert torch.equal(shifted.target, clean)
    change = problem.operator.measurement(shifted.obs) - problem.operator.measurement(batch.obs)
    assert torch.allclose(change, 0.3 * shifted.obs[:, 3:], atol=1e-6)  # the noise is the same


def test_other_pictures_have_other_masks():
    problem = InverseImaging(Inpainting(mask="random_box", size=[2, 5]))
    clean = torch.rand(40, 3, 12, 12, generator=generator(0, "clean"))
    first, second = problem.instances(clean), problem.instances(clean.flip(0))
    assert not torch.equal(first.obs[:, -1], second.obs[:, -1])


def test_the_observation_as_a_picture(setting):
    problem, batch = setting
    picture = problem.picture(batch.obs)
    assert torch.equal(picture[..., 4:8, 4:8], torch.full((5, 3, 4, 4), 0.5))
    assert torch.equal(picture[..., :4, :], batch.obs[:, :3, :4])


def test_baselines(setting):
    problem, batch = setting
    found = problem.baselines(batch)
    assert set(found) == {"biharmonic", "harmonic fill"}
    for name, states in found.items():
        (answer,) = states
        assert answer.shape == batch.target.shape, name
        assert answer.isfinite().all()


def test_deblurring_restores_from_its_state():
    faces = Faces(size=16, num_train=4, num_val=2, num_test=2)
    problem = inverse_imaging(faces, Cache(None), operator=Deblurring(sigma=1.0))
    again = inverse_imaging(
        faces, Cache(None), problem.state_dict(), operator=Deblurring(sigma=1.0)
    )
    assert torch.equal(again.operator.kernel, problem.operator.kernel)
    assert set(problem.baselines(problem.instances(faces.signals("val")))) == {"Wiener filter"}


def test_refuses_signals_that_are_no_pictures():
    with pytest.raises(UserError, match=r"^data: expected pictures with values in"):
        inverse_imaging(Synthetic(), Cache(None), operator=Inpainting())
    faces = Faces(num_train=4, num_val=2, num_test=2)
    assert inverse_imaging(faces, Cache(None), operator=Inpainting()).channels == 3
