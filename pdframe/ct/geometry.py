"""Where source and panel stand for every view of a scan: one vector geometry in millimetres.

World vectors are (x, y, z); volumes and `Grid` tuples are (z, y, x). Every orbit below turns counter-clockwise,
seen from +z, about the line parallel to z through the isocentre. At angle 0 the source is at (0, -SOD, 0) from the
isocentre, panel columns run along u = +x and panel rows along v = +z.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from math import ceil, hypot, pi, sqrt

import numpy as np

from pdframe.core.grid import Grid


@dataclass(frozen=True, eq=False)
class Geometry:
    """Source and panel of every view. Arrays are float64 of shape (view, 3), in mm, world axes (x, y, z).

    source: position of the source; for a parallel beam the unit direction in which the rays travel.
    centre: position of the middle of the panel.
    u, v: step from one panel column (u) and one panel row (v) to the next.
    panel: (rows, columns). Pixel (row, column) is at
        centre + (column - (columns - 1) / 2) u + (row - (rows - 1) / 2) v.
    isocentre: point (x, y, z) about which the scan turns; only analytic inversion asks for it.

    Two geometries are equal if all their numbers are.
    """

    source: np.ndarray
    centre: np.ndarray
    u: np.ndarray
    v: np.ndarray
    panel: tuple[int, int]
    parallel: bool = False
    isocentre: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        shape = np.shape(self.source)
        for name in ("source", "centre", "u", "v"):
            value = np.array(getattr(self, name), dtype=np.float64, order="C")
            if value.ndim != 2 or value.shape != shape or value.shape[1] != 3 or not len(value):
                raise ValueError(f"{name} must have shape (view, 3), as source {shape} has: got {value.shape}")
            if not np.isfinite(value).all():
                raise ValueError(f"{name} must be finite, in mm: it holds nan or inf")
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "panel", tuple(int(n) for n in self.panel))
        object.__setattr__(self, "isocentre", tuple(float(c) for c in self.isocentre))
        if len(self.panel) != 2 or min(self.panel) < 1:
            raise ValueError(f"panel must be (rows, columns), both at least 1: got {self.panel}")
        if (np.abs(np.einsum("ij,ij->i", self.normal, self.to_panel)) < 1e-9).any():
            raise ValueError("the source lies in the plane of its panel, or u and v are parallel: check the vectors")

    @property
    def views(self) -> int:
        """Number of views."""
        return len(self.source)

    @property
    def normal(self) -> np.ndarray:
        """Unit normals u x v of the panels, (view, 3)."""
        normal = np.cross(self.u, self.v)
        return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-300)

    @property
    def to_panel(self) -> np.ndarray:
        """From source to panel centre, (view, 3); for a parallel beam the direction of the rays."""
        return self.source if self.parallel else self.centre - self.source

    @property
    def upright(self) -> bool:
        """Whether panel columns are parallel to the z axis of the volume in every view (and rays, if parallel, level).

        Then all rays to one panel column share their path in the (x, y) plane.
        """
        flat = np.abs(self.v[:, :2]).max() <= 1e-12 * np.abs(self.v).max()
        return bool(flat and (not self.parallel or np.abs(self.source[:, 2]).max() <= 1e-12))

    def sha256(self) -> str:
        """Hash of all the numbers; equal for equal geometries on every machine."""
        digest = hashlib.sha256(repr((self.panel, self.parallel, self.isocentre)).encode())
        for array in (self.source, self.centre, self.u, self.v):
            digest.update((array + 0.0).astype("<f8").tobytes())  # + 0.0 turns -0.0 into 0.0
        return digest.hexdigest()

    def __repr__(self) -> str:
        beam, (rows, columns) = "parallel" if self.parallel else "cone", self.panel
        return f"Geometry({beam} beam, {self.views} views, panel {rows} x {columns}, sha256 {self.sha256()[:12]})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Geometry) and self.sha256() == other.sha256()

    def __hash__(self) -> int:
        return hash(self.sha256())

    def subset(self, views: slice | list[int]) -> Geometry:
        """The same scan with some of its views only."""
        parts = (self.source[views], self.centre[views], self.u[views], self.v[views])
        return Geometry(*parts, self.panel, self.parallel, self.isocentre)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Where world points (n, 3) in mm fall on the panels: (view, n, 2), as fractional (row, column) indices.

        A point not in front of the source gives nan.
        """
        towards = np.broadcast_to(points, (self.views, *points.shape))
        origin = self.centre[:, None] if self.parallel else self.source[:, None]
        ray = np.broadcast_to(self.source[:, None], towards.shape) if self.parallel else towards - origin
        start = towards if self.parallel else np.broadcast_to(origin, towards.shape)
        normal = self.normal[:, None]
        depth = (ray * normal).sum(-1)
        reach = ((self.centre[:, None] - start) * normal).sum(-1)
        step = np.where(depth * np.sign((self.to_panel[:, None] * normal).sum(-1)) > 0, reach / depth, np.nan)
        offset = start + step[..., None] * ray - self.centre[:, None]
        basis = np.linalg.pinv(np.stack([self.v, self.u], axis=-1))  # (view, 2, 3)
        return np.einsum("vkc,vnc->vnk", basis, offset) + (np.array(self.panel) - 1) / 2


