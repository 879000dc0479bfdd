"""Noise ladders: falling levels sigma_1 > ... > sigma_n > 0, in any unit. The last step, to 0, is the solver's."""

from __future__ import annotations

import math


def edm_sigmas(sigma_max: float, sigma_min: float, steps: int, rho: float = 7.0) -> tuple[float, ...]:
    """Levels equally spaced in sigma^(1/rho) (Karras et al. 2022, arXiv 2206.00364, equation 5)."""
    _check(sigma_max, sigma_min, steps)
    if steps == 1:
        return (float(sigma_max),)
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return tuple((top + k / (steps - 1) * (bottom - top)) ** rho for k in range(steps))


def geometric_sigmas(sigma_max: float, sigma_min: float, steps: int) -> tuple[float, ...]:
    """Levels with a constant ratio (Song and Ermon 2019, arXiv 1907.05600); the limit rho -> infinity of EDM's."""
    _check(sigma_max, sigma_min, steps)
    if steps == 1:
        return (float(sigma_max),)
    return tuple(sigma_max * (sigma_min / sigma_max) ** (k / (steps - 1)) for k in range(steps))


def ddpm_sigmas(steps: int, *, train_steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> tuple:
    """VP levels as VE ones: sigma = sqrt((1 - abar) / abar) for DDPM's linear betas (Ho et al. 2020).

    abar_t is the product of (1 - beta_s) up to t; `steps` of the `train_steps` times are taken, uniformly, the
    noisiest first. A VP sample x_t divided by sqrt(abar_t) is a VE sample at this sigma.
    """
    if not 1 <= steps <= train_steps:
        raise ValueError(f"steps must lie between 1 and train_steps = {train_steps}: got {steps}")
    log_abar, sigmas = 0.0, []
    for t in range(train_steps):
        beta = beta_min + (beta_max - beta_min) * t / max(train_steps - 1, 1)
        log_abar += math.log1p(-beta)
        sigmas.append(math.sqrt(math.expm1(-log_abar)))
    times = [-(-train_steps * k // steps) - 1 for k in range(steps, 0, -1)]  # rounded up, in whole numbers
    return tuple(sigmas[t] for t in times)


def _check(sigma_max: float, sigma_min: float, steps: int) -> None:
    if not 0 < sigma_min <= sigma_max < math.inf:
        raise ValueError(
            f"noise levels need 0 < sigma_min <= sigma_max: got sigma_min {sigma_min}, sigma_max {sigma_max}"
        )
    if steps < 1:
        raise ValueError(f"a ladder needs at least one step: got {steps}")
