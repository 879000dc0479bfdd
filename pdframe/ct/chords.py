"""How long every ray of a scan runs inside a grid's box: the exact projection of a box of ones."""

from __future__ import annotations

import numpy as np

from pdframe.core.grid import Grid
from pdframe.ct.geometry import Geometry


def chord_mm(geometry: Geometry, grid: Grid, view: int) -> np.ndarray:
    """Length in mm of the part of each ray of one view that lies in the grid's box, (row, column); 0 beside it.

    A ray is the whole line through source and pixel centre, cut by the three pairs of faces (slab method, Kay and
    Kajiya 1986).
    """
    rows, columns = (np.arange(n) - (n - 1) / 2 for n in geometry.panel)
    pixel = geometry.centre[view] + rows[:, None, None] * geometry.v[view] + columns[None, :, None] * geometry.u[view]
    source = geometry.source[view]
    ray = np.broadcast_to(source, pixel.shape) if geometry.parallel else pixel - source
    half = np.array(grid.extent[::-1]) / 2
    from_centre = pixel - np.array(grid.centre[::-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        one, two = (-half - from_centre) / ray, (half - from_centre) / ray
    # A ray along a pair of faces is between them for all of its length, or never.
    along, between = ray == 0, np.abs(from_centre) < half
    enter = np.where(along, np.where(between, -np.inf, np.inf), np.minimum(one, two)).max(-1)
    leave = np.where(along, np.where(between, np.inf, -np.inf), np.maximum(one, two)).min(-1)
    return np.maximum(leave - enter, 0) * np.linalg.norm(ray, axis=-1)
