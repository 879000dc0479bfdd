"""Cutting a padded volume into patches and putting denoised patches back, for any shape of volume.

Geometry of one axis of n voxels with patches of edge P: the volume is padded by P on both sides, a grid of
stride P starts at an offset o in {0..P-1}, and ceil((n + P) / P) patches cover the volume for every offset. In
volume coordinates patch i begins at o - P + i P. Every voxel lies in exactly one patch of a partition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

#: Denoises a batch: (patches (n, 1, P, P, P), starts (n, 3) of each patch in volume voxels) -> like patches.
PatchDenoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Partition:
    """Patches of edge `patch` that begin at `starts` (n, 3) in the coordinates of a volume of `shape`.

    Patches that lie wholly in the padding are left out: what they would say is known (air).
    """

    shape: tuple[int, int, int]
    patch: int
    starts: Tensor


def partition(shape: Sequence[int], patch: int, offset: Sequence[int]) -> Partition:
    """The non-overlapping partition with that offset, each component in {0..patch-1}."""
    axes = []
    for n, o in zip(shape, offset, strict=True):
        begins = range(int(o) - patch, n, patch)
        axes.append([b for b in begins if b + patch > 0])
    starts = torch.tensor(list(product(*axes)), dtype=torch.long)
    return Partition(tuple(shape), patch, starts)


def overlapping(shape: Sequence[int], patch: int) -> Partition:
    """Patches at half a patch's stride, so that every voxel lies in eight of them."""
    half = patch // 2
    axes = [range(-half, n, half) for n in shape]
    return Partition(tuple(shape), patch, torch.tensor(list(product(*axes)), dtype=torch.long))


def random_offset(patch: int, rng: torch.Generator) -> tuple[int, int, int]:
    """Uniform in {0..patch-1}^3."""
    return tuple(torch.randint(patch, (3,), generator=rng).tolist())


def pad(volume: Tensor, patch: int, border: Tensor) -> Tensor:
    """`border` (z + 2P, y + 2P, x + 2P) with `volume` (z, y, x) written into its middle; `border` is kept as it is."""
    padded = border.clone()
    z, y, x = volume.shape
    padded[patch : patch + z, patch : patch + y, patch : patch + x] = volume
    return padded


def evaluate(padded: Tensor, tiles: Partition, denoiser: PatchDenoiser, batch: int) -> Tensor:
    """The whole-volume answer of one non-overlapping partition: (z, y, x) from a padded volume."""
    out = torch.empty_like(padded)
    for start, answer in _answers(padded, tiles, denoiser, batch):
        _box(out, start, tiles.patch).copy_(answer)
    return _interior(out, tiles).contiguous()


def evaluate_blended(padded: Tensor, tiles: Partition, denoiser: PatchDenoiser, batch: int) -> Tensor:
    """The same for overlapping patches, averaged with a triangular window (constant in sum at half stride)."""
    total, weight = torch.zeros_like(padded), torch.zeros_like(padded)
    ramp = 1 - (2 * (torch.arange(tiles.patch, dtype=torch.float64) + 0.5) / tiles.patch - 1).abs()
    window = (ramp[:, None, None] * ramp[:, None] * ramp).to(padded)
    for start, answer in _answers(padded, tiles, denoiser, batch):
        _box(total, start, tiles.patch).add_(window * answer)
        _box(weight, start, tiles.patch).add_(window)
    return _interior(total, tiles) / _interior(weight, tiles)


def _answers(padded: Tensor, tiles: Partition, denoiser: PatchDenoiser, batch: int) -> Iterator[tuple]:
    """(start in the padded volume, denoised patch), patch by patch, evaluated `batch` at a time."""
    for starts in tiles.starts.split(batch):
        corners = (starts + tiles.patch).tolist()
        patches = torch.stack([_box(padded, corner, tiles.patch) for corner in corners])[:, None]
        yield from zip(corners, denoiser(patches, starts)[:, 0], strict=True)


def _box(volume: Tensor, start: Sequence[int], patch: int) -> Tensor:
    z, y, x = start
    return volume[z : z + patch, y : y + patch, x : x + patch]


def _interior(padded: Tensor, tiles: Partition) -> Tensor:
    (z, y, x), p = tiles.shape, tiles.patch
    return padded[p : p + z, p : p + y, p : p + x]
