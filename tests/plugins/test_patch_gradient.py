"""The gradient through the patch prior: exact, the context included, and with no more kept than volumes."""

from __future__ import annotations

import pytest
import torch
from pdframe_patch import tiling
from pdframe_patch.network import PRESETS
from pdframe_patch.prior import PatchPrior
from pdframe_patch.weights import Card
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pdframe.core import budget
from pdframe.core.seeds import generator

SHAPE, PATCH = (11, 6, 9), 4


def _prior(seed: int = 0, **changes: object) -> PatchPrior:
    card = Card(patch=8, unet=PRESETS["tiny"])
    network, rng = card.network(), generator(seed)
    for p in network.parameters():
        p.data = torch.randn(p.shape, generator=rng) * 0.1
    return PatchPrior(network.eval().requires_grad_(False), card, spacing_mm=(2.0, 1.5, 1.5), **changes)


def _gradient(prior: PatchPrior, x: torch.Tensor, along: torch.Tensor, sigma: float = 0.008) -> torch.Tensor:
    noisy = x.clone().requires_grad_()
    clean = prior.denoise(noisy, torch.full((len(x),), sigma), rng=generator(3))
    return torch.autograd.grad(clean, noisy, along)[0]


def _plain(padded, context, tiles, denoiser, batch, window=None):
    """The same sum of answers by nothing but differentiable operations, all patches at once and all of it kept."""
    patch, total = tiles.patch, torch.zeros_like(padded)
    corners = (tiles.starts + patch).tolist()
    cut = torch.stack([padded[z : z + patch, y : y + patch, x : x + patch] for z, y, x in corners])[:, None]
    for (z, y, x), answer in zip(corners, denoiser(cut, tiles.starts, context)[:, 0], strict=True):
        room = padded.shape
        around = (x, room[2] - x - patch, y, room[1] - y - patch, z, room[0] - z - patch)
        total = total + torch.nn.functional.pad(answer if window is None else window * answer, around)
    return total


@pytest.mark.parametrize("kind", ["random", "blended"])
def test_the_gradient_is_that_of_plain_autograd(kind, monkeypatch):
    prior = _prior(tiling=kind)
    x = torch.rand(2, 1, 12, 20, 9, generator=generator(1)) * 0.04
    along = torch.randn(x.shape, generator=generator(2))
    got = _gradient(prior, x, along)

    class Plain:
        @staticmethod
        def apply(padded, context, work):
            return _plain(padded, context, work.tiles, work.denoiser, work.batch, work.window)

    monkeypatch.setattr(tiling, "_Tiled", Plain)
    want = _gradient(prior, x, along)
    assert float(want.norm()) > 0.1 * float(along.norm())
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def test_the_gradient_holds_what_the_context_says():
    """With it the gradient reaches voxels of other patches; a network blind to it has a gradient in the patch alone."""
    x = torch.rand(1, 1, 16, 16, 16, generator=generator(1)) * 0.04
    along = torch.zeros_like(x)
    along[..., 8, 8, 8] = 1.0
    seeing = _prior()
    blind = PatchPrior(_prior().network, seeing.card, spacing_mm=seeing.spacing_mm)
    object.__setattr__(blind.network, "inputs", blind.network.inputs.__class__(context=False))
    assert int((_gradient(seeing, x, along) != 0).sum()) == x.numel()
    assert int((_gradient(blind, x, along) != 0).sum()) <= 8**3


@pytest.mark.parametrize("blended", [False, True])
def test_the_tiled_gradient_agrees_with_finite_differences(blended):
    def denoiser(patches, starts, context):
        place = starts.sum(1).to(patches).reshape(-1, 1, 1, 1, 1)
        return torch.tanh(patches * (1 + context.mean()) + 0.1 * place) + context[:1].square().sum() * patches.roll(
            1, -1
        )

    def answer(volume, context):
        padded = tiling.pad(volume, PATCH, border)
        if blended:
            return tiling.evaluate_blended(padded, context, tiling.overlapping(SHAPE, PATCH), denoiser, 5)
        return tiling.evaluate(padded, context, tiling.partition(SHAPE, PATCH, (1, 3, 0)), denoiser, 5)

    rng = generator(4)
    border = torch.randn([n + 2 * PATCH for n in SHAPE], generator=rng, dtype=torch.float64)
    volume = torch.randn(SHAPE, generator=rng, dtype=torch.float64, requires_grad=True)
    context = torch.randn(3, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(answer, (volume, context), fast_mode=True)


def test_what_is_kept_for_the_gradient_is_volumes_and_one_batch_of_patches():
    """The activations of 27 to 64 patches would be hundreds of times a volume."""
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    prior = _prior(batch=2)
    x = torch.rand(1, 1, 24, 24, 24, generator=generator(1)) * 0.04
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        noisy = x.clone().requires_grad_()
        prior.denoise(noisy, torch.tensor([0.01]), rng=generator(3))
    padded = (24 + 2 * 8) ** 3
    assert padded <= sum(kept) <= 2 * padded


class Flops(TorchDispatchMode):
    """torch's FLOP formulas without its module tracker, which cannot run inside a backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def test_a_gradient_costs_the_passes_that_the_meter_charges_for_it():
    prior, x = _prior(), torch.rand(1, 1, 16, 16, 16, generator=generator(1)) * 0.04
    noisy = x.clone().requires_grad_()
    with Flops() as forward:
        clean = prior.denoise(noisy, torch.tensor([0.01]), rng=generator(3))
    with Flops() as backward:
        torch.autograd.grad(clean.sum(), noisy)
    assert backward.total / forward.total == pytest.approx(budget.BACKWARD_PASSES, rel=0.05)


def test_without_a_gradient_the_answer_has_the_same_bits_and_no_graph():
    prior, x = _prior(), torch.rand(1, 1, 16, 16, 16, generator=generator(1)) * 0.04
    with torch.no_grad():
        plain = prior.denoise(x, torch.tensor([0.01]), rng=generator(3))
    tracked = prior.denoise(x.clone().requires_grad_(), torch.tensor([0.01]), rng=generator(3))
    assert not plain.requires_grad and tracked.requires_grad
    assert torch.equal(plain, tracked.detach())
