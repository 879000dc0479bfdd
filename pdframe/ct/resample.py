"""Volumes from one grid to another, in millimetres: exact cell averages when coarser, linear when finer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pdframe.core.grid import Grid


def axis_positions(grid: Grid, axis: int) -> Tensor:
    """Centres of the samples along one axis, in the unit of the spacing; float64, shape (n,)."""
    n = grid.shape[axis]
    steps = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
    return grid.centre[axis] + steps * grid.spacing[axis]


def resample(x: Tensor, grid_from: Grid, grid_to: Grid, fill: float | None = 0.0) -> Tensor:
    """x on another grid: (batch, channel, *grid_from.shape) -> (batch, channel, *grid_to.shape).

    Along each axis a new sample is the mean of the old cells under a box as wide as the coarser of the two
    spacings. That is the exact average of what a larger voxel covers (so nothing aliases and the integral is
    kept), and for a finer or a shifted grid it is linear interpolation; the two meet at equal spacing.

    fill: the value outside the old grid, in the unit of x (0 is air for attenuation); None repeats the edge.
    """
    if tuple(x.shape[2:]) != grid_from.shape:
        raise ValueError(f"x must have shape (batch, channel, {grid_from.shape}) of its grid: got {tuple(x.shape)}")
    if len(grid_from.shape) != len(grid_to.shape):
        raise ValueError(f"both grids need the same number of axes: got {grid_from.shape} and {grid_to.shape}")
    offset = 0.0 if fill is None else fill
    matrices = [axis_weights(grid_from, grid_to, axis, repeat_edge=fill is None) for axis in range(x.ndim - 2)]
    # The axis that shrinks most goes first, so that the others have less to do.
    order = sorted(range(x.ndim - 2), key=lambda axis: grid_to.shape[axis] / grid_from.shape[axis])
    out = x - offset
    for axis in order:
        out = _apply_along(out, matrices[axis].to(out), axis + 2)
    return out + offset


def axis_weights(grid_from: Grid, grid_to: Grid, axis: int, *, repeat_edge: bool = False) -> Tensor:
    """The matrix that resamples one axis, float64 (n_to, n_from); rows sum to 1 where the old grid covers them."""
    old, new = axis_positions(grid_from, axis), axis_positions(grid_to, axis)
    cell, width = grid_from.spacing[axis], max(grid_from.spacing[axis], grid_to.spacing[axis])
    low = torch.maximum(new[:, None] - width / 2, old[None, :] - cell / 2)
    high = torch.minimum(new[:, None] + width / 2, old[None, :] + cell / 2)
    weights = (high - low).clamp_min(0.0) / width
    if not repeat_edge:
        return weights
    covered = weights.sum(1, keepdim=True)
    nearest = torch.nn.functional.one_hot((new[:, None] - old[None, :]).abs().argmin(1), len(old)).double()
    return torch.where(covered > 1e-9, weights / covered.clamp_min(1e-9), nearest)


def overlap(grid: Grid, box: Grid, axis: int) -> Tensor:
    """Share of each cell of `grid` that lies inside the box of another grid, along one axis; float64, (n,)."""
    middle, half = axis_positions(grid, axis), grid.spacing[axis] / 2
    low, high = (box.centre[axis] + sign * box.extent[axis] / 2 for sign in (-1, 1))
    inside = (middle + half).clamp(max=high) - (middle - half).clamp(min=low)
    return (inside / grid.spacing[axis]).clamp(0, 1)


def _apply_along(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    if torch.equal(matrix, torch.eye(*matrix.shape).to(matrix)):
        return x
    return (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis).contiguous()


def fit_grid(grid: Grid, mask: Tensor, shape: Sequence[int], spacing_mm: Sequence[float]) -> Grid:
    """A grid of the given shape and spacing whose middle is the middle of what `mask` marks on `grid`.

    mask: boolean, (..., *grid.shape), such as `body_mask` gives. The new grid is in the same millimetre frame, so
    `resample(x, grid, new)` crops where it is smaller than the object and pads where it is larger.
    """
    marked = mask.reshape(-1, *grid.shape).any(0)
    if not bool(marked.any()):
        raise ValueError("the mask marks nothing: expected a body in the volume; is it in attenuation (1/mm)?")
    centre = []
    for axis in range(len(grid.shape)):
        others = [a for a in range(marked.ndim) if a != axis]
        hit = torch.nonzero(marked.sum(dim=others) > 0).flatten() if others else torch.nonzero(marked).flatten()
        middle = (float(hit[0]) + float(hit[-1])) / 2
        centre.append(grid.centre[axis] + (middle - (grid.shape[axis] - 1) / 2) * grid.spacing[axis])
    return Grid(tuple(shape), tuple(spacing_mm), tuple(centre), grid.unit)
