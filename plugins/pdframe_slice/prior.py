"""`slice2d` and `blend3`: 2D diffusion priors as denoisers of whole volumes, slice by slice or by threes along z."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pdframe.core.grid import Grid
from pdframe.core.memory import prior_bytes
from pdframe.core.prior import Prior, prior_cost, prior_on, unfamiliar
from pdframe.ct.network_prior import (
    denoise_volumes,
    in_air,
    known_spacing,
    network_bytes,
    padded_shape,
    spacing_of,
    spacing_outside,
)
from pdframe.hooks import Config
from pdframe.nn.denoiser import UNetDenoiser, unet_flops
from pdframe_slice.groups import draw_groups, group_slices
from pdframe_slice.network import Card, conditions, load_weights


class Slice2DConfig(Config):
    """A 2D prior, applied to each slice along z alone: the prior of DDS and DiffusionMBIR."""

    weights: Literal["shipped"] | Path = Field("shipped", description="'shipped', or a .safetensors checkpoint")
    batch: int = Field(0, ge=0, description="slices evaluated at once; 0 chooses by device")

    def build(self) -> SlicePrior:
        return SlicePrior(*load_weights("slice2d", self.weights, 1), batch=self.batch)


class Blend3Config(Config):
    """A prior of three slices at once, grouped anew at every call: DiffusionBlend++."""

    weights: Literal["shipped"] | Path = Field("shipped", description="'shipped', or a .safetensors checkpoint")
    batch: int = Field(0, ge=0, description="triples evaluated at once; 0 chooses by device")
    strides: tuple[PositiveInt, ...] = Field(
        (1, 3), min_length=1, description="distances between the slices of a triple, one drawn at each call"
    )

    def build(self) -> SlicePrior:
        network, card = load_weights("blend3", self.weights, 3)
        if not set(self.strides) <= set(card.strides):
            raise ValueError(f"blend3 was trained at strides {card.strides}: strides {self.strides} are not among them")
        return SlicePrior(network, card, strides=self.strides, batch=self.batch)


@dataclass(frozen=True)
class SlicePrior(Prior):
    """E[x0 | x] of a volume from a network that sees one slice, or a few, as they lie along z.

    Volumes are (batch, 1, z, y, x) in 1/mm, with at least as many slices as the network sees. Each call draws the
    grouping, and the noise of the air that fills slices up to a multiple of the network's, from `rng`; without one it
    takes a fixed seed, so the call is a function of x and sigma. `spacing_mm` (z, y, x) is set by `prior_on`. The
    gradient evaluates each batch of slices a second time, so it needs the memory of one.
    """

    network: UNetDenoiser
    card: Card
    strides: tuple[int, ...] = (1,)
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

    def _batch_on(self, device: torch.device) -> int:
        return self.batch or (64 if device.type == "cuda" else 8)

    def _volume(self, noisy: Tensor, sigma: float, rng: torch.Generator) -> Tensor:
        """One (z, y, x) volume in network units."""
        groups, stride = draw_groups(len(noisy), self.card.slices, self.strides, rng)
        padded = in_air(noisy, (self.card.unet.multiple,) * 2, self.card.air, sigma, rng)
        steering = conditions(self.spacing_mm, stride).to(noisy.device)
        answers = []
        for members in groups.members.to(noisy.device).split(self._batch_on(noisy.device)):
            level = torch.full((len(members),), sigma, device=noisy.device)
            asked = (padded[members], level, steering.expand(len(members), -1))
            answers.append(
                checkpoint(self.network, *asked, use_reentrant=False, preserve_rng_state=False)
                if torch.is_grad_enabled() and noisy.requires_grad
                else self.network(*asked)
            )
        gives = groups.gives.flatten()
        order = groups.members.flatten()[gives].argsort()  # each slice is given once: this is where
        estimates = torch.cat(answers).flatten(0, 1)[gives.to(noisy.device)][order.to(noisy.device)]
        return estimates[:, : noisy.shape[1], : noisy.shape[2]]


@prior_on.register
def _(prior: SlicePrior, grid: Grid) -> Prior:
    return replace(prior, spacing_mm=spacing_of(grid))


@unfamiliar.register
def _(prior: SlicePrior, grid: Grid) -> str:
    return spacing_outside(prior.card, grid)


@prior_cost.register
def _(prior: SlicePrior, shape: tuple[int, ...]) -> dict[str, float]:
    """Groups of a typical call (the smallest stride, half a group's offset) times the network's cost of one group."""
    size, stride, (z, *plane) = prior.card.slices, min(prior.strides), shape[-3:]
    rows, columns = padded_shape(plane, (prior.card.unet.multiple,) * 2)
    groups = shape[0] * len(group_slices(z, size, stride, size * stride // 2).members)
    flops = unet_flops(prior.card.unet, (rows, columns))
    return {"voxels": float(groups * size * rows * columns), "flops": float(groups * flops)}


@prior_bytes.register
def _(prior: SlicePrior, shape: tuple[int, ...], *, device: torch.device | str = "cpu", gradient: bool = False) -> int:
    """The network sees one batch of slices at once."""
    plane = padded_shape(shape[-2:], (prior.card.unet.multiple,) * 2)
    pixels = prior._batch_on(torch.device(device)) * prod(plane)
    return network_bytes(prior, prior.card, prod(shape[-3:]), pixels=pixels, device=device, gradient=gradient)
