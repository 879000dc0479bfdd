"""The prior as a denoiser of whole volumes, with a network small enough for a test."""

from __future__ import annotations

import pytest
import torch
from pdframe_patch.network import PRESETS
from pdframe_patch.prior import PatchPrior
from pdframe_patch.weights import Card, load_weights, save_weights
from torch import nn

from pdframe.core.grid import Grid
from pdframe.core.prior import prior_cost, prior_on, unfamiliar
from pdframe.core.seeds import generator


@pytest.fixture
def prior() -> PatchPrior:
    card = Card(patch=8, unet=PRESETS["tiny"])
    network = card.network()
    rng = generator(0)
    for p in network.parameters():
        p.data = torch.randn(p.shape, generator=rng) * 0.05
    return PatchPrior(network.eval().requires_grad_(False), card)


def on(prior: PatchPrior, shape) -> PatchPrior:
    return prior_on(prior, Grid(shape, (2.0, 1.5, 1.5)))


@pytest.mark.parametrize("shape", [(8, 8, 8), (11, 20, 5), (3, 3, 3)])
@pytest.mark.parametrize("tiling", ["random", "blended"])
def test_any_shape_comes_back_finite_and_in_shape(prior, shape, tiling):
    x = torch.rand(2, 1, *shape, generator=generator(1)) * 0.04
    ready = PatchPrior(prior.network, prior.card, tiling=tiling, spacing_mm=(2.0, 1.5, 1.5))
    out = ready.denoise(x, torch.tensor([0.01, 0.002]), rng=generator(2))
    assert out.shape == x.shape and out.dtype == x.dtype and bool(out.isfinite().all())


def test_the_same_generator_gives_the_same_bits_and_another_offset_another_answer(prior):
    x = torch.rand(1, 1, 20, 20, 20, generator=generator(1)) * 0.04
    ready, sigma = on(prior, (20, 20, 20)), torch.tensor([0.005])
    assert torch.equal(ready.denoise(x, sigma, rng=generator(3)), ready.denoise(x, sigma, rng=generator(3)))
    assert not torch.equal(ready.denoise(x, sigma, rng=generator(3)), ready.denoise(x, sigma, rng=generator(4)))
    assert torch.equal(ready.denoise(x, sigma), ready.denoise(x, sigma))


def test_patches_are_the_same_in_any_batch_size(prior):
    x = torch.rand(1, 1, 20, 20, 20, generator=generator(1)) * 0.04
    answers = [
        PatchPrior(prior.network, prior.card, batch=b, spacing_mm=(1.0, 1.0, 1.0)).denoise(x, torch.tensor([0.005]))
        for b in (1, 7)
    ]
    torch.testing.assert_close(*answers, rtol=1e-3, atol=1e-5)


def test_a_volume_without_spacing_or_with_two_axes_is_refused(prior):
    with pytest.raises(ValueError, match="voxel spacing"):
        prior.denoise(torch.zeros(1, 1, 8, 8, 8), torch.tensor([0.01]))
    with pytest.raises(ValueError, match="three axes"):
        prior_on(prior, Grid((8, 8), (1.0, 1.0)))


@pytest.mark.parametrize(
    ("spacing", "said"),
    [((2.0, 2.0, 2.0), ""), ((3.0, 1.5, 1.5), ""), ((2.0, 9.0, 9.0), "in plane, these have 9"),
     ((5.0, 1.5, 1.5), "these are 3.33 times"), ((1.0, 3.0, 3.0), "these are 0.333 times")],
)  # fmt: skip
def test_a_voxel_that_it_was_not_trained_on_is_told(prior, spacing, said):
    told = unfamiliar(prior, Grid((12, 12, 12), spacing))
    assert said in told and bool(said) == bool(told)


def test_cost_counts_the_patches_that_are_evaluated(prior):
    assert prior_cost(prior, (2, 1, 16, 16, 16))["voxels"] == 2 * 27 * 8**3


def test_a_checkpoint_comes_back_as_it_was_saved(prior, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, prior.network, prior.card)
    network, card = load_weights(path)
    assert card.model_copy(update={"weights_sha256": ""}) == prior.card
    for a, b in zip(network.parameters(), prior.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_what_is_not_a_checkpoint_is_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_weights(tmp_path / "none.safetensors")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"12345678901234567890")
    with pytest.raises(ValueError, match="not a checkpoint"):
        load_weights(torn)


class Probe(nn.Module):
    """A network with a known answer; keeps what it was asked."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer, self.asked = answer, []

    def forward(self, patches, sigma, context, context_sigma, where, steering):
        self.asked.append((patches, sigma, context, context_sigma, where, steering))
        return self.answer(patches, where)


def probed(shape: tuple[int, ...], answer) -> PatchPrior:
    return on(PatchPrior(Probe(answer), Card(patch=8, unet=PRESETS["tiny"]), batch=4), shape)


SHAPE = (16, 24, 32)


def test_a_network_that_returns_its_patch_or_its_place_gives_the_volume_or_its_coordinates():
    x = torch.rand(1, 1, *SHAPE, generator=generator(1)) * 0.04
    for seed in range(4):
        got = probed(SHAPE, lambda patches, where: patches).denoise(x, torch.tensor([0.005]), rng=generator(seed))
        torch.testing.assert_close(got, x, rtol=0, atol=1e-7)
    for axis, n in enumerate(SHAPE):
        prior = probed(SHAPE, lambda patches, where, axis=axis: where[:, axis : axis + 1])
        got = (prior.denoise(x, torch.tensor([0.005])) - prior.mean) / prior.card.scale
        line = ((2 * torch.arange(n) + 1) / n - 1).reshape([n if a == axis else 1 for a in range(3)])
        torch.testing.assert_close(got[0, 0], line.expand(SHAPE), rtol=0, atol=1e-5)


def test_the_network_is_told_noise_context_and_spacing():
    prior = probed(SHAPE, lambda patches, where: patches)
    x = prior.mean + prior.card.scale * torch.randn(1, 1, *SHAPE, generator=generator(1))
    prior.denoise(x, torch.tensor([0.005]))
    level = 0.005 / prior.card.scale
    cells = ((x - prior.mean) / prior.card.scale)[0, 0].reshape(8, 2, 8, 3, 8, 4).mean((1, 3, 5))
    for _, sigma, context, context_sigma, _, steering in prior.network.asked:
        torch.testing.assert_close(sigma, torch.full_like(sigma, level))
        torch.testing.assert_close(context_sigma, torch.full_like(sigma, level / 24**0.5))  # of 24 voxels each
        torch.testing.assert_close(context[:, 0], cells.expand(len(sigma), -1, -1, -1), rtol=0, atol=1e-5)
        extent = torch.tensor([2.0 * 16, 1.5 * 24, 1.5 * 32])
        told = torch.cat([torch.tensor([2.0, 1.5, 1.5]) / 2, extent / 300]).log()
        torch.testing.assert_close(steering, told.expand(len(sigma), -1))


def test_around_the_volume_the_network_sees_air_of_the_same_noise():
    prior = probed(SHAPE, lambda patches, where: patches)
    level = 0.005 / prior.card.scale
    prior.denoise(torch.full((1, 1, *SHAPE), prior.mean), torch.tensor([0.005]))
    beyond = [p[(w.abs() > 1).any(1, keepdim=True)] for p, _, _, _, w, _ in prior.network.asked]
    around = torch.cat(beyond)
    assert len(around) > 1000
    assert float(around.mean()) == pytest.approx(prior.card.air, abs=5 * level / len(around) ** 0.5)
    assert float(around.std()) == pytest.approx(level, rel=0.1)
