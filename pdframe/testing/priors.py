"""What every prior must do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pdframe.core.grid import Grid
from pdframe.core.prior import Prior, prior_cost, prior_on
from pdframe.core.schedule import geometric_sigmas
from pdframe.core.seeds import generator, normal
from pdframe.testing.checks import Check, leaves_global_randomness, relative_gap, require, rounding, run_checks


def check_prior(prior: Prior, grid: Grid, *, device: torch.device | str = "cpu") -> list[Check]:
    """Runs every claim below on a prior brought to `grid`. Choose a small grid: there are some 30 evaluations."""
    return run_checks(CLAIMS, _Subject(prior_on(prior, grid), grid, torch.device(device)))


@dataclass(frozen=True)
class _Subject:
    prior: Prior
    grid: Grid
    device: torch.device

    def noisy(self, sigma: float, batch: int = 1, seed: int = 0) -> Tensor:
        """A flat volume at the prior's mean with noise of level sigma."""
        x = torch.full((batch, 1, *self.grid.shape), self.prior.mean, device=self.device)
        return x + sigma * normal(x, generator(seed, "prior check"))

    def denoise(self, x: Tensor, sigma: float, rng: torch.Generator | None = None) -> Tensor:
        with torch.no_grad():
            return self.prior.denoise(x, x.new_full((x.shape[0],), sigma), rng=rng)

    def levels(self, count: int) -> tuple[float, ...]:
        lowest, highest = self.prior.sigma_range
        return geometric_sigmas(highest, lowest, count)


def fields_are_there(s: _Subject) -> str:
    lowest, highest = s.prior.sigma_range
    require(0 < lowest < highest, f"sigma_range must be (lowest, highest), both positive: got {s.prior.sigma_range}")
    require(s.prior.deviation > 0, f"deviation must be positive: got {s.prior.deviation}")
    require(isinstance(s.prior.mean, float), f"mean must be a float: got {s.prior.mean!r}")
    cost = prior_cost(s.prior, (2, 1, *s.grid.shape))
    require(set(cost) == {"voxels", "flops"} and min(cost.values()) >= 0, f"prior_cost must give voxels, flops: {cost}")
    return f"sigma {lowest:.2g} to {highest:.2g}, mean {s.prior.mean:.2g}, deviation {s.prior.deviation:.2g}"


def it_returns_the_shape_dtype_and_device_of_x(s: _Subject) -> str:
    for batch in (1, 2):
        x = s.noisy(s.prior.deviation, batch)
        got = s.denoise(x, s.prior.deviation)
        require(got.shape == x.shape, f"denoise must give {tuple(x.shape)}: got {tuple(got.shape)}")
        require(got.dtype == x.dtype and got.device == x.device, f"denoise gave {got.dtype} on {got.device}")
    return str(tuple(x.shape))


def it_is_finite_over_its_range_and_does_not_amplify(s: _Subject) -> str:
    for sigma in s.levels(5):
        x = s.noisy(sigma)
        got = s.denoise(x, sigma)
        require(got.isfinite().all(), f"denoise gave NaN or inf at sigma {sigma:.2g}")
        reach, allowed = float((got - s.prior.mean).abs().max()), 10 * (float((x - s.prior.mean).abs().max()))
        allowed += 100 * s.prior.deviation
        require(reach <= allowed, f"denoise at sigma {sigma:.2g} reaches {reach:.2g} from the mean: unit mistaken?")
    return "5 levels"


def it_becomes_the_identity_as_sigma_falls(s: _Subject) -> str:
    """For x in the prior's support: here the end of a short deterministic chain from noise."""
    levels = s.levels(6)
    x = s.noisy(levels[0], seed=1)
    for sigma, after in zip(levels, (*levels[1:], 0.0), strict=True):
        clean = s.denoise(x, sigma)
        x = clean + after / sigma * (x - clean)
    change = float((s.denoise(x, levels[-1]) - x).double().square().mean().sqrt())
    require(change <= 5 * levels[-1], f"at sigma {levels[-1]:.2g} a clean x changes by {change:.2g} (rms)")
    return f"rms change {change / levels[-1]:.2g} sigma"


def an_item_does_not_depend_on_its_batch(s: _Subject) -> str:
    low, high = s.prior.deviation / 4, s.prior.deviation
    a, b = s.noisy(low, seed=2), s.noisy(high, seed=3)
    with torch.no_grad():
        together = s.prior.denoise(torch.cat([a, b]), a.new_tensor([low, high]))
    for i, (x, sigma) in enumerate(((a, low), (b, high))):
        gap = relative_gap(together[i] - s.prior.mean, s.denoise(x, sigma)[0] - s.prior.mean)
        require(gap <= 1e-3, f"item {i} of 2 (own sigma each) differs by {gap:.1e} from the same alone")
    return "two items with their own sigma"


def an_equal_generator_gives_equal_bits(s: _Subject) -> str:
    sigma = s.prior.deviation
    x = s.noisy(sigma, seed=4)
    for make in (lambda: generator(9), lambda: None):
        first, again = s.denoise(x, sigma, make()), s.denoise(x, sigma, make())
        close = relative_gap(first, again) <= rounding(x.dtype)
        same = torch.equal(first, again) if s.device.type == "cpu" else close
        require(same, "two calls with equal x, sigma and rng differ")
    return "with a generator and without"


def the_input_is_left_as_it_was(s: _Subject) -> str:
    sigma = s.prior.deviation
    x = s.noisy(sigma, seed=5)
    before, level = x.clone(), x.new_full((1,), sigma)
    with torch.no_grad():
        s.prior.denoise(x, level)
    require(torch.equal(x, before), "denoise changed x")
    require(float(level) == float(x.new_full((1,), sigma)), "denoise changed sigma")
    return "x and sigma"


def global_randomness_is_left_alone(s: _Subject) -> str:
    sigma = s.prior.deviation
    x = s.noisy(sigma, seed=6)
    for rng in (generator(1), None):
        require(leaves_global_randomness(lambda rng=rng: s.denoise(x, sigma, rng)), "denoise moved a global stream")
    return "torch, numpy, random"


CLAIMS = (
    fields_are_there,
    it_returns_the_shape_dtype_and_device_of_x,
    it_is_finite_over_its_range_and_does_not_amplify,
    it_becomes_the_identity_as_sigma_falls,
    an_item_does_not_depend_on_its_batch,
    an_equal_generator_gives_equal_bits,
    the_input_is_left_as_it_was,
    global_randomness_is_left_alone,
)