def corners(grid: Grid) -> np.ndarray:
    """The eight corners of a (z, y, x) grid's box, as world points (8, 3) in mm."""
    edges = [(c - e / 2, c + e / 2) for c, e in zip(grid.centre, grid.extent, strict=True)]
    return np.array([(x, y, z) for z, y, x in itertools.product(*edges)])


def covers(geometry: Geometry, grid: Grid) -> bool:
    """Whether the shadow of the whole volume falls on the panel in every view."""
    index = geometry.project(corners(grid))
    inside = (index >= -0.5) & (index <= np.array(geometry.panel) - 0.5)
    return bool(inside.all())


def check_clear(geometry: Geometry, grid: Grid) -> None:
    """Raise ValueError unless the volume lies wholly in front of the source (towards the panel) in every view."""
    if geometry.parallel:
        return
    normal = geometry.normal * np.sign((geometry.normal * geometry.to_panel).sum(-1, keepdims=True))
    depth = np.einsum("vnc,vc->vn", corners(grid)[None] - geometry.source[:, None], normal).min(axis=1)
    if depth.min() <= 0:
        view = int(depth.argmin())
        raise ValueError(
            f"the volume reaches {-depth[view]:.1f} mm behind the source of view {view} (or contains it): "
            "move the source further out, or make the volume smaller"
        )


def angles(views: int, *, start_rad: float = 0.0, arc_rad: float = 2 * pi) -> np.ndarray:
    """`views` angles start + i * arc / views, i = 0 ... views - 1, in rad: the end of the arc is not repeated."""
    if views < 1:
        raise ValueError(f"a scan needs at least one view: got {views}")
    return start_rad + arc_rad * np.arange(views) / views


@dataclass(frozen=True)
class Bench:
    """The parts of a turning scanner: distances and panel, all in mm.

    source_axis_mm: from source to rotation axis (SOD). source_panel_mm: from source to panel (SDD).
    panel: (rows, columns). pixel_mm: (row, column) pixel pitch. offset_mm: (row, column) shift of the panel along v, u.
    isocentre_mm: (z, y, x), as a grid's centre.
    """

    panel: tuple[int, int]
    pixel_mm: tuple[float, float]
    source_axis_mm: float = 1000.0
    source_panel_mm: float = 1500.0
    offset_mm: tuple[float, float] = (0.0, 0.0)
    isocentre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        if min(self.pixel_mm) <= 0:
            raise ValueError(f"pixel_mm must be positive (row, column): got {self.pixel_mm}")
        if not 0 < self.source_axis_mm <= self.source_panel_mm:
            raise ValueError(
                "source_axis_mm must be positive and at most source_panel_mm: "
                f"got {self.source_axis_mm} and {self.source_panel_mm}"
            )

    @property
    def fan_rad(self) -> float:
        """Half the fan angle that a panel shifted by `offset_mm` sees on its wider side."""
        return float(np.arctan((self.panel[1] * self.pixel_mm[1] / 2 + abs(self.offset_mm[1])) / self.source_panel_mm))


def orbit(bench: Bench, angle_rad: np.ndarray, height_mm: np.ndarray | float = 0.0) -> Geometry:
    """Cone-beam views at the given angles and source heights along z; the panel moves with the source."""
    away, u, v, isocentre = _frame(bench, angle_rad, height_mm)
    source = isocentre - bench.source_axis_mm * away
    centre = source + bench.source_panel_mm * away + bench.offset_mm[0] * v + bench.offset_mm[1] * u
    return Geometry(
        source, centre, bench.pixel_mm[1] * u, bench.pixel_mm[0] * v, bench.panel, False, bench.isocentre_mm[::-1]
    )


