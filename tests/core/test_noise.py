"""Noise models: what is drawn has the mean and the variance that the model says."""

from __future__ import annotations

import pytest
import torch

from pdframe.core.noise import PhotonNoise
from pdframe.core.seeds import generator

DRAWS = 200_000


@pytest.mark.parametrize(("photons", "electronic"), [(1000.0, 0.0), (1000.0, 30.0), (100.0, 0.0)])
def test_photon_counts_have_poissons_variance_and_that_of_the_electronics(photons: float, electronic: float):
    noise, clean = PhotonNoise(photons, electronic), torch.full((DRAWS,), 1.0, dtype=torch.float64)
    counts = photons * torch.exp(-noise.sample(clean, rng=generator(0)))
    mean = photons * float(torch.exp(torch.tensor(-1.0)))
    variance = mean + electronic**2
    assert float(counts.mean()) == pytest.approx(mean, abs=5 * (variance / DRAWS) ** 0.5)
    assert float(counts.var()) == pytest.approx(variance, rel=5 * (2 / DRAWS) ** 0.5 + 0.005)


def test_the_inverse_variance_of_a_log_count_is_that_of_the_delta_method_and_of_draws():
    noise, clean = PhotonNoise(1000.0, 30.0), torch.full((DRAWS,), 0.5, dtype=torch.float64)
    counts = 1000.0 * torch.exp(-clean[0])
    inverse = float(noise.inverse_variance(clean)[0])
    assert inverse == pytest.approx(float(counts**2 / (counts + 900.0)))
    assert float(noise.sample(clean, rng=generator(1)).var()) * inverse == pytest.approx(1.0, abs=0.03)


def test_a_starved_ray_reads_long_and_not_infinite():
    y = PhotonNoise(10.0).sample(torch.full((100,), 50.0), rng=generator(0))
    assert torch.equal(y, torch.full_like(y, float(torch.log(torch.tensor(20.0)))))
