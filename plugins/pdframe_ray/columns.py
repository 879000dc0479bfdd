"""Joseph's projection for upright panels on the CPU: the operator of `planes`, column by column.

With panel columns parallel to z, all rays to one panel column share their path in the (x, y) plane and the main axis
of it. `ColumnTable` holds that path, nine numbers for each column of each view; `kernels` runs along it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil, prod

import numpy as np
import torch
from torch import Tensor

from pdframe_ray.rays import MARGIN, IndexRays

#: Planes of the volume that one task of the back projection owns take up about so many bytes: half of an L2 cache.
BLOCK_BYTES = 2**19
#: Panel columns in one task of the forward projection.
BLOCK_COLUMNS = 64


@dataclass(frozen=True)
class ColumnTable:
    """Paths of all panel columns through a volume.

    entries: (view * column, 9) float64, the columns named in `kernels`. by_axis: indices of the panel columns that
    step along y and those that step along x. flipped: row 0 is the highest, the rows are to be read backwards.
    taps: the most rows of one panel column that reach one voxel.
    """

    entries: np.ndarray
    by_axis: tuple[np.ndarray, np.ndarray]
    flipped: bool
    taps: int


def table(rays: IndexRays, panel: tuple[int, int], shape: tuple[int, int, int]) -> ColumnTable | None:
    """The table, or None where the scan is not column-separable: a tilted panel, or rays steeper than 45 degrees."""
    if np.abs(rays.v[:, 1:]).max() > 0 or (rays.parallel and np.abs(rays.source[:, 0]).max() > 0):
        return None
    rise = rays.v[:, 0]
    if not ((rise > 0).all() or (rise < 0).all()):
        return None
    flipped = bool(rise[0] < 0)
    corner, rise = (rays.corner + (panel[0] - 1) * rays.v, -rise) if flipped else (rays.corner, rise)
    pixel = corner[:, None] + np.arange(panel[1])[:, None] * rays.u[:, None]
    source = np.broadcast_to(rays.source[:, None], pixel.shape)
    start, ray = (pixel, source) if rays.parallel else (source, pixel - source)
    steps_x = np.abs(ray[..., 2]) * (1 - MARGIN) > np.abs(ray[..., 1])
    fastest = np.where(steps_x, np.abs(ray[..., 2]), np.abs(ray[..., 1]))
    top = 0 if rays.parallel else (panel[0] - 1) * rise[:, None]
    if (np.maximum(np.abs(ray[..., 0]), np.abs(ray[..., 0] + top)) * (1 - 2 * MARGIN) > fastest).any():
        return None
    return _fill(
        rays, panel, shape, _Paths(start, ray, steps_x, np.broadcast_to(rise[:, None], fastest.shape), flipped)
    )


@dataclass(frozen=True)
class _Paths:
    start: np.ndarray
    ray: np.ndarray
    steps_x: np.ndarray
    rise: np.ndarray
    flipped: bool


def _fill(rays: IndexRays, panel: tuple[int, int], shape: tuple[int, int, int], paths: _Paths) -> ColumnTable:
    def along(a: np.ndarray) -> np.ndarray:
        return np.where(paths.steps_x, a[..., 2], a[..., 1])

    def across(a: np.ndarray) -> np.ndarray:
        return np.where(paths.steps_x, a[..., 1], a[..., 2])

    start, ray = paths.start, paths.ray
    spacing = np.broadcast_to(rays.spacing, ray.shape)
    slope, climb = across(ray) / along(ray), ray[..., 0] / along(ray)
    zero = np.zeros_like(slope)
    # A cone's rows fan out with the distance from the source, at 0; parallel rows keep theirs.
    step_j = zero if rays.parallel else paths.rise / along(ray)
    step = paths.rise if rays.parallel else -along(start) * step_j
    flat = along(spacing) ** 2 + (slope * across(spacing)) ** 2
    entries = np.stack(
        [
            across(start) - along(start) * slope,
            slope,
            start[..., 0] - along(start) * climb,
            climb,
            step,
            step_j,
            flat,
            climb * spacing[..., 0],
            step_j * spacing[..., 0],
        ],
        axis=-1,
    ).reshape(-1, 9)
    by_axis = tuple(np.flatnonzero(paths.steps_x.ravel() == flag) for flag in (False, True))
    planes = np.where(paths.steps_x, shape[2], shape[1]) - 1
    least = np.minimum(step, step + planes * step_j).min()
    return ColumnTable(np.ascontiguousarray(entries), by_axis, paths.flipped, ceil(2 / least))


def project(x: Tensor, tab: ColumnTable, data_shape: tuple[int, int, int]) -> Tensor:
    """A x: (item, z, y, x) -> (item, view, row, column), on the CPU."""
    from pdframe_ray import kernels

    views, rows, columns = data_shape
    y = x.new_empty(x.shape[0], *data_shape)
    upright = x.new_empty(views, columns, rows)
    into = upright.numpy().reshape(-1, rows)
    for volume, data in zip(x, y, strict=True):
        flat = volume.reshape(len(volume), -1).t().contiguous().numpy().reshape(-1)  # (y, x, z)
        tasks = [
            (kernels.project, flat, layout, tab.entries, part, into)
            for layout, which in zip(_layouts(volume.shape), tab.by_axis, strict=True)
            for part in _split(which, BLOCK_COLUMNS)
        ]
        _run(tasks)
        data.copy_((upright.flip(-1) if tab.flipped else upright).transpose(1, 2))
    return y


def back_project(y: Tensor, tab: ColumnTable, shape: tuple[int, int, int]) -> Tensor:
    """A' y, the exact transpose of `project`: (item, view, row, column) -> (item, z, y, x)."""
    from pdframe_ray import kernels

    pad, rows = _pad(tab), y.shape[2]
    x = y.new_empty(y.shape[0], *shape)
    data = y.new_zeros(len(tab.entries), rows + 2 * pad)
    for values, volume in zip(y, x, strict=True):
        upright = values.transpose(1, 2)
        upright = (upright.flip(-1) if tab.flipped else upright).contiguous().numpy().reshape(-1, rows)
        every = np.arange(len(tab.entries))
        _run((kernels.weigh, upright, tab.entries, part, pad, data.numpy()) for part in _split(every, BLOCK_COLUMNS))
        turned = y.new_zeros(shape[1] * shape[2], shape[0])
        flat = turned.numpy().reshape(-1)
        for layout, which in zip(_layouts(shape), tab.by_axis, strict=True):
            size = max(1, BLOCK_BYTES // (layout[1] * layout[2] * y.element_size()))
            _run(
                (
                    kernels.back_project,
                    data.numpy(),
                    pad,
                    layout,
                    tab.entries,
                    which,
                    (j, min(j + size, layout[0])),
                    flat,
                )
                for j in range(0, layout[0] if len(which) else 0, size)
            )
        volume.view(shape[0], -1).copy_(turned.t())
    return x


def scratch_bytes(
    tab: ColumnTable, data_shape: tuple[int, int, int], shape: tuple[int, int, int], itemsize: int
) -> int:
    """Upper bound on the scratch memory of `project` and `back_project`, whatever the batch: bytes."""
    views, rows, columns = data_shape
    return itemsize * (prod(shape) + views * columns * (3 * rows + 2 * _pad(tab)))


def _pad(tab: ColumnTable) -> int:
    """Zeros before and after each panel column, so that every row that could reach a voxel can be read."""
    return tab.taps + 3


def _layouts(shape: tuple[int, ...]) -> tuple[tuple[int, int, int, int, int], ...]:
    """(planes, across, height, plane stride, across stride) of a flat (y, x, z) volume: planes along y, along x."""
    z, y, x = shape
    return (y, x, z, x * z, z), (x, y, z, z, x * z)


def _split(which: np.ndarray, size: int) -> Iterable[np.ndarray]:
    return (which[first : first + size] for first in range(0, len(which), size))


def _run(tasks: Iterable[tuple[Callable, ...]]) -> None:
    """Do all tasks on as many threads as torch uses; no two write to one place."""
    tasks, threads = list(tasks), torch.get_num_threads()
    if threads == 1 or len(tasks) <= 1:
        for function, *arguments in tasks:
            function(*arguments)
        return
    with ThreadPoolExecutor(min(threads, len(tasks))) as pool:
        list(pool.map(lambda task: task[0](*task[1:]), tasks))


@functools.cache
def available() -> bool:
    """Whether numba is there and its loops compile on this machine: asked once, a few seconds the very first time."""
    try:
        from pdframe_ray import kernels

        none, nothing = np.zeros((1, 1), np.float32), np.zeros(0, np.int64)
        kernels.project(none[0], (0, 0, 0, 0, 0), np.zeros((1, 9)), nothing, none)
        kernels.weigh(none, np.zeros((1, 9)), nothing, 0, none)
        kernels.back_project(none, 0, (0, 0, 0, 0, 0), np.zeros((1, 9)), nothing, (0, 0), none[0])
    except Exception:  # a broken numba fails in many ways, and the torch form serves as well
        return False
    return True
