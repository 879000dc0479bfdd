"""Ellipsoids of constant attenuation: their voxels, and their line integrals in closed form."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
import torch
from torch import Tensor

from pdframe.core.grid import Grid
from pdframe.ct.geometry import Geometry
from pdframe.ct.resample import axis_positions
from pdframe.ct.units import WATER

#: Samples per axis in a voxel that a surface may pass through.
_SUBSAMPLES = 5


@dataclass(frozen=True, eq=False)
class Ellipsoid:
    """One ellipsoid; what several cover adds up.

    value: attenuation, 1/mm. centre, semi_axes: (x, y, z), mm. rotation: 3x3, columns are the directions of the
    semi-axes in the world.
    """

    value: float
    centre: np.ndarray
    semi_axes: np.ndarray
    rotation: np.ndarray

    @property
    def to_unit_ball(self) -> np.ndarray:
        """3x3 matrix that turns world vectors into those of the ellipsoid's unit ball."""
        return self.rotation.T / self.semi_axes[:, None]


def line_integrals(ellipsoids: Sequence[Ellipsoid], geometry: Geometry) -> Tensor:
    """Exact integrals along the lines from source to pixel centres: (1, 1, view, row, column), float64, no unit.

    The chord of the line s + t d through the unit ball: t solves |s' + t d'|^2 = 1 in the ellipsoid's own coordinates,
    and its length is |d| times the distance of the two solutions. Lines do not end at source or panel.
    """
    out = np.zeros((geometry.views, *geometry.panel))
    row, column = (np.arange(n) - (n - 1) / 2 for n in geometry.panel)
    for view in range(geometry.views):
        panel = column[None, :, None] * geometry.u[view] + row[:, None, None] * geometry.v[view] + geometry.centre[view]
        start = panel if geometry.parallel else np.broadcast_to(geometry.source[view], panel.shape)
        ray = np.broadcast_to(geometry.source[view], panel.shape) if geometry.parallel else panel - start
        length = np.linalg.norm(ray, axis=-1)
        for e in ellipsoids:
            s, d = (start - e.centre) @ e.to_unit_ball.T, ray @ e.to_unit_ball.T
            a, b, c = (d * d).sum(-1), (s * d).sum(-1), (s * s).sum(-1) - 1
            out[view] += e.value * length * 2 * np.sqrt(np.maximum(b * b - a * c, 0.0)) / a
    return torch.from_numpy(out)[None, None]


def voxels(ellipsoids: Sequence[Ellipsoid], grid: Grid) -> Tensor:
    """Mean value of each voxel, (1, 1, z, y, x), float32: exact inside and outside, sampled 5^3 times at surfaces."""
    z, y, x = (axis_positions(grid, axis) for axis in range(3))
    points = torch.stack(torch.meshgrid(z, y, x, indexing="ij"), dim=-1).flip(-1)  # world order (x, y, z)
    volume = torch.zeros(grid.shape, dtype=torch.float64)
    half = torch.tensor(grid.spacing[::-1], dtype=torch.float64) / 2
    steps = (torch.arange(_SUBSAMPLES, dtype=torch.float64) + 0.5) * 2 / _SUBSAMPLES - 1
    offsets = torch.tensor(list(itertools.product(steps.tolist(), repeat=3)), dtype=torch.float64) * half
    for e in ellipsoids:
        matrix, centre = torch.from_numpy(e.to_unit_ball), torch.from_numpy(e.centre)
        radius = ((points - centre) @ matrix.T).norm(dim=-1)
        # No corner of a voxel is further from its middle than this, in the ellipsoid's own measure.
        reach = float((matrix.abs() @ half).norm())
        volume[radius <= 1 - reach] += e.value
        edge = (radius - 1).abs() < reach
        inside = torch.zeros(int(edge.sum()), dtype=torch.float64)
        for offset in offsets:
            inside += ((points[edge] + offset - centre) @ matrix.T).norm(dim=-1) <= 1
        volume[edge] += e.value * inside / len(offsets)
    return volume.float()[None, None]


#: Toft's high-contrast Shepp-Logan head in three dimensions (P. Toft, PhD thesis, DTU 1996; third axes as in
#: Kak and Slaney 1988, section 3.3): value; semi-axes and centre as shares of the half width; turn about z in degrees.
_HEAD = (
    (1.0, (0.69, 0.92, 0.81), (0.0, 0.0, 0.0), 0),
    (-0.8, (0.6624, 0.874, 0.78), (0.0, -0.0184, 0.0), 0),
    (-0.2, (0.11, 0.31, 0.22), (0.22, 0.0, 0.0), -18),
    (-0.2, (0.16, 0.41, 0.28), (-0.22, 0.0, 0.0), 18),
    (0.1, (0.21, 0.25, 0.41), (0.0, 0.35, -0.15), 0),
    (0.1, (0.046, 0.046, 0.05), (0.0, 0.1, 0.25), 0),
    (0.1, (0.046, 0.046, 0.05), (0.0, -0.1, 0.25), 0),
    (0.1, (0.046, 0.023, 0.05), (-0.08, -0.605, 0.0), 0),
    (0.1, (0.023, 0.023, 0.02), (0.0, -0.606, 0.0), 0),
    (0.1, (0.046, 0.023, 0.05), (0.06, -0.605, 0.0), 0),
)


def shepp_logan(half_widths_mm: Sequence[float]) -> list[Ellipsoid]:
    """The 3D Shepp-Logan head in a box of these half widths (x, y, z); the skull, 1.0, has twice water's attenuation.

    The nose is at -y: the front of a patient.
    """
    scale = np.array(half_widths_mm)
    turn_y = np.array([1.0, -1.0, 1.0])
    parts = []
    for value, axes, centre, degrees in _HEAD:
        angle = -degrees * pi / 180
        rotation = np.array([[cos(angle), -sin(angle), 0], [sin(angle), cos(angle), 0], [0, 0, 1.0]])
        parts.append(_stretched(2 * WATER * value, np.array(centre) * turn_y, np.array(axes), rotation, scale))
    return parts


def _stretched(
    value: float, centre: np.ndarray, axes: np.ndarray, rotation: np.ndarray, scale: np.ndarray
) -> Ellipsoid:
    """An ellipsoid of the unit cube brought to a box: stretching a turned ellipsoid turns it into another one."""
    semi_axes_vectors = scale[:, None] * rotation * axes
    directions, lengths, _ = np.linalg.svd(semi_axes_vectors)
    return Ellipsoid(value, centre * scale, lengths, directions)


def random_ellipsoids(half_widths_mm: Sequence[float], count: int, rng: torch.Generator) -> list[Ellipsoid]:
    """A water body with `count` ellipsoids of random place, size, direction and positive value inside it."""
    half = np.array(half_widths_mm)
    body = 0.85 * half
    parts = [Ellipsoid(WATER, np.zeros(3), body, np.eye(3))]
    for _ in range(count):
        draw = torch.rand(7, generator=rng, dtype=torch.float64).numpy()
        towards = torch.randn(3, generator=rng, dtype=torch.float64).numpy()
        centre = 0.7 * body * draw[0] ** (1 / 3) * towards / np.linalg.norm(towards)
        axes = body.min() * (0.04 + 0.2 * draw[1:4])
        rotation = np.linalg.qr(torch.randn(3, 3, generator=rng, dtype=torch.float64).numpy())[0]
        parts.append(Ellipsoid(WATER * (0.05 + 0.6 * draw[4]), centre, axes, rotation))
    return parts
