"""Total variation as a prior: the most likely volume under a Laplace law of slopes, as a denoiser.

    D(x, sigma) = argmin |z - x|^2 / (2 sigma^2) + sum over voxels of |grad z| / slope

by fast projected gradient steps on the dual (Beck and Teboulle, IEEE TIP 18(11), 2009). It is a proximal map, not a
mean E[x0 | x]: with `admm` it reaches the minimiser of `admm_tv`; samplers may use it, but no posterior follows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import Tensor

from pdframe.core.grid import Grid
from pdframe.core.memory import prior_bytes, tensor_bytes
from pdframe.core.prior import Prior, per_item, prior_on
from pdframe.hooks import Config
from pdframe_classic.gradient import gradient, gradient_adjoint


class TVPriorConfig(Config):
    """Settings of the prior `tv`."""

    slope: float = Field(
        2e-4, gt=0, description="Scale of the slopes in a volume, in units of x per unit of length (CT: 1/mm per mm)."
    )
    iterations: int = Field(60, ge=1, description="Steps on the dual problem in each call.")
    mean: float = Field(0.01, description="Of one voxel, in the unit of x.")
    deviation: float = Field(0.01, gt=0, description="Of one voxel, in the unit of x.")

    def build(self) -> TVPrior:
        return TVPrior(self)


@dataclass(frozen=True)
class TVPrior(Prior):
    """Isotropic total variation with the spacing of its grid (`prior_on`); spacing 1 without one."""

    settings: TVPriorConfig
    spacing: tuple[float, ...] | None = None

    @property
    def mean(self) -> float:
        return self.settings.mean

    @property
    def deviation(self) -> float:
        return self.settings.deviation

    @property
    def sigma_range(self) -> tuple[float, float]:
        return 1e-3 * self.deviation, 10 * self.deviation

    def denoise(self, x: Tensor, sigma: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        """The minimiser z; at z = x - (sigma^2 / slope) grad' p of the dual field p, |p| <= 1 in every voxel."""
        spacing = self.spacing or (1.0,) * (x.ndim - 2)
        weight = per_item(sigma**2 / self.settings.slope, x).to(x)
        step = 1 / (4 * sum(1 / h**2 for h in spacing))  # one over a bound of |grad|^2

        p = x.new_zeros(*x.shape[:2], len(spacing), *x.shape[2:])
        q, t = p, 1.0
        for _ in range(self.settings.iterations):
            z = x - weight * gradient_adjoint(q, spacing)
            raised = q + step * gradient(z, spacing) / weight.unsqueeze(2).clamp_min(1e-30)
            p_next = raised / raised.norm(dim=2, keepdim=True).clamp_min(1.0)
            t_next = (1 + math.sqrt(1 + 4 * t**2)) / 2
            q = p_next + (t - 1) / t_next * (p_next - p)
            p, t = p_next, t_next
        return x - weight * gradient_adjoint(p, spacing)


@prior_on.register
def _(prior: TVPrior, grid: Grid) -> TVPrior:
    return replace(prior, spacing=grid.spacing)


@prior_bytes.register
def _(prior: TVPrior, shape: tuple[int, ...], *, device: torch.device | str = "cpu", gradient: bool = False) -> int:
    """The dual field three times, its gradient and two more in the making; for a gradient, those of every iteration."""
    volumes = 6 * (len(shape) - 2) + 2
    return int(volumes * tensor_bytes(math.prod(shape)) * (prior.settings.iterations if gradient else 1))
