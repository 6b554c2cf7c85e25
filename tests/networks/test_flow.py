import normflows
import pytest
import torch
from torch import nn

from sdunroll.networks.flow import Glow, squeeze, unsqueeze
from sdunroll.networks.flow_steps import Coupling, Mix, MixMatrices, _make_matrices, mix_matrices
from sdunroll.networks.reversible import apply_chain, reversible_chain
from sdunroll.randomness import generator


def stirred(module, scale=0.02):
    """The module with weights as after some training."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(scale * torch.randn(weight.shape, generator=generator(0, "stir")))
    return module


def glow(dtype=torch.float64, **settings):
    settings = {"depth": 3, "levels": 2, "width": 8} | settings
    flow = stirred(Glow(3, generator(0, "weights"), **settings)).to(dtype)
    flow.normalise(images(16, dtype=dtype))
    return flow


def images(count=2, size=(8, 12), dtype=torch.float64):
    return torch.rand(count, 3, *size, generator=generator(1, "images"), dtype=dtype)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("size", [(8, 8), (8, 12), (32, 64)])
def test_round_trip(dtype, error, size):
    flow = glow(dtype)
    y = images(size=size, dtype=dtype)
    latents = flow(y)
    assert sum(latent.numel() for latent in latents) == y.numel()
    assert (flow.inverse(latents) - y).abs().max() < error
    assert (flow.inverse([*latents[:-1], 0 * latents[-1]]) - y).abs().max() > 0.01


def test_log_determinant_against_autograd():
    flow = glow(depth=2)
    y = images(1, (4, 4))
    shape = y.shape
    jacobian = torch.autograd.functional.jacobian(
        lambda flat: torch.cat([z.flatten() for z in flow(flat.view(shape))]), y.flatten()
    )
    assert torch.linalg.slogdet(jacobian)[1].item() == pytest.approx(
        flow.log_det(y).item(), abs=1e-9
    )


def test_mix_is_the_convolution_of_normflows():
    mix = stirred(Mix(6, generator(0, "mix"))).double()
    with pytest.warns(UserWarning, match=r"torch\.lu is deprecated"):
        peer = normflows.flows.Invertible1x1Conv(6, use_lu=True).double()
    with torch.no_grad():
        peer.P.copy_(mix.permutation)
        peer.sign_S.copy_(mix.sign)
        peer.L.copy_(mix.lower)
        peer.U.copy_(mix.upper)
        peer.log_S.copy_(mix.log_diagonal)
    h = torch.randn(4, 6, 3, 5, generator=generator(0, "h"), dtype=torch.float64)
    scaled = mix.log_scale.exp()[:, None, None] * (h + mix.bias[:, None, None])
    expected, log_det = peer.inverse(scaled)  # normflows runs its flows from the latents
    assert torch.allclose(mix(h), expected, atol=1e-12)
    per_pixel = log_det + 15 * mix.log_scale.sum()
    assert torch.allclose(mix.log_det(h), per_pixel.expand(4), atol=1e-10)


def test_coupling_is_that_of_normflows():
    coupling = stirred(Coupling(6, 8, generator(0, "coupling")), 0.2).double()

    class Interleaved(nn.Module):
        """Shift and log-scale in turns, as normflows wants them."""

        def forward(self, a):
            log_scale, shift = coupling._affine(a)
            return torch.stack([shift, log_scale], 2).flatten(1, 2)

    peer = normflows.flows.AffineCouplingBlock(Interleaved())
    h = torch.randn(4, 6, 3, 5, generator=generator(0, "h"), dtype=torch.float64)
    expected, log_det = peer(h)
    assert torch.allclose(coupling(h), expected, atol=1e-12)
    assert torch.allclose(coupling.log_det(h), log_det, atol=1e-12)


def test_squeeze_keeps_each_block_together():
    h = images()
    expected, _ = normflows.flows.Squeeze().inverse(h)
    assert torch.equal(squeeze(h), expected)
    assert torch.equal(unsqueeze(squeeze(h)), h)


def test_actnorm_normalises_what_each_step_receives():
    flow = stirred(Glow(3, generator(0, "weights"), depth=2, levels=2, width=8)).double()
    y = images(16)
    flow.normalise(y)
    received = {}
    mixes = [module for module in flow.modules() if isinstance(module, Mix)]
    for mix in mixes:
        mix.register_forward_pre_hook(lambda module, args: received.setdefault(module, args[0]))
    flow.log_det(y)  # step by step
    assert len(received) == 4
    for mix, h in received.items():
        scaled = mix.log_scale.exp()[:, None, None] * (h + mix.bias[:, None, None])
        assert scaled.mean((0, 2, 3)).abs().max() < 1e-10
        assert torch.allclose(scaled.std((0, 2, 3), correction=0), torch.ones(1, dtype=h.dtype))


def test_the_flow_is_its_steps_one_after_the_other():
    flow, y = glow(levels=1), images()
    h = squeeze(y)
    for step in flow.levels[0]:
        h = step(h)
    (latent,) = flow(y)
    torch.testing.assert_close(latent, h)
    for step in reversed(flow.levels[0]):
        h = step.inverse(h)
    torch.testing.assert_close(unsqueeze(h), y)


def test_actnorm_of_one_value_or_constant_channels_is_finite():
    flow = Glow(3, generator(0, "weights"), depth=1, levels=3, width=4)
    for y in (images(1, (8, 8), torch.float32), torch.full((2, 3, 8, 8), 0.5)):
        flow.normalise(y)
        assert all(weight.isfinite().all() for weight in flow.parameters())
        assert (flow.inverse(flow(y)) - y).abs().max() < 1e-4


def test_log_scale_and_shift_are_bounded():
    bounds = {"bound": 0.5, "shift_bound": 2.0}
    coupling = stirred(Coupling(6, 8, generator(0, "coupling"), **bounds), 100.0)
    affine = coupling._affine(torch.randn(2, 3, 4, 4, generator=generator(0, "a")))
    for values, bound in zip(affine, bounds.values(), strict=True):
        assert 0.9 * bound < values.abs().max() <= bound


def test_bounded_shifts_keep_the_round_trip_where_couplings_have_grown():
    errors = {}
    for shift_bound in (None, 0.5):
        flow = Glow(
            3, generator(0, "weights"), depth=4, levels=2, width=32, shift_bound=shift_bound
        )
        y = images(8, (16, 16), torch.float32)
        flow.normalise(y)
        for level in flow.levels:
            stirred(level[1::2], 0.07)
        errors[shift_bound] = (flow.inverse(flow(y)) - y).abs().max()
    assert errors[None] > 2e-5
    assert errors[0.5] < 1e-5


def test_mixes_made_together_are_each_its_own():
    mixes = [stirred(Mix(6, generator(seed, "mix")), 0.2).double() for seed in range(3)]
    h = torch.randn(4, 6, 3, 5, generator=generator(0, "h"), dtype=torch.float64)
    made = mix_matrices(mixes)
    kept = [MixMatrices(*one) for one in zip(*_make_matrices(mixes), strict=True)]
    for mix, one, plain in zip(mixes, made, kept, strict=True):
        for inverse in (False, True):
            own, out, same = (each.inverse(h) if inverse else each(h) for each in (mix, one, plain))
            torch.testing.assert_close(out, own)
            torch.testing.assert_close(out, same, rtol=0, atol=0)
            gradients = [
                torch.autograd.grad(
                    each.sin().sum(), list(mix.parameters()), retain_graph=True, allow_unused=True
                )
                for each in (own, out, same)
            ]
            torch.testing.assert_close(gradients[0], gradients[1])
            torch.testing.assert_close(gradients[0], gradients[2])
        torch.testing.assert_close(one.inverse(one(h)), h)
        torch.testing.assert_close(one.back[0], torch.linalg.inv(one.there[0]))


def test_mixing_is_rounded_once():
    mix = stirred(Mix(48, generator(0, "mix")), 0.05)
    h = torch.randn(2, 48, 4, 4, generator=generator(0, "h"))
    narrow = mix(h), mix.inverse(h)
    mix.double()
    for mixed, exact in zip(narrow, (mix(h.double()), mix.inverse(h.double())), strict=True):
        assert torch.equal(mixed, exact.float())


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("kind", ["mix", "matrices", "coupling", "all"])
def test_reversible_gradients_are_those_of_autograd(kind, inverse):
    rng = generator(0, "weights")
    mixes = [Mix(4, rng) for _ in range(2)]
    couplings = [Coupling(4, 8, rng, shift_bound=shift_bound) for shift_bound in (None, 0.2)]
    module = stirred(nn.ModuleList([*mixes, *couplings]), 0.2).double()
    found = []
    for run in (apply_chain, reversible_chain):
        made = mix_matrices(mixes)
        alternating = [step for pair in zip(made, couplings, strict=True) for step in pair]
        kinds = {"mix": mixes, "matrices": made, "coupling": couplings, "all": alternating}
        h = torch.randn(3, 4, 5, 5, generator=generator(0, "h"), dtype=torch.float64)
        h.requires_grad_()
        out = run(kinds[kind], h, inverse=inverse)
        weight = torch.randn(out.shape, generator=generator(0, "g"), dtype=torch.float64)
        of = [h, *module.parameters()]
        found.append([out, *torch.autograd.grad((out * weight).sum(), of, materialize_grads=True)])
    assert sum(1 for gradient in found[0][2:] if gradient.any()) >= 8
    for plain, reversible in zip(*found, strict=True):
        assert torch.allclose(plain, reversible, rtol=1e-9, atol=1e-10)


def test_frozen_weights_of_a_reversible_flow():
    found = []
    for reversible in (False, True):
        flow = glow(reversible=reversible)
        for weight in [*flow.levels[0].parameters(), flow.levels[1][1].net[0].bias]:
            weight.requires_grad_(False)
        y = images().requires_grad_()
        flow.inverse([latent / 1.1 for latent in flow(y)]).square().sum().backward()
        found.append([y.grad, *(weight.grad for weight in flow.parameters())])
    assert sum(gradient is None for gradient in found[0]) > 20
    for plain, rebuilt in zip(*found, strict=True):
        torch.testing.assert_close(rebuilt, plain, rtol=1e-9, atol=1e-10)


def test_reversible_glow_gradients_in_float32():
    """As trained: through g and its inverse."""
    found = []
    for reversible in (False, True):
        flow = glow(torch.float32, reversible=reversible, depth=4)
        y = images(dtype=torch.float32).requires_grad_()
        out = flow.inverse([latent / 1.1 for latent in flow(y)])
        found.append(torch.autograd.grad(out.square().sum(), [y, *flow.parameters()]))
    for plain, reversible in zip(*found, strict=True):
        assert (plain - reversible).norm() <= 1e-3 * plain.norm() + 1e-6


def saved_bytes(run):
    """Bytes of the distinct tensors that autograd keeps for the backward pass."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    assert out.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("reversible", [True, False])
def test_kept_memory_does_not_grow_with_depth(reversible):
    y = images(8, (32, 32), torch.float32)

    def kept(depth):
        flow = Glow(3, generator(0, "w"), depth=depth, levels=1, width=8, reversible=reversible)
        return saved_bytes(lambda: torch.cat([z.flatten() for z in flow(y)]))

    shallow, deep = kept(2), kept(8)
    assert (deep < 1.1 * shallow) == reversible


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="divisible by 4, got 8 x 10"):
        glow()(images(size=(8, 10)))
    assert len(glow()(images(size=(8, 16)))) == 2
