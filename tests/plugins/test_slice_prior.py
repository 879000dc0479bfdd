"""The slice priors as denoisers of whole volumes, with probes whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pdframe_slice import network as slice_network
from pdframe_slice.groups import draw_groups
from pdframe_slice.network import PRESETS, Card, conditions, load_weights
from pdframe_slice.prior import Blend3Config, Slice2DConfig, SlicePrior
from torch import nn

from pdframe.core.grid import Grid
from pdframe.core.prior import prior_cost, prior_on
from pdframe.core.seeds import generator
from pdframe.ct.checkpoint import save_checkpoint
from pdframe.hooks import BackendMissing
from pdframe.nn.denoiser import with_channels

SPACING = (3.0, 1.5, 1.5)


class Probe(nn.Module):
    """A network with a known answer; keeps what it was asked."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer, self.asked = answer, []

    def forward(self, slices, sigma, steering):
        self.asked.append((slices, sigma, steering))
        return self.answer(slices)


def card(slices: int) -> Card:
    return Card(unet=with_channels(PRESETS["tiny"], slices), strides=(1,) if slices == 1 else (1, 3))


def probed(slices: int, answer) -> SlicePrior:
    c = card(slices)
    return SlicePrior(Probe(answer), c, strides=c.strides, spacing_mm=SPACING)


def real(slices: int) -> SlicePrior:
    c = card(slices)
    network, rng = c.network(), generator(0)
    for p in network.parameters():
        p.data = torch.randn(p.shape, generator=rng) * 0.05
    return SlicePrior(network.eval().requires_grad_(False), c, strides=c.strides, spacing_mm=SPACING)


def volume(*shape: int, batch: int = 1, seed: int = 1) -> torch.Tensor:
    return torch.rand(batch, 1, *shape, generator=generator(seed)) * 0.04


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("shape", [(3, 4, 4), (10, 7, 5), (9, 16, 3)])
def test_a_network_that_returns_its_input_gives_the_volume_back(slices, shape):
    x, prior = volume(*shape, batch=2), probed(slices, lambda s: s)
    for seed in range(6):
        got = prior.denoise(x, torch.tensor([0.01, 0.002]), rng=generator(seed))
        torch.testing.assert_close(got, x, rtol=0, atol=1e-7)  # float32 to network units and back


def test_a_network_that_answers_the_mean_of_its_slices_gives_the_mean_of_each_group():
    x = volume(12, 6, 5)
    prior = probed(3, lambda s: s.mean(1, keepdim=True).expand_as(s))
    for seed in range(6):
        groups, _ = draw_groups(12, 3, (1, 3), generator(seed))
        expected = torch.empty_like(x[0, 0])
        for members, gives in zip(groups.members, groups.gives, strict=True):
            expected[members[gives]] = x[0, 0, members].mean(0)
        got = prior.denoise(x, torch.tensor([0.01]), rng=generator(seed))
        torch.testing.assert_close(got[0, 0], expected, rtol=0, atol=1e-7)


def test_the_network_is_told_noise_spacing_and_stride():
    prior, seen = probed(3, lambda s: s), set()
    for seed in range(8):
        prior.denoise(volume(12, 4, 4), torch.tensor([0.005]), rng=generator(seed))
        _, stride = draw_groups(12, 3, (1, 3), generator(seed))
        _, sigma, steering = prior.network.asked[-1]
        torch.testing.assert_close(sigma, torch.full_like(sigma, 0.5))  # 0.005 1/mm are 250 HU
        torch.testing.assert_close(steering[0], torch.tensor([3 / 2, 1.5 / 2, 1.5 / 2, stride]).log())
        seen.add(stride)
    assert seen == {1, 3}


def test_a_slice_of_slice2d_does_not_depend_on_the_others():
    x, prior = volume(5, 7, 6), real(1)
    other = x.clone()
    other[:, :, 2] += 0.01
    a, b = (prior.denoise(v, torch.tensor([0.005]), rng=generator(3)) for v in (x, other))
    same = [k for k in range(5) if torch.equal(a[:, :, k], b[:, :, k])]
    assert same == [0, 1, 3, 4]


