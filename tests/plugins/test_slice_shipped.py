"""The shipped weights of the slice priors: what their cards promise, and that they remove noise."""

from __future__ import annotations

import pytest
import torch
from pdframe_patch.weights import load_weights as load_patch
from pdframe_slice.network import shipped_weights

from pdframe import build
from pdframe.core.prior import Prior, prior_on
from pdframe.core.problem import Item
from pdframe.core.seeds import generator
from pdframe.ct.units import WATER

PER_HU = WATER / 1000


@pytest.fixture(scope="module")
def chest() -> Item:
    """Thirty slices of the packaged scan."""
    item = build("dataset", "sample").load("chest_lidc_0001")
    cut = item.x[:, :, 50:80].contiguous()
    return Item(item.name, cut, type(item.grid)(cut.shape[2:], item.grid.spacing))


@pytest.fixture(scope="module", params=["slice2d", "blend3"])
def prior(request: pytest.FixtureRequest, chest: Item) -> Prior:
    return prior_on(build("prior", request.param), chest.grid)


def test_the_file_is_small_and_its_card_is_that_of_the_patch_prior_in_scans_and_compute(prior: Prior):
    assert shipped_weights("slice2d" if prior.card.slices == 1 else "blend3").stat().st_size <= 10_000_000
    patch = load_patch("shipped")[1]
    assert prior.card.data == patch.data and prior.card.licence == patch.licence
    assert prior.card.training["compute"] == patch.training["compute"] and prior.card.training["steps"] > 0
    assert len(prior.card.weights_sha256) == 64


@pytest.mark.parametrize(("sigma_hu", "at_most_hu"), [(30, 18), (100, 40), (300, 80)])
def test_it_removes_noise_from_a_scan_that_it_has_not_seen(
    prior: Prior, chest: Item, sigma_hu: float, at_most_hu: float
):
    noisy = chest.x + sigma_hu * PER_HU * torch.randn(chest.x.shape, generator=generator(7))
    estimate = prior.denoise(noisy, torch.tensor([sigma_hu * PER_HU]), rng=generator(1))
    assert float((estimate - chest.x).square().mean().sqrt()) / PER_HU < at_most_hu
