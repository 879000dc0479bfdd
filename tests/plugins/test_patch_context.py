"""The context: exact averages, exact noise."""

from __future__ import annotations

import pytest
import torch
from pdframe_patch.context import ContextNoise, area_matrices, downsample, noise_gain

from pdframe.core.seeds import generator


def test_integer_factor_is_the_block_mean():
    volume = torch.randn(16, 24, 8, generator=generator(0))
    blocks = torch.nn.functional.avg_pool3d(volume[None, None], (2, 3, 1))[0, 0]
    torch.testing.assert_close(downsample(volume, area_matrices(volume.shape, 8)), blocks)


@pytest.mark.parametrize("shape", [(13, 29, 8), (3, 5, 40)])
def test_fractional_factors_keep_the_mean_and_constants(shape):
    volume = torch.randn(shape, generator=generator(1), dtype=torch.float64)
    matrices = [m.double() for m in area_matrices(shape, 8)]
    torch.testing.assert_close(downsample(volume, matrices).mean(), volume.mean(), rtol=0, atol=1e-6)
    for matrix in matrices:
        torch.testing.assert_close(matrix.sum(1), torch.ones(8, dtype=torch.float64), rtol=0, atol=1e-6)


def test_noise_gain_is_measured_noise():
    shape = (21, 34, 16)
    noise = torch.randn(4000, *shape[:1], 1, 1, generator=generator(2))  # one axis suffices: the law is separable
    matrix = area_matrices(shape, 8)[0]
    measured = torch.einsum("pz,nzyx->npyx", matrix, noise).square().mean()
    assert measured.item() == pytest.approx(float(matrix.square().sum(1).mean()), rel=0.03)
    expected = 1.0
    for m in area_matrices(shape, 8):
        expected *= float(m.square().sum(1).mean())
    assert noise_gain(shape, 8) == pytest.approx(expected**0.5, rel=1e-6)


def test_cheap_draws_have_the_joint_law_of_the_full_draw():
    """Covariance of (patch noise, context noise) against D itself: nothing is approximated but by sampling."""
    shape, patch, start, size = (9, 7, 6), 4, (2, 3, 0), (4, 4, 3)
    count = 6000
    maker = ContextNoise(shape, patch)
    rng = generator(3)
    inside = torch.randn(count, *size, generator=rng)
    cheap = torch.stack([maker.draw(part, start, rng) for part in inside]).flatten(1)
    both = torch.cat([inside.flatten(1), cheap], 1).double()
    measured = both.T @ both / count

    identity = torch.eye(9 * 7 * 6, dtype=torch.float64).reshape(-1, *shape)
    d = downsample(identity, [m.double() for m in area_matrices(shape, patch)]).flatten(1).T
    pick = identity[:, 2:6, 3:7, 0:3].flatten(1).T
    exact = torch.cat([pick, d]) @ torch.cat([pick, d]).T
    # A sample covariance of unit-scale Gaussians has deviation sqrt((c_ii c_jj + c_ij^2) / count).
    scale = ((exact.diag()[:, None] * exact.diag() + exact**2) / count).sqrt()
    z = (measured - exact) / scale.clamp_min(1e-9)
    assert float(z.abs().max()) < 6.0
    assert float(z.std()) == pytest.approx(1.0, abs=0.1)
