"""`volume3d`: a 3D diffusion prior that sees the whole volume at once, where it fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from pdframe.core.grid import Grid
from pdframe.core.memory import prior_bytes
from pdframe.core.prior import Prior, prior_cost, prior_on, unfamiliar
from pdframe.ct.checkpoint import load_checkpoint
from pdframe.ct.network_prior import (
    denoise_volumes,
    in_air,
    known_spacing,
    log_spacing,
    network_bytes,
    padded_shape,
    spacing_of,
    spacing_outside,
)
from pdframe.hooks import Config
from pdframe.nn.denoiser import UNetDenoiser, unet_flops
from pdframe_volume.network import Card


class VolumePriorConfig(Config):
    """The whole volume in one evaluation; memory and time grow with it. No weights are shipped."""

    weights: Path = Field(description="a .safetensors checkpoint, from `pdframe train` of task `volume3d`")
    most_voxels: int = Field(128**3, ge=1, description="largest volume that is accepted; raise it if memory allows")

    def build(self) -> VolumePrior:
        return VolumePrior(*load_checkpoint(self.weights, Card), most_voxels=self.most_voxels)


@dataclass(frozen=True)
class VolumePrior(Prior):
    """E[x0 | x] of a volume from a network that sees all of it.

    Volumes are (batch, 1, z, y, x) in 1/mm, one evaluated at a time. The noise of the air that fills them up to a
    multiple of the network's is drawn from `rng`; without one it takes a fixed seed, so the call is a function of x and
    sigma. `spacing_mm` (z, y, x) is set by `prior_on`.
    """

    network: UNetDenoiser
    card: Card
    most_voxels: int = 128**3
    spacing_mm: tuple[float, float, float] | None = None

    @property
    def sigma_range(self) -> tuple[float, float]:
        return self.card.sigma_range

    @property
    def mean(self) -> float:
        return self.card.mean

    @property
    def deviation(self) -> float:
        return self.card.deviation * self.card.scale

    def denoise(self, x: Tensor, sigma: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        known_spacing(self.spacing_mm)
        if prod(x.shape[2:]) > self.most_voxels:
            raise ValueError(
                f"volume3d evaluates a volume whole: {tuple(x.shape[2:])} exceeds most_voxels = {self.most_voxels}; "
                "raise that, or take a prior that works in parts (patch3d, slice2d)"
            )
        self.network.to(x.device)
        return denoise_volumes(x, sigma, self.card, self._volume, rng)

    def _volume(self, noisy: Tensor, sigma: float, rng: torch.Generator) -> Tensor:
        """One (z, y, x) volume in network units."""
        padded = in_air(noisy, (self.card.unet.multiple,) * 3, self.card.air, sigma, rng)
        steering = log_spacing(self.spacing_mm)[None].to(noisy.device)
        clean = self.network(padded[None, None], torch.full((1,), sigma, device=noisy.device), steering)[0, 0]
        return clean[tuple(slice(n) for n in noisy.shape)]


@prior_on.register
def _(prior: VolumePrior, grid: Grid) -> Prior:
    return replace(prior, spacing_mm=spacing_of(grid))


@unfamiliar.register
def _(prior: VolumePrior, grid: Grid) -> str:
    return spacing_outside(prior.card, grid)


@prior_cost.register
def _(prior: VolumePrior, shape: tuple[int, ...]) -> dict[str, float]:
    padded = padded_shape(shape[-3:], (prior.card.unet.multiple,) * 3)
    flops = unet_flops(prior.card.unet, padded)
    return {"voxels": float(shape[0] * prod(padded)), "flops": float(shape[0] * flops)}


@prior_bytes.register
def _(prior: VolumePrior, shape: tuple[int, ...], *, device: torch.device | str = "cpu", gradient: bool = False) -> int:
    """The network sees all of a volume at once."""
    pixels = prod(padded_shape(shape[-3:], (prior.card.unet.multiple,) * 3))
    return network_bytes(prior, prior.card, prod(shape[-3:]), pixels=pixels, device=device, gradient=gradient)
