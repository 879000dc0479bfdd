"""The whole-volume prior as a denoiser."""

from __future__ import annotations

import pytest
import torch
from pdframe_volume.network import PRESETS, Card
from pdframe_volume.prior import VolumePrior, VolumePriorConfig
from torch import nn

from pdframe.core.grid import Grid
from pdframe.core.prior import prior_cost, prior_on
from pdframe.core.seeds import generator
from pdframe.ct.checkpoint import save_checkpoint

CARD = Card(unet=PRESETS["tiny"])
SPACING = (5.0, 4.0, 4.0)


class Returns(nn.Module):
    """A network that returns its input."""

    def forward(self, noisy, sigma, steering):
        assert noisy.shape[1] == 1 and all(n % CARD.unet.multiple == 0 for n in noisy.shape[2:])
        torch.testing.assert_close(steering[0], (torch.tensor(SPACING) / 2).log())
        return noisy


def volume(*shape: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 1, *shape, generator=generator(1)) * 0.04


@pytest.mark.parametrize("shape", [(4, 4, 4), (5, 7, 3), (1, 6, 9)])
def test_a_network_that_returns_its_input_gives_the_volume_back(shape):
    prior, x = prior_on(VolumePrior(Returns(), CARD), Grid(shape, SPACING)), volume(*shape, batch=2)
    got = prior.denoise(x, torch.tensor([0.01, 0.002]), rng=generator(2))
    torch.testing.assert_close(got, x, rtol=0, atol=1e-7)  # float32 to network units and back


def test_a_fresh_network_is_the_best_linear_denoiser():
    """With a silent network EDM's skip is the Wiener filter of a white Gaussian of the declared deviation."""
    prior, x = VolumePrior(CARD.network().eval(), CARD, spacing_mm=SPACING), volume(5, 4, 6)
    with torch.no_grad():
        got = prior.denoise(x, torch.tensor([0.004]))
    gain = prior.deviation**2 / (prior.deviation**2 + 0.004**2)
    torch.testing.assert_close(got, prior.mean + gain * (x - prior.mean), rtol=1e-5, atol=1e-7)


def test_cost_is_that_of_the_padded_volume():
    cost = prior_cost(VolumePrior(Returns(), CARD), (3, 1, 5, 7, 4))
    assert cost["voxels"] == 3 * 6 * 8 * 4 and cost["flops"] > 0
    double = prior_cost(VolumePrior(Returns(), CARD), (3, 1, 6, 8, 8))
    assert double["flops"] == pytest.approx(2 * cost["flops"], rel=0.01)  # convolutions only: in proportion


def test_a_volume_too_large_to_be_seen_whole_is_refused():
    with pytest.raises(ValueError, match="most_voxels = 100.*patch3d"):
        VolumePrior(Returns(), CARD, most_voxels=100, spacing_mm=SPACING).denoise(volume(5, 5, 5), torch.tensor([0.01]))


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    path, network = tmp_path / "w.safetensors", CARD.network()
    save_checkpoint(path, network, CARD)
    prior = VolumePriorConfig(weights=path).build()
    assert prior.card.model_copy(update={"weights_sha256": ""}) == CARD
    for a, b in zip(prior.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        VolumePriorConfig(weights=tmp_path / "none.safetensors").build()
