"""What the core makes of a prior: its score, and the mean of several of its answers."""

from __future__ import annotations

import torch

from pdframe.core.prior import Prior, denoised, score
from pdframe.core.seeds import generator
from pdframe.testing.toys import gaussian_toy

TOY = gaussian_toy()


def test_the_score_is_the_gradient_of_the_log_density_of_the_noisy_volume():
    """Of N(m, C + sigma^2 I), for each item at its own level."""
    x = TOY.truth + torch.randn(2, 1, 4, 4, 4, generator=generator(0), dtype=torch.float64)
    levels = torch.tensor([0.3, 1.7], dtype=torch.float64)
    found = score(TOY.prior, x, levels)
    for item, sigma, got in zip(x, levels, found, strict=True):
        spread = TOY.prior.covariance + sigma**2 * torch.eye(64, dtype=torch.float64)
        want = -torch.linalg.solve(spread, item.flatten() - TOY.prior.mean)
        torch.testing.assert_close(got.flatten(), want)


def test_several_answers_are_averaged_each_with_the_generator():
    class Drawing(Prior):
        sigma_range, mean, deviation = (1e-3, 10.0), 0.0, 1.0

        def denoise(self, x, sigma, *, rng=None):
            return torch.randn(x.shape, generator=rng, dtype=x.dtype) + sigma[0]

    got = denoised(Drawing(), TOY.truth, 0.5, tilings=3, rng=generator(1))
    rng = generator(1)
    want = sum(torch.randn(TOY.truth.shape, generator=rng, dtype=torch.float64) + 0.5 for _ in range(3)) / 3
    torch.testing.assert_close(got, want)
