"""Where the patient is in a volume: couch, blankets and the air around left out, lungs left in."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, max_pool3d

from pdframe.core.grid import Grid
from pdframe.ct.resample import resample
from pdframe.ct.units import WATER

#: Half of water: between air and anything solid (-500 HU).
THRESHOLD = 0.5 * WATER
#: A couch is a shell thinner than twice this; the body is not.
SHELL_MM = 4.0
SOLID_MM = 40.0
WORKING_MM = 2.0


def body_mask(x: Tensor, grid: Grid) -> Tensor:
    """A boolean tensor shaped like x, (1, 1, z, y, x) attenuation in 1/mm: True in the body.

    What lies above -500 HU is peeled by `SHELL_MM` so that couch and body part; the piece that holds the most
    solid spot (mean over `SOLID_MM`) is kept and grown back; then in every axial slice whatever air cannot be
    reached from the slice's border (lungs, bowel) is filled. No randomness; all False if there is no such piece.
    Voxels finer than `WORKING_MM` are averaged to that size first: the outline is then good to half of it.
    """
    shape = [min(n, ceil(n * s / WORKING_MM)) for n, s in zip(grid.shape, grid.spacing, strict=True)]
    coarse = Grid(tuple(shape), tuple(e / n for e, n in zip(grid.extent, shape, strict=True)), grid.centre)
    mask = _mask(resample(x[:1, :1], grid, coarse), coarse)
    return (resample(mask.float(), coarse, grid, fill=None) > 0.5).to(x.device).expand_as(x)


def _mask(x: Tensor, grid: Grid) -> Tensor:
    solid = (x > THRESHOLD).float()
    radius = [max(1, round(SHELL_MM / s)) for s in grid.spacing]
    core = 1 - _grow(1 - solid, radius) > 0.5
    if not bool(core.any()):
        return torch.zeros_like(x, dtype=torch.bool)
    density = core.float()
    for axis, spacing in enumerate(grid.spacing):
        density = _pool(avg_pool3d, density, axis, min(round(SOLID_MM / spacing / 2), (grid.shape[axis] - 1) // 2))
    seed = torch.zeros(core.numel(), dtype=torch.bool)
    seed[int((density.cpu() * core.cpu()).flatten().argmax())] = True
    piece = flood(core[0, 0].cpu(), seed.reshape(core.shape)[0, 0], axes=(0, 1, 2))
    body = (_grow(piece[None, None].float(), radius) > 0.5) & (solid.cpu() > 0.5)
    return _fill_slices(body[0, 0])[None, None]


def flood(allowed: Tensor, seed: Tensor, axes: tuple[int, ...]) -> Tensor:
    """All that is connected with `seed` inside `allowed` by steps along the given axes; boolean tensors of one shape.

    Sweeps along each axis both ways until nothing changes: a handful of rounds for a body, without a labelling
    library.
    """
    reached = seed & allowed
    count = -1
    while count != (count := int(reached.sum())):
        for axis in axes:
            _sweep(reached.movedim(axis, 0), allowed.movedim(axis, 0))
    return reached


def _sweep(reached: Tensor, allowed: Tensor) -> None:
    """One pass forwards and one backwards along the first axis, in place."""
    n = len(reached)
    for i in range(1, n):
        reached[i] |= reached[i - 1] & allowed[i]
    for i in range(n - 2, -1, -1):
        reached[i] |= reached[i + 1] & allowed[i]


def _grow(mask: Tensor, radius: list[int]) -> Tensor:
    """Dilation of a 0/1 tensor by a box; what lies outside the volume counts as 0."""
    for axis, r in enumerate(radius):
        mask = _pool(max_pool3d, mask, axis, r)
    return mask


def _pool(pool: Callable[..., Tensor], x: Tensor, axis: int, radius: int) -> Tensor:
    """A pooling of stride 1 along one axis, so that a wide box costs three narrow ones."""
    width, padding = [1, 1, 1], [0, 0, 0]
    width[axis], padding[axis] = 2 * radius + 1, radius
    return pool(x, width, stride=1, padding=padding)


def _fill_slices(body: Tensor) -> Tensor:
    border = torch.zeros_like(body)
    border[:, [0, -1], :] = True
    border[:, :, [0, -1]] = True
    return ~flood(~body, border, axes=(1, 2))
