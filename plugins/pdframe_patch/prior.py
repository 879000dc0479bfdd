"""`patch3d`: the global-aware 3D patch diffusion prior (arXiv 2512.18161) as a denoiser of whole volumes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pdframe.core.grid import Grid
from pdframe.core.memory import prior_bytes
from pdframe.core.prior import Prior, prior_cost, prior_on, unfamiliar
from pdframe.ct.network_prior import denoise_volumes, known_spacing, network_bytes, spacing_of, spacing_outside
from pdframe.hooks import Config
from pdframe_patch import tiling
from pdframe_patch.context import area_matrices, downsample, noise_gain
from pdframe_patch.network import PatchNetwork, conditions, coordinates
from pdframe_patch.weights import Card, load_weights


class PatchPriorConfig(Config):
    """The patch prior with the shipped weights, or with those of a file."""

    weights: Literal["shipped"] | Path = Field("shipped", description="'shipped', or a .safetensors checkpoint")
    tiling: Literal["random", "blended"] = Field(
        "random", description="one random non-overlapping partition a call (the paper), or overlapping patches blended"
    )
    batch: int = Field(0, ge=0, description="patches evaluated at once; 0 chooses by device")

    def build(self) -> PatchPrior:
        network, card = load_weights(self.weights)
        return PatchPrior(network, card, tiling=self.tiling, batch=self.batch)


@dataclass(frozen=True)
class PatchPrior(Prior):
    """E[x0 | x] of a volume from a network that sees one patch, the whole volume downsampled, and the position.

    Volumes are (batch, 1, z, y, x) in 1/mm, of any shape. Each call draws a tiling offset and the noise of the
    air around the volume from `rng`; without one it takes a fixed seed, so the call is a function of x and sigma.
    `spacing_mm` (z, y, x) is set by `prior_on`. Differentiable once in x, the context included; the gradient evaluates
    each patch a second time, so it needs the memory of one batch of patches.
    """

    network: PatchNetwork
    card: Card
    tiling: Literal["random", "blended"] = "random"
    batch: int = 0
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
        self.network.to(x.device)
        return denoise_volumes(x, sigma, self.card, self._volume, rng)

    def _volume(self, noisy: Tensor, sigma: float, rng: torch.Generator) -> Tensor:
        """One (z, y, x) volume in network units."""
        patch, shape, device = self.card.patch, tuple(noisy.shape), noisy.device
        border = torch.randn([n + 2 * patch for n in shape], generator=rng).to(device) * sigma + self.card.air
        padded = tiling.pad(noisy, patch, border)
        context = downsample(noisy, area_matrices(shape, patch, device))[None, None]
        context_sigma = torch.full((1,), sigma * noise_gain(shape, patch), device=device)
        steering = conditions(self.spacing_mm, shape)[None].to(device)

        def denoise_patches(patches: Tensor, starts: Tensor, shown: Tensor) -> Tensor:
            n = len(patches)
            return self.network(
                patches,
                torch.full((n,), sigma, device=device),
                shown.expand(n, -1, -1, -1, -1),
                context_sigma.expand(n),
                coordinates(starts.to(device), patch, shape),
                steering.expand(n, -1),
            )

        batch = self._batch_on(device)
        if self.tiling == "blended":
            return tiling.evaluate_blended(padded, context, tiling.overlapping(shape, patch), denoise_patches, batch)
        tiles = tiling.partition(shape, patch, tiling.random_offset(patch, rng))
        return tiling.evaluate(padded, context, tiles, denoise_patches, batch)

    def _batch_on(self, device: torch.device) -> int:
        """As many patches at once as keep the device busy, whatever the size of one."""
        return self.batch or max(1, (2**21 if device.type == "cuda" else 2**17) // self.card.patch**3)


@prior_on.register
def _(prior: PatchPrior, grid: Grid) -> Prior:
    return replace(prior, spacing_mm=spacing_of(grid))


@unfamiliar.register
def _(prior: PatchPrior, grid: Grid) -> str:
    return spacing_outside(prior.card, grid)


@prior_cost.register
def _(prior: PatchPrior, shape: tuple[int, ...]) -> dict[str, float]:
    """Patches of a typical partition (offset half a patch on every axis) times the network's cost of one patch."""
    patch, spatial = prior.card.patch, shape[-3:]
    if prior.tiling == "blended":
        tiles = tiling.overlapping(spatial, patch)
    else:
        tiles = tiling.partition(spatial, patch, (patch // 2,) * 3)
    patches = shape[0] * len(tiles.starts)
    return {"voxels": float(patches * patch**3), "flops": float(patches * prior.card.patch_flops)}


@prior_bytes.register
def _(prior: PatchPrior, shape: tuple[int, ...], *, device: torch.device | str = "cpu", gradient: bool = False) -> int:
    """Volumes are held with their padding and without; the network sees one batch of patches at once."""
    patch, batch = prior.card.patch, prior._batch_on(torch.device(device))
    volumes = math.prod(n + 2 * patch for n in shape[-3:]), math.prod(shape[-3:])
    return network_bytes(prior, prior.card, *volumes, pixels=batch * patch**3, device=device, gradient=gradient)
