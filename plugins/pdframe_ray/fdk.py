"""Filtered back projection for circular scans: FDK for a cone beam (Feldkamp, Davis, Kress, JOSA A 1, 1984), which is
fan-beam FBP in the plane of the source, and parallel-beam FBP.

With s, t the coordinates (mm) on the panel from the foot of the ray through the isocentre, D the source-panel and R
the source-axis distance, U the depth of a voxel below the source:

    f = sum over views of  dbeta (R / U)^2  [ w(beta, s)  D / sqrt(D^2 + s^2 + t^2)  y ] * h   at the voxel's shadow

h is the band-limited ramp, sampled in space (Kak, Slaney 1988, eq. 3.61), so that it has the right mean. w shares a
line seen twice between its two rays: 1/2 on a full turn, Parker's on a shorter arc, Wang's for an offset panel, Noo's
for both at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, log2, pi
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pdframe.core.grid import Grid
from pdframe.ct.geometry import Geometry

#: Bound on the memory of one chunk of voxels and views in the back projection, in bytes.
SCRATCH_BYTES = 64 * 2**20
#: A panel whose two sides differ by more than so many pixels counts as offset.
OFFSET_PIXELS = 1.0
#: Over so much of an arc's ends the weights of an offset panel rise and fall: 10 degrees (Noo et al. 2002).
FEATHER_RAD = pi / 18


@dataclass(frozen=True)
class Circle:
    """What FDK asks of a geometry. Arrays are float64.

    angle_rad: (view,), of the source about the axis. source_axis_mm, source_panel_mm: 0 for a parallel beam.
    s: (column,), t: (row,): panel coordinates in mm.
    """

    angle_rad: np.ndarray
    source_axis_mm: float
    source_panel_mm: float
    s: np.ndarray
    t: np.ndarray

    @property
    def fan_rad(self) -> np.ndarray:
        """Fan angle of every column, 0 for a parallel beam."""
        return np.arctan(self.s / self.source_panel_mm) if self.source_panel_mm else np.zeros_like(self.s)


def circle(geometry: Geometry, tolerance: float = 1e-6) -> Circle | None:
    """The circle that a scan runs on, or None if on none: a helix, tilted or turned panels, changing distances."""
    if not geometry.upright or np.abs(geometry.u[:, 2]).max() > tolerance * np.abs(geometry.u).max():
        return None
    isocentre, centre = np.array(geometry.isocentre), geometry.centre
    towards = geometry.source if geometry.parallel else isocentre - geometry.source
    radius = np.linalg.norm(towards, axis=1)
    along = towards / radius[:, None]
    width, height = np.linalg.norm(geometry.u, axis=1), geometry.v[:, 2]
    foot = centre - (isocentre if geometry.parallel else geometry.source)
    offset = np.stack([(foot * geometry.u).sum(1) / width, foot[:, 2]], axis=1)
    distance = (foot * along).sum(1)
    facing = np.abs((along * geometry.u).sum(1)).max() <= tolerance * width.max()
    constant = np.stack([width, height, *offset.T], axis=1)
    if not geometry.parallel:
        constant = np.concatenate([constant, np.stack([radius, distance], axis=1)], axis=1)
    steady = np.ptp(constant, axis=0).max() <= tolerance * np.abs(constant).max()
    if not (facing and steady and np.abs(along[:, 2]).max() <= tolerance):
        return None
    rows, columns = geometry.panel
    return Circle(
        np.arctan2(-along[:, 0], along[:, 1]),
        0.0 if geometry.parallel else float(radius[0]),
        0.0 if geometry.parallel else float(distance[0]),
        (np.arange(columns) - (columns - 1) / 2) * width[0] + offset[0, 0],
        (np.arange(rows) - (rows - 1) / 2) * height[0] + offset[0, 1],
    )


def fdk(geometry: Geometry, grid: Grid, y: Tensor, *, window: Literal["ramp", "hann"] = "ramp") -> Tensor:
    """Reconstruct y (batch, channel, view, row, column) on `grid`: (batch, channel, z, y, x), in 1/mm.

    window: "hann" tapers the ramp to zero at the Nyquist frequency: less noise, less resolution.
    Scratch memory is that of the filtered data and 64 MiB. ValueError if the scan is not a circle (see `circle`).
    """
    orbit = circle(geometry)
    if orbit is None:
        raise ValueError(
            "FDK needs a circular scan with upright panels that face the axis: this geometry is none; "
            "use an iterative method"
        )
    filtered = _filter(orbit, y.detach().flatten(0, 1), window)
    before, after = _margins(orbit)
    widened = replace(
        geometry,
        centre=geometry.centre + (after - before) / 2 * geometry.u,
        panel=(geometry.panel[0], filtered.shape[-1]),
    )
    return _back_project(widened, orbit, grid, filtered).unflatten(0, y.shape[:2])


def view_weights(angle_rad: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, float]:
    """What each view stands for: (dbeta per view, position in the arc or None for a full turn, length of the arc).

    A full turn is a set of angles with no gap much larger than the rest. On an arc each view stands for half the way to
    its neighbours; the first and the last stand for as much beyond them.
    """
    order = np.argsort(np.mod(angle_rad, 2 * pi), kind="stable")
    sorted_rad = np.mod(angle_rad, 2 * pi)[order]
    gaps = np.diff(sorted_rad, append=sorted_rad[0] + 2 * pi)
    share = np.empty_like(gaps)
    if len(gaps) < 3 or gaps.max() < 1.5 * np.median(gaps) + 1e-9:
        share[order] = (gaps + np.roll(gaps, 1)) / 2
        return share, None, 2 * pi
    last = int(gaps.argmax())
    order, gaps = np.roll(order, -last - 1), np.roll(gaps, -last - 1)
    inner = gaps[:-1]
    width = np.concatenate([inner[:1], (inner[1:] + inner[:-1]) / 2, inner[-1:]])
    place = np.empty_like(gaps)
    share[order], place[order] = width, np.concatenate([[0.0], np.cumsum(inner)]) + inner[0] / 2
    return share, place, float(width.sum())


def redundancy(orbit: Circle, place: np.ndarray | None, arc: float) -> np.ndarray:
    """w(beta, s), (view or 1, column): the weights of the two rays along one line add up to 1."""
    if place is None:
        return _wang(orbit)[None]
    if any(_margins(orbit)):
        return _noo(place[:, None], orbit, arc)
    return _parker(place[:, None], orbit.fan_rad[None], arc)


def _wang(orbit: Circle) -> np.ndarray:
    """Wang, Med. Phys. 29, 2002: on a full turn, a smooth step across the columns with a partner; 1/2 if all have."""
    low, high = orbit.s.min(), orbit.s.max()
    if not any(_margins(orbit)):
        return np.full_like(orbit.s, 0.5)
    overlap, side = max(min(-low, high), 1e-9), np.sign(low + high)
    angle, edge = orbit.fan_rad, np.arctan(overlap / orbit.source_panel_mm) if orbit.source_panel_mm else overlap
    angle = angle if orbit.source_panel_mm else orbit.s
    return 0.5 + 0.5 * np.sin(pi / 2 * np.clip(side * angle / edge, -1, 1))


def _margins(orbit: Circle) -> tuple[int, int]:
    """Columns that an offset panel lacks before its first and after its last, compared with its wider side.

    There the filtered data are not zero, although the data weigh nothing.
    """
    pixel = np.ptp(orbit.s) / max(len(orbit.s) - 1, 1) or 1.0
    lacking = (orbit.s[0] + orbit.s[-1]) / pixel
    if abs(lacking) <= OFFSET_PIXELS:
        return 0, 0
    return max(0, round(lacking)), max(0, round(-lacking))


def _parker(beta: np.ndarray, gamma: np.ndarray, arc: float) -> np.ndarray:
    """Parker, Med. Phys. 9, 1982, for any arc from pi up.

    The other ray along the line of (beta, gamma) is (beta + pi - 2 gamma, -gamma).
    On an arc too short to see every line, the lines seen once keep weight 1.
    """
    delta = (arc - pi) / 2
    rise, fall = np.maximum(delta + gamma, 1e-12), np.maximum(delta - gamma, 1e-12)
    first = np.sin(pi / 4 * np.clip(beta / rise, 0, 2)) ** 2
    last = np.sin(pi / 4 * np.clip((arc - beta) / fall, 0, 2)) ** 2
    return np.where(beta <= 2 * rise, first, np.where(beta >= pi + 2 * gamma, last, 1.0))


def _noo(beta: np.ndarray, orbit: Circle, arc: float) -> np.ndarray:
    """Noo, Defrise, Clackdoyle, Kudo, Phys. Med. Biol. 47, 2002: a ray's trust, over that of all rays along its line.

    Trust falls smoothly to (nearly) 0 at the ends of the arc and at the short side of an offset panel. A line beyond
    the short side is seen from one side only, in full turns: on an arc, only what lies nearer to the axis is right.
    """
    width, floor = min(FEATHER_RAD, arc / 4), 1e-3

    def trust(at: np.ndarray, panel: np.ndarray) -> np.ndarray:
        inside = np.clip(np.minimum(at, arc - at) / width, 0, 1)
        return np.where((at >= 0) & (at <= arc) & (panel > 0), np.sin(pi / 2 * inside) ** 2 * panel + floor, 0)

    here, there, gamma = _wang(orbit)[None], 1 - _wang(orbit)[None], orbit.fan_rad[None]
    own = trust(beta, np.maximum(here, 1e-12))  # it is on the panel, even at the very edge
    return own / (own + trust(beta + pi - 2 * gamma, there) + trust(beta - pi - 2 * gamma, there))


def ramp(size: int, pitch_mm: float, window: str) -> np.ndarray:
    """Spectrum (rfft order) of the band-limited ramp on `size` samples."""
    n = np.minimum(np.arange(size), size - np.arange(size))
    kernel = np.zeros(size)
    kernel[0] = 1 / (4 * pitch_mm**2)
    odd = n % 2 == 1
    kernel[odd] = -1 / (pi * n[odd] * pitch_mm) ** 2
    spectrum = np.fft.rfft(kernel).real * pitch_mm
    if window == "hann":
        spectrum *= 0.5 + 0.5 * np.cos(2 * pi * np.fft.rfftfreq(size))
    elif window != "ramp":
        raise ValueError(f'window must be "ramp" or "hann": got {window!r}')
    return spectrum


def _filter(orbit: Circle, y: Tensor, window: str) -> Tensor:
    """Weighted, ramp-filtered data times dbeta: (item, view, row, column), columns widened by `_margins`."""
    share, place, arc = view_weights(orbit.angle_rad)
    weight = share[:, None] * redundancy(orbit, place, arc)
    pitch, cosine = abs(orbit.s[-1] - orbit.s[0]) / max(len(orbit.s) - 1, 1), np.ones((len(orbit.t), len(orbit.s)))
    if orbit.source_panel_mm:
        pitch *= orbit.source_axis_mm / orbit.source_panel_mm
        slant = np.hypot(orbit.source_panel_mm, np.hypot(orbit.s, orbit.t[:, None]))
        cosine = orbit.source_panel_mm / slant
    before, after = _margins(orbit)
    width = before + len(orbit.s) + after
    size = 2 ** max(4, ceil(log2(2 * width)))
    spectrum = ramp(size, pitch or 1.0, window)
    weight, cosine, spectrum = (torch.from_numpy(a).to(y) for a in (weight, cosine, spectrum))
    weight = weight.expand(y.shape[1], -1)[:, None]
    out = y.new_empty(*y.shape[:3], width)
    many = max(1, SCRATCH_BYTES // (6 * y.element_size() * size * y.shape[0] * y.shape[2]))
    for first in range(0, y.shape[1], many):
        part = slice(first, first + many)
        rows = torch.fft.rfft(y[:, part] * (weight[part] * cosine), n=size) * spectrum
        out[:, part] = torch.fft.irfft(rows, n=size).roll(before, -1)[..., :width]
    return out


def _back_project(geometry: Geometry, orbit: Circle, grid: Grid, data: Tensor) -> Tensor:
    """Sum over views of the filtered data at each voxel's shadow, bilinear, times (R / U)^2: (item, z, y, x)."""
    items, views = data.shape[:2]
    x = data.new_zeros(items, *grid.shape)
    plane = grid.shape[1] * grid.shape[2] * data.element_size()
    many = max(1, min(views, 32, SCRATCH_BYTES // ((2 + 2 * items) * plane)))
    deep = max(1, SCRATCH_BYTES // ((2 + 2 * items) * plane * many))
    for first in range(0, views, many):
        part = slice(first, min(first + many, views))
        column, row, row_step, weight = (t.to(data) for t in _shadows(geometry, orbit, grid, part, data.device))
        images = data[:, part].transpose(0, 1)
        for low in range(0, grid.shape[0], deep):
            z = torch.arange(low, min(low + deep, grid.shape[0]), device=data.device).to(data)
            rows = torch.addcmul(row[:, None], z[:, None, None], row_step[:, None])
            points = torch.stack([column[:, None].expand_as(rows), rows], dim=-1).flatten(1, 2)
            values = torch.nn.functional.grid_sample(images, points, align_corners=False)
            values = values.unflatten(2, (len(z), grid.shape[1])) * weight[:, None, None]
            x[:, low : low + len(z)] += values.sum(dim=0)
    return x


def _shadows(
    geometry: Geometry, orbit: Circle, grid: Grid, part: slice, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the z columns of the volume fall on the panels of some views: float64 tensors (view, y, x).

    In the coordinates of grid_sample: panel column; panel row of voxel 0; its step per voxel; and (R / U)^2.
    """
    device = torch.device("cpu") if device.type == "mps" else device  # Metal has no float64
    source, centre, u, v = (
        torch.from_numpy(a[part].copy()).to(device)[:, None, None]
        for a in (geometry.source, geometry.centre, geometry.u, geometry.v)
    )
    z0, py, px = (
        c + (torch.arange(n, dtype=torch.float64, device=device) - (n - 1) / 2) * s
        for n, s, c in zip(grid.shape, grid.spacing, grid.centre, strict=True)
    )
    flat = torch.stack(torch.meshgrid(py, px, indexing="ij")[::-1], dim=-1)[None]  # (1, y, x, 2) as (x, y)
    if geometry.parallel:
        magnification = torch.ones(len(source), *flat.shape[1:3], dtype=torch.float64, device=device)
        across = ((flat - centre[..., :2]) * u[..., :2]).sum(-1)
        height, weight = z0[0] - centre[..., 2], magnification
    else:
        away = flat - source[..., :2]
        along = torch.stack([-u[..., 1], u[..., 0]], dim=-1)
        depth = (away * along).sum(-1) / u.norm(dim=-1)
        reach = ((centre - source)[..., :2] * along).sum(-1) / u.norm(dim=-1)
        magnification = reach / depth
        across = ((away * magnification[..., None] - (centre - source)[..., :2]) * u[..., :2]).sum(-1)
        height = (z0[0] - source[..., 2]) * magnification - (centre - source)[..., 2]
        weight = (orbit.source_axis_mm / depth) ** 2
    rows, columns = geometry.panel
    column = (across / (u**2).sum(-1) + columns / 2) * 2 / columns - 1
    row = (height / v[..., 2] + rows / 2) * 2 / rows - 1
    row_step = magnification * (grid.spacing[0] / v[..., 2]) * 2 / rows
    return column, row.expand_as(column), row_step.expand_as(column), weight
