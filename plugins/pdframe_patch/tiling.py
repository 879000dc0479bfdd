"""Cutting a padded volume into patches and putting denoised patches back, for any shape of volume.

Geometry of one axis of n voxels with patches of edge P: the volume is padded by P on both sides, a grid of
stride P starts at an offset o in {0..P-1}, and ceil((n + P) / P) patches cover the volume for every offset. In
volume coordinates patch i begins at o - P + i P. Every voxel lies in exactly one patch of a partition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Denoises a batch: (patches (n, 1, P, P, P), starts (n, 3) of each patch in volume voxels, context) -> like patches.
PatchDenoiser = Callable[[Tensor, Tensor, Tensor], Tensor]


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


def evaluate(padded: Tensor, context: Tensor, tiles: Partition, denoiser: PatchDenoiser, batch: int) -> Tensor:
    """The whole-volume answer of one non-overlapping partition: (z, y, x) from a padded volume.

    `context` is what every patch is shown beside itself. The answer is differentiable, once, in `padded` and in
    `context`, not in what else the denoiser holds; see `_Tiled` for the cost.
    """
    return _interior(_Tiled.apply(padded, context, _Work(tiles, denoiser, batch)), tiles).contiguous()


def evaluate_blended(padded: Tensor, context: Tensor, tiles: Partition, denoiser: PatchDenoiser, batch: int) -> Tensor:
    """The same for overlapping patches, averaged with a triangular window (constant in sum at half stride)."""
    ramp = 1 - (2 * (torch.arange(tiles.patch, dtype=torch.float64) + 0.5) / tiles.patch - 1).abs()
    window = (ramp[:, None, None] * ramp[:, None] * ramp).to(padded)
    weight = torch.zeros_like(padded)
    for corner in _corners(tiles.starts, tiles.patch):
        _box(weight, corner, tiles.patch).add_(window)
    total = _Tiled.apply(padded, context, _Work(tiles, denoiser, batch, window))
    return _interior(total, tiles) / _interior(weight, tiles)


@dataclass(frozen=True)
class _Work:
    """What is to be done to a padded volume; `window` weighs each answer before it is added in."""

    tiles: Partition
    denoiser: PatchDenoiser
    batch: int
    window: Tensor | None = None

    def weighed(self, patches: Tensor) -> Tensor:
        return patches if self.window is None else self.window * patches


class _Tiled(torch.autograd.Function):
    """The sum of all answers, each in its place of the padded volume.

    For the gradient each batch of patches is evaluated a second time, with autograd, when its turn comes: what a
    network keeps for its own gradient exists for one batch at a time, whatever the volume's size.
    """

    @staticmethod
    def forward(ctx, padded: Tensor, context: Tensor, work: _Work) -> Tensor:  # noqa: ANN001
        ctx.work = work
        ctx.save_for_backward(padded, context)
        padded, context = padded.detach(), context.detach()
        patch, total = work.tiles.patch, torch.zeros_like(padded)
        for starts in work.tiles.starts.split(work.batch):
            answers = work.weighed(work.denoiser(_cut(padded, starts, patch), starts, context))
            _add(total, answers, starts, patch)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, slope: Tensor):  # noqa: ANN001, ANN205
        work, (padded, context) = ctx.work, ctx.saved_tensors
        patch, of_padded, of_context = work.tiles.patch, torch.zeros_like(padded), torch.zeros_like(context)
        for starts in work.tiles.starts.split(work.batch):
            patches, shown = _cut(padded, starts, patch).requires_grad_(), context.detach().requires_grad_()
            with torch.enable_grad():
                answers = work.denoiser(patches, starts, shown)
            slopes = work.weighed(_cut(slope, starts, patch))
            of_patches, of_shown = torch.autograd.grad(answers, (patches, shown), slopes, materialize_grads=True)
            _add(of_padded, of_patches, starts, patch)
            of_context += of_shown
        return of_padded, of_context, None


def _cut(volume: Tensor, starts: Tensor, patch: int) -> Tensor:
    """(n, 1, P, P, P): the patches of a padded volume that begin at `starts`."""
    return torch.stack([_box(volume, corner, patch) for corner in _corners(starts, patch)])[:, None]


def _add(volume: Tensor, patches: Tensor, starts: Tensor, patch: int) -> None:
    for corner, values in zip(_corners(starts, patch), patches[:, 0], strict=True):
        _box(volume, corner, patch).add_(values)


def _corners(starts: Tensor, patch: int) -> list[list[int]]:
    """Where patches begin in the padded volume."""
    return (starts + patch).tolist()


def _box(volume: Tensor, start: Sequence[int], patch: int) -> Tensor:
    z, y, x = start
    return volume[z : z + patch, y : y + patch, x : x + patch]


def _interior(padded: Tensor, tiles: Partition) -> Tensor:
    (z, y, x), p = tiles.shape, tiles.patch
    return padded[p : p + z, p : p + y, p : p + x]
