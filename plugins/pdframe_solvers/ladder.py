"""The falling noise levels that the diffusion solvers share; each sets the numbers, and their defaults, for itself."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from pdframe.core.prior import Prior
from pdframe.core.schedule import edm_sigmas
from pdframe.hooks import Config

Steps = Annotated[int, Field(ge=1, description="Noise levels on the way from sigma_max to 0.")]
SigmaMax = Annotated[float, Field(gt=0, description="First noise level, in prior deviations.")]
SigmaMin = Annotated[float, Field(gt=0, description="Last noise level above 0, in prior deviations.")]
Rho = Annotated[float, Field(gt=0, description="Curvature of the ladder (EDM): larger spends more steps at low noise.")]


class LadderConfig(Config):
    """Settings with a ladder among them."""

    steps: Steps
    sigma_max: SigmaMax
    sigma_min: SigmaMin
    rho: Rho = 7.0

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.sigma_min > self.sigma_max:
            raise ValueError(
                f"noise levels fall from sigma_max to sigma_min: got sigma_max = {self.sigma_max:g} below "
                f"sigma_min = {self.sigma_min:g}"
            )
        return self


def noise_levels(settings: LadderConfig, prior: Prior) -> tuple[float, ...]:
    """`steps` levels in the unit of x, falling, and 0 after them."""
    return (*falling_levels(settings, prior, settings.steps), 0.0)


def falling_levels(settings: LadderConfig, prior: Prior, count: int) -> tuple[float, ...]:
    """`count` levels in the unit of x, from sigma_max down to sigma_min (Karras et al. 2022, equation 5).

    In the settings they are multiples of the prior's deviation, so that they carry over between priors and units;
    here they are clipped to the range that the prior was made for.
    """
    lowest, highest = prior.sigma_range
    sigma_max = min(settings.sigma_max * prior.deviation, highest)
    sigma_min = min(max(settings.sigma_min * prior.deviation, lowest), sigma_max)
    return tuple(edm_sigmas(sigma_max, sigma_min, count, settings.rho))