def circular(bench: Bench, views: int, *, start_rad: float = 0.0, arc_rad: float = 2 * pi) -> Geometry:
    """Equally spaced views over an arc: a full turn, or a limited angle."""
    return orbit(bench, angles(views, start_rad=start_rad, arc_rad=arc_rad))


def short_scan(bench: Bench, views: int, *, start_rad: float = 0.0) -> Geometry:
    """The shortest arc that sees every line in the fan at least once: pi plus the fan angle (Parker 1982)."""
    return circular(bench, views, start_rad=start_rad, arc_rad=pi + 2 * bench.fan_rad)


def helical(bench: Bench, views: int, *, pitch_mm: float, turns: float = 1.0, start_rad: float = 0.0) -> Geometry:
    """A helix of so many turns, its middle at the isocentre, rising `pitch_mm` a turn."""
    angle = angles(views, start_rad=start_rad, arc_rad=2 * pi * turns)
    return orbit(bench, angle, pitch_mm * ((angle - start_rad) / (2 * pi) - turns / 2))


def parallel(bench: Bench, views: int, *, start_rad: float = 0.0, arc_rad: float = pi) -> Geometry:
    """Level parallel rays; the distances of the bench only say where the panel stands."""
    away, u, v, isocentre = _frame(bench, angles(views, start_rad=start_rad, arc_rad=arc_rad), 0.0)
    behind = bench.source_panel_mm - bench.source_axis_mm
    centre = isocentre + behind * away + bench.offset_mm[0] * v + bench.offset_mm[1] * u
    return Geometry(
        away, centre, bench.pixel_mm[1] * u, bench.pixel_mm[0] * v, bench.panel, True, bench.isocentre_mm[::-1]
    )


def fan(bench: Bench, views: int, *, start_rad: float = 0.0, arc_rad: float = 2 * pi) -> Geometry:
    """A fan beam: the one-row cone in the plane of the orbit."""
    if bench.panel[0] != 1:
        raise ValueError(f"a fan beam has a panel of one row: got panel {bench.panel}")
    return circular(bench, views, start_rad=start_rad, arc_rad=arc_rad)


def covering_panel(bench: Bench, grid: Grid, *, parallel: bool = False, height_mm: float = 0.0) -> tuple[int, int]:
    """The smallest panel (rows, columns), even numbers, that sees the whole volume from every angle of an orbit.

    `bench.panel` is not read. height_mm: largest distance of the source from the plane of the isocentre (a helix).
    """
    away = corners(grid) - np.array(bench.isocentre_mm[::-1])
    radius = max(hypot(x, y) for x, y, _ in away)
    low, high = away[:, 2].min() - height_mm, away[:, 2].max() + height_mm
    if not parallel:
        if radius >= bench.source_axis_mm:
            raise ValueError(
                f"the volume reaches {radius:.0f} mm from the rotation axis and the source is "
                f"{bench.source_axis_mm:.0f} mm from it: move the source out, or the isocentre into the volume"
            )
        near = bench.source_panel_mm / (bench.source_axis_mm - radius)
        far = bench.source_panel_mm / (bench.source_axis_mm + radius)
        low, high = low * (near if low < 0 else far), high * (near if high > 0 else far)
        radius *= bench.source_panel_mm / sqrt(bench.source_axis_mm**2 - radius**2)
    rows = 2 * ceil(max(high - bench.offset_mm[0], bench.offset_mm[0] - low) / bench.pixel_mm[0] - 1e-9)
    columns = 2 * ceil((radius + abs(bench.offset_mm[1])) / bench.pixel_mm[1] - 1e-9)
    return rows, columns


def _frame(bench: Bench, angle_rad: np.ndarray, height_mm: np.ndarray | float) -> tuple[np.ndarray, ...]:
    """Unit vectors source -> axis, u and v, and the isocentre at each view's height; each (view, 3)."""
    cos, sin, zero = np.cos(angle_rad), np.sin(angle_rad), np.zeros_like(angle_rad)
    away = np.stack([-sin, cos, zero], axis=1)
    u = np.stack([cos, sin, zero], axis=1)
    v = np.broadcast_to(np.array([0.0, 0.0, 1.0]), u.shape)
    return away, u, v, np.array(bench.isocentre_mm[::-1]) + np.asarray(height_mm)[..., None] * v
