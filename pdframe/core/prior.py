"""The contract of a prior (a denoiser), and the adapters that bring other parametrisations to it."""

from __future__ import annotations

import abc
import functools

import torch
from torch import Tensor

from pdframe.core.grid import Grid
from pdframe.core.interface import Interface


class Prior(Interface):
    """What is known of x before it is measured, as a denoiser: the mean of x0 given x = x0 + sigma * noise.

    Fields that a final class must supply:
        sigma_range: smallest and largest noise level that it was made for, in the unit of x. Levels outside
            are accepted and clamped by nobody: a solver asks within the range.
        mean, deviation: of one voxel under the prior, in the unit of x; a solver starts its noise from these.
    """

    sigma_range: tuple[float, float]
    mean: float
    deviation: float

    @abc.abstractmethod
    def denoise(self, x: Tensor, sigma: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        """E[x0 | x]: (batch, channel, *spatial), sigma (batch,) in the unit of x -> the shape of x.

        A prior that draws (a random tiling, say) draws from `rng`; without one it takes its fixed default, so
        that the result is a function of x and sigma alone.
        """


@functools.singledispatch
def prior_on(prior: Prior, grid: Grid) -> Prior:
    """The prior as it applies to a given grid. Default: the prior itself.

    A prior that depends on the voxel spacing registers its own; `solve` calls this once, before the first step.
    """
    return prior


@functools.singledispatch
def unfamiliar(prior: Prior, grid: Grid) -> str:
    """What about a grid the prior was not made for, in one line; "", the default, if nothing is known against it."""
    return ""


@functools.singledispatch
def prior_cost(prior: Prior, shape: tuple[int, ...]) -> dict[str, float]:
    """What one `denoise` of a (batch, channel, *spatial) tensor costs: {"voxels": ..., "flops": ...}.

    `voxels` counts voxel-evaluations of the network (more than the volume's where patches reach into the
    padding or overlap); `flops` counts multiplications and additions. A solve charges this, unless torch counts
    clearly more in a call; where a prior has registered nothing it counts the operations of each call itself, and the
    default here says 0.
    """
    voxels = 1.0
    for n in shape:
        voxels *= n
    return {"voxels": voxels, "flops": 0.0}


def denoised(prior: Prior, x: Tensor, sigma: float, *, tilings: int = 1, rng: torch.Generator | None = None) -> Tensor:
    """E[x0 | x] at one level for all items, averaged over `tilings` calls, each with a tiling of its own."""
    level = x.new_full((x.shape[0],), sigma)
    total = prior.denoise(x, level, rng=rng)
    for _ in range(tilings - 1):
        total = total + prior.denoise(x, level, rng=rng)
    return total / tilings


def score(prior: Prior, x: Tensor, sigma: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
    """Gradient of the log density of the noisy x, by Tweedie's formula: (E[x0 | x] - x) / sigma^2."""
    return (prior.denoise(x, sigma, rng=rng) - x) / per_item(sigma, x) ** 2


def per_item(values: Tensor, like: Tensor) -> Tensor:
    """(batch,) -> (batch, 1, 1, ...), to scale a batch item by item."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))