@pytest.mark.parametrize("slices", [1, 3])
def test_the_same_generator_gives_the_same_bits_in_any_batch_size(slices):
    x, sigma, prior = volume(11, 7, 6), torch.tensor([0.005]), real(slices)  # 7 rows: a row of noisy air is drawn
    first = prior.denoise(x, sigma, rng=generator(3))
    assert torch.equal(first, prior.denoise(x, sigma, rng=generator(3)))
    assert torch.equal(prior.denoise(x, sigma), prior.denoise(x, sigma))
    assert not torch.equal(first, prior.denoise(x, sigma, rng=generator(5)))
    torch.testing.assert_close(replace(prior, batch=2).denoise(x, sigma, rng=generator(3)), first, rtol=1e-3, atol=1e-5)


def test_the_gradient_is_that_of_the_network():
    x = volume(4, 4, 4).requires_grad_()
    prior, sigma = real(1), torch.tensor([0.005])
    (slope,) = torch.autograd.grad(prior.denoise(x, sigma).square().sum(), x)
    c, steering = prior.card, conditions(SPACING, 1).expand(4, -1)
    noisy = ((x[0, 0] - c.mean) / c.scale)[:, None]
    plain = (prior.network(noisy, torch.full((4,), 0.5), steering) * c.scale + c.mean).square().sum()
    torch.testing.assert_close(slope, torch.autograd.grad(plain, x)[0], rtol=1e-3, atol=1e-6)


def test_cost_counts_the_slices_that_are_evaluated():
    prior = probed(3, lambda s: s)
    cost = prior_cost(prior, (2, 1, 12, 7, 5))
    assert cost["voxels"] == 2 * 5 * 3 * 8 * 6  # 5 triples of a volume of 12 slices with an offset; 7 x 5 in 8 x 6
    assert cost["flops"] > 0
    single = probed(1, lambda s: s)
    assert prior_cost(single, (1, 1, 12, 8, 8))["voxels"] == 12 * 8 * 8
    single.denoise(volume(12, 8, 8), torch.tensor([0.01]))
    assert sum(len(slices) for slices, *_ in single.network.asked) == 12


def test_what_cannot_be_grouped_or_placed_is_refused():
    with pytest.raises(ValueError, match="need 3 slices"):
        probed(3, lambda s: s).denoise(volume(2, 4, 4), torch.tensor([0.01]))
    with pytest.raises(ValueError, match="voxel spacing"):
        replace(probed(1, lambda s: s), spacing_mm=None).denoise(volume(4, 4, 4), torch.tensor([0.01]))
    with pytest.raises(ValueError, match="three axes"):
        prior_on(probed(1, lambda s: s), Grid((8, 8), (1.0, 1.0)))


def test_a_checkpoint_comes_back_as_it_was_saved_and_only_to_its_own_prior(tmp_path):
    path, prior = tmp_path / "w.safetensors", real(3)
    save_checkpoint(path, prior.network, prior.card)
    network, loaded = load_weights("blend3", path, 3)
    assert loaded.model_copy(update={"weights_sha256": ""}) == prior.card and loaded.slices == 3
    for a, b in zip(network.parameters(), prior.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    assert Blend3Config(weights=path, strides=(3,)).build().strides == (3,)
    with pytest.raises(ValueError, match=r"trained at strides \(1, 3\)"):
        Blend3Config(weights=path, strides=(2,)).build()
    with pytest.raises(ValueError, match="sees 3 slices together: slice2d needs"):
        Slice2DConfig(weights=path).build()


def test_weights_that_did_not_come_along_are_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(slice_network, "shipped_weights", lambda name: tmp_path / "shipped" / f"{name}.safetensors")
    with pytest.raises(BackendMissing, match=r"slice2d.safetensors.*pdframe train.*weights") as told:
        Slice2DConfig().build()
    assert "\n" not in str(told.value)
