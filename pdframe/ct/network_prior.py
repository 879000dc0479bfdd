"""What CT priors with a network share: units, air around a volume, the voxel size as a network is told it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pdframe.core.grid import Grid
from pdframe.core.memory import tensor_bytes, weights_bytes
from pdframe.core.prior import Prior
from pdframe.ct.checkpoint import NetworkCard
from pdframe.nn.denoiser import unet_bytes

#: Denoises one volume in network units: (noisy (z, y, x), sigma, rng) -> clean (z, y, x).
VolumeDenoiser = Callable[[Tensor, float, torch.Generator], Tensor]


def denoise_volumes(
    x: Tensor, sigma: Tensor, card: NetworkCard, denoise_volume: VolumeDenoiser, rng: torch.Generator | None
) -> Tensor:
    """`Prior.denoise` by a function that knows one volume in network units: (batch, 1, z, y, x) in 1/mm, and back.

    Without `rng` every item draws from the same fixed seed, so that the answer is a function of x and sigma.
    """
    if x.ndim != 5 or x.shape[1] != 1:
        raise ValueError(f"this prior takes (batch, 1, z, y, x) volumes: got {tuple(x.shape)}")
    noisy = (x.float() - card.mean) / card.scale
    levels = (sigma.float() / card.scale).expand(len(x)).tolist()
    clean = [
        denoise_volume(v[0], s, rng or torch.Generator().manual_seed(0)) for v, s in zip(noisy, levels, strict=True)
    ]
    return (torch.stack(clean)[:, None] * card.scale + card.mean).to(x.dtype)


def spacing_of(grid: Grid) -> tuple[float, float, float]:
    """Voxel spacing in mm (z, y, x) of a grid that a CT prior can work on; an error for any other grid."""
    if len(grid.shape) != 3:
        raise ValueError(f"this prior is for volumes with three axes: the grid has shape {grid.shape}")
    return tuple(grid.spacing)


def spacing_outside(card: NetworkCard, grid: Grid) -> str:
    """A line if the spacing in plane, or that along z over it, lies outside what the network was trained on; or ""."""
    z, *plane = grid.spacing
    (low, high), (flattest, tallest) = card.spacing_range_mm, card.spacing_ratio
    for width in plane:
        if not low * 0.999 <= width <= high * 1.001:
            return f"trained on voxels of {low:.3g} to {high:.3g} mm in plane, these have {width:.3g}"
        if not flattest * 0.999 <= z / width <= tallest * 1.001:
            return (
                f"trained on slices {flattest:.3g} to {tallest:.3g} times as far apart as pixels, these are "
                f"{z / width:.3g} times"
            )
    return ""


def known_spacing(spacing_mm: tuple[float, float, float] | None) -> tuple[float, float, float]:
    """The spacing, which a prior lacks until it is brought to a grid; an error that says so."""
    if spacing_mm is None:
        raise ValueError("this prior needs the voxel spacing: use prior_on(prior, grid), or pdframe.solve")
    return spacing_mm


def log_spacing(spacing_mm: Sequence[float]) -> Tensor:
    """(3,): log of the voxel spacing over 2 mm, z, y, x."""
    return (torch.tensor(spacing_mm, dtype=torch.float32) / 2).log()


def padded_shape(shape: Sequence[int], multiple: Sequence[int]) -> tuple[int, ...]:
    """The shape whose last axes are the next multiples of their numbers."""
    edges = [-(-n // m) * m for n, m in zip(shape[-len(multiple) :], multiple, strict=True)]
    return (*shape[: -len(multiple)], *edges)


def in_air(noisy: Tensor, multiple: Sequence[int], air: float, sigma: float, rng: torch.Generator) -> Tensor:
    """The volume with air of the same noise level behind it, until each of the last axes is a multiple of its number.

    Cut `[..., :y, :x]` to come back. Without a need for padding it is the volume itself.
    """
    shape = padded_shape(noisy.shape, multiple)
    if shape == tuple(noisy.shape):
        return noisy
    padded = (torch.randn(shape, generator=rng) * sigma + air).to(noisy)
    padded[tuple(slice(n) for n in noisy.shape)] = noisy
    return padded


def network_bytes(
    prior: Prior, card: NetworkCard, *volumes: int, pixels: int, device: torch.device | str, gradient: bool
) -> int:
    """Memory of one call: four volumes of each of these numbers of voxels, twice as many for a gradient; the network at
    work on so many pixels at once, and its weights."""
    held = int(4 * sum(map(tensor_bytes, volumes)) * (2 if gradient else 1))
    return held + unet_bytes(card.unet, pixels, device, gradient=gradient) + weights_bytes(prior)
