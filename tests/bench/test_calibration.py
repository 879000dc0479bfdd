"""Calibration against closed forms: exact posterior samples are flat, a Gaussian's CRPS is known."""

from __future__ import annotations

import json
import math

import pytest
import torch

from pdframe.bench.calibration import calibrate
from pdframe.core.seeds import generator

N = 60_000


def posterior(k: int, scale: float = 1.0, shape: tuple[int, ...] = (N,)) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples and truth around a mean and with a deviation that differ from voxel to voxel."""
    rng = generator(k, "calibration")
    mean, deviation = torch.randn(shape, generator=rng), torch.rand(shape, generator=rng) + 0.2
    samples = mean + scale * deviation * torch.randn((k, *shape), generator=rng)
    return samples, mean + deviation * torch.randn(shape, generator=rng)


@pytest.mark.parametrize("k", [2, 3, 5, 16])
def test_exact_samples_have_flat_ranks_and_cover_what_they_say(k):
    found = calibrate(*posterior(k))
    error = 4 * math.sqrt(0.25 / N)
    assert found["ranks"] == pytest.approx([1 / (k + 1)] * (k + 1), abs=error)
    assert sum(found["ranks"]) == pytest.approx(1.0)
    assert len(found["coverage"]) == k // 2
    for level in found["coverage"]:
        assert level["observed"] == pytest.approx(level["nominal"], abs=error)
    assert found["spread_skill"] == pytest.approx(1.0, abs=0.02)


def test_too_sure_and_too_unsure_are_told_apart():
    sure, unsure = calibrate(*posterior(9, scale=0.5)), calibrate(*posterior(9, scale=2.0))
    widest = sure["coverage"][0]
    assert widest["nominal"] == 0.8
    assert widest["observed"] < 0.6 < 0.95 < unsure["coverage"][0]["observed"]
    assert sure["spread_skill"] == pytest.approx(0.5, abs=0.1)
    assert unsure["spread_skill"] > 1.5


@pytest.mark.parametrize("k", [2, 5, 20])
@pytest.mark.parametrize("offset", [0.0, 1.5])
def test_crps_of_an_ensemble_is_that_of_its_gaussian(k, offset):
    """CRPS(N(0, s^2), y) = s (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)), z = y / s (Gneiting and Raftery, 2007)."""
    s, n = 0.7, 200_000
    samples = s * torch.randn((k, n), generator=generator(k, "crps"), dtype=torch.float64)
    z = offset / s
    below, density = 0.5 * (1 + math.erf(z / math.sqrt(2))), math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    expected = s * (z * (2 * below - 1) + 2 * density - 1 / math.sqrt(math.pi))
    found = calibrate(samples, torch.full((n,), offset, dtype=torch.float64))["crps"]
    assert found == pytest.approx(expected, abs=4 * s / math.sqrt(n))


def test_crps_agrees_with_all_pairs():
    samples, truth = posterior(6, shape=(4, 5, 6))
    pairs = (samples[:, None] - samples[None]).abs().double().sum((0, 1)) / (6 * 5)
    expected = ((samples - truth).abs().double().mean(0) - pairs / 2).mean()
    assert calibrate(samples, truth)["crps"] == pytest.approx(float(expected), rel=1e-5)


def test_error_follows_the_predicted_deviation_of_exact_samples():
    bins = calibrate(*posterior(16))["error_by_deviation"]
    assert len(bins) == 10
    assert sum(b["voxels"] for b in bins) == N
    for b in bins:  # 6000 voxels in a bin: an error of the deviation of about 1 %
        assert b["rmse"] == pytest.approx(b["deviation"], rel=0.06)
    assert bins[-1]["deviation"] > 2 * bins[0]["deviation"]


def test_chance_does_not_make_a_calibrated_ensemble_look_too_sure():
    """One deviation everywhere: bins by a noisy estimate of it must not pretend that it varies."""
    rng = generator(0, "flat")
    samples, truth = torch.randn((4, N), generator=rng), torch.randn(N, generator=rng)
    deviations = [b["deviation"] for b in calibrate(samples, truth)["error_by_deviation"]]
    assert max(deviations) / min(deviations) < 1.1


def test_voxels_on_which_all_agree_spread_over_all_ranks():
    found = calibrate(torch.zeros(4, 10), torch.zeros(10))
    assert found["ranks"] == pytest.approx([0.2] * 5)
    assert (found["crps"], found["spread_skill"]) == (0.0, None)


def test_a_mask_leaves_the_rest_out():
    samples, truth = posterior(5, shape=(8, 8, 8))
    mask = torch.zeros(8, 8, 8, dtype=torch.bool)
    mask[2:5] = True
    inside = calibrate(samples, torch.where(mask, truth, 1e6), mask)
    assert inside == calibrate(samples[:, 2:5], truth[2:5])
    assert inside["voxels"] == 192
    json.dumps(inside, allow_nan=False)


@pytest.mark.parametrize(
    ("samples", "mask"),
    [(torch.zeros(1, 4), None), (torch.zeros(3, 5), None), (torch.zeros(3, 4), torch.zeros(4, dtype=torch.bool))],
)
def test_what_cannot_be_judged_is_refused(samples, mask):
    with pytest.raises(ValueError, match="k >= 2|mask is empty"):
        calibrate(samples, torch.zeros(4), mask)
