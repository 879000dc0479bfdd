"""The rays of a scan in the index coordinates of a volume, and the plane family that Joseph's method steps through.

In index coordinates voxel centres are integers and every ray is still a straight line. Each ray is sampled once per
plane of voxel centres of its main axis: the axis along which its index changes fastest (Joseph, IEEE TMI 1, 1982).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pdframe.core.grid import Grid
from pdframe.ct.geometry import Geometry

#: Relative margin by which an axis must beat the one before it (order y, x, z) to be the main axis, so that a ray at
#: exactly 45 degrees gets the same axis from every implementation, however it rounds.
MARGIN = 1e-9


@dataclass(frozen=True)
class IndexRays:
    """`Geometry` in index coordinates of a grid, axes (z, y, x). Arrays are float64 (view, 3).

    source: as in the geometry: a position, or the direction of parallel rays.
    corner: pixel (0, 0). u, v: steps to the next column and row. spacing: (3,), mm.
    """

    source: np.ndarray
    corner: np.ndarray
    u: np.ndarray
    v: np.ndarray
    spacing: np.ndarray
    parallel: bool

    @staticmethod
    def of(geometry: Geometry, grid: Grid) -> IndexRays:
        """The rays of `geometry` as the volume on `grid` sees them."""
        spacing = np.array(grid.spacing)
        first = np.array(grid.centre) - (np.array(grid.shape) - 1) / 2 * spacing
        rows, columns = geometry.panel
        corner = geometry.centre - (columns - 1) / 2 * geometry.u - (rows - 1) / 2 * geometry.v
        source = geometry.source[:, ::-1] - (0 if geometry.parallel else first)
        return IndexRays(
            source / spacing,
            (corner[:, ::-1] - first) / spacing,
            geometry.u[:, ::-1] / spacing,
            geometry.v[:, ::-1] / spacing,
            spacing,
            geometry.parallel,
        )
