"""FDK: absolute values, its limits (fan and parallel FBP), the weights that share lines seen twice."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from pdframe_ray import fdk
from pdframe_ray.config import ConeBeamConfig, FanBeamConfig, ParallelBeamConfig
from pdframe_ray.operator import ConeBeam

from pdframe import build
from pdframe.core.budget import Meter, counted_operator
from pdframe.core.grid import Grid
from pdframe.core.operator import pseudoinverse
from pdframe.core.problem import Problem
from pdframe.ct import geometry as ct
from pdframe.ct.geometry import Bench

BALL, MIDDLE, MU = 24.0, (4.0, -9.0, 12.0), 0.02  # mm; centre (z, y, x); 1/mm


def ball_data(geometry: ct.Geometry) -> torch.Tensor:
    """Exact line integrals of the ball, (1, 1, view, row, column), float32."""
    rows, cols = (np.arange(n) - (n - 1) / 2 for n in geometry.panel)
    u, v, centre, source = (a[:, None, None] for a in (geometry.u, geometry.v, geometry.centre, geometry.source))
    pixel = centre + cols[:, None] * u + rows[:, None, None] * v
    ray = np.broadcast_to(source, pixel.shape) if geometry.parallel else pixel - source
    ray = ray / np.linalg.norm(ray, axis=-1, keepdims=True)
    away = np.array(MIDDLE[::-1]) - pixel
    squared = (away**2).sum(-1) - (away * ray).sum(-1) ** 2
    return torch.from_numpy(2 * MU * np.sqrt(np.maximum(BALL**2 - squared, 0))).float()[None, None]


def distance(grid: Grid) -> np.ndarray:
    """Distance of every voxel from the middle of the ball, mm."""
    axes = [
        c + (np.arange(n) - (n - 1) / 2) * s - m
        for n, s, c, m in zip(grid.shape, grid.spacing, grid.centre, MIDDLE, strict=True)
    ]
    return np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij")))


def centroid_off(x: torch.Tensor, grid: Grid) -> float:
    """How far the middle of the ball in x is from that of the ball on the grid, mm, along the worst axis."""
    away = distance(grid)
    near = away < BALL + 8
    found = np.where(near, x[0, 0].double().numpy() / MU, 0)
    truth = np.where(near, np.clip((BALL - away) / 2 + 0.5, 0, 1), 0)
    axes = np.meshgrid(*(np.arange(n) * s for n, s in zip(grid.shape, grid.spacing, strict=True)), indexing="ij")
    return max(abs(float((a * found).sum() / found.sum() - (a * truth).sum() / truth.sum())) for a in axes)


def values(x: torch.Tensor, grid: Grid) -> tuple[float, float, float]:
    """Mean and largest deviation of a smoothed middle inside the ball, over MU; mean far outside, over MU."""
    away, x = distance(grid), x[0, 0].double().numpy() / MU
    inside = x[away < BALL - 4 * max(grid.spacing)]
    outside = x[(away > BALL + 4 * max(grid.spacing)) & (away < BALL + 25)]
    return float(inside.mean()), float(np.percentile(np.abs(inside - 1), 99)), float(outside.mean())


WHOLE = Grid((64, 64, 64), (2.0, 2.0, 2.0))
CUBE = Grid((36, 44, 44), (2.0, 2.0, 2.0))
SLABS = Grid((24, 40, 56), (3.0, 2.0, 1.5), (2.0, -3.0, 5.0))


def _offset_arc(degrees: float, offset: float) -> ConeBeamConfig:
    """The ball ends 39 mm from the axis; an offset of 30 mm leaves it whole on the panel, one of 60 mm cuts it, but
    all lines through it are seen from this side of the axis."""
    arc = {"orbit": "limited", "arc_degrees": degrees, "views": 360, "start_degrees": 180}
    panel = {"panel": (80, 52 if offset > 50 else 64), "pixel_mm": (3.2, 3.2), "panel_offset_mm": (0, offset)}
    return ConeBeamConfig(source_axis_mm=500, source_panel_mm=800, **arc, **panel)


CONE = {
    "circle": (ConeBeamConfig(views=360, source_axis_mm=500, source_panel_mm=800), WHOLE),
    "short scan": (ConeBeamConfig(views=360, source_axis_mm=500, source_panel_mm=800, orbit="short_scan"), CUBE),
    "long arc": (
        ConeBeamConfig(views=360, source_axis_mm=500, source_panel_mm=800, orbit="limited", arc_degrees=270),
        CUBE,
    ),
    "offset panel": (
        ConeBeamConfig(
            views=360,
            source_axis_mm=500,
            source_panel_mm=800,
            panel=(80, 52),
            pixel_mm=(3.2, 3.2),
            panel_offset_mm=(0, 60),
        ),
        CUBE,
    ),
    "offset the other way": (
        ConeBeamConfig(
            views=360,
            source_axis_mm=500,
            source_panel_mm=800,
            panel=(80, 52),
            pixel_mm=(3.2, 3.2),
            panel_offset_mm=(7, -60),
        ),
        CUBE,
    ),
    "offset panel on an arc": (_offset_arc(250.0, 30.0), CUBE),
    "offset panel, nearly a turn": (_offset_arc(345.0, -30.0), CUBE),
    "offset panel, most of a turn": (_offset_arc(300.0, 60.0), CUBE),
    "anisotropic voxels": (ConeBeamConfig(views=360, source_axis_mm=500, source_panel_mm=800), SLABS),
    "isocentre elsewhere": (
        ConeBeamConfig(views=360, source_axis_mm=500, source_panel_mm=800, isocentre_mm=(-5, 10, 20)),
        SLABS,
    ),
    "parallel": (ParallelBeamConfig(views=360), CUBE),
    "parallel full turn": (ParallelBeamConfig(views=360, arc_degrees=360), SLABS),
    "parallel offset": (ParallelBeamConfig(views=360, arc_degrees=360, panel=(64, 50), panel_offset_mm=(0, -30)), CUBE),
}


@pytest.mark.parametrize("name", CONE)
def test_absolute_value_in_a_ball(name: str) -> None:
    config, grid = CONE[name]
    operator = config.build(grid)
    x = pseudoinverse(operator, ball_data(operator.geometry))
    mean, spread, outside = values(x, grid)
    assert centroid_off(x, grid) < 0.35  # mm, of voxels of 1.5 to 3; at most 0.29 when it was written
    assert mean == pytest.approx(1.0, abs=0.01)
    assert spread < 0.01  # at most 0.0072 when it was written
    assert abs(outside) < 0.002  # at most 0.0007


def test_offset_panel_does_need_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    config, grid = CONE["offset panel"]
    operator = config.build(grid)
    s = fdk.circle(operator.geometry).s
    assert s.min() < -20 and s.max() > 2.5 * abs(s.min())
    assert np.any(np.abs(fdk._wang(fdk.circle(operator.geometry)) - 0.5) > 0.4)
    monkeypatch.setattr(fdk, "_wang", lambda orbit: np.full_like(orbit.s, 0.5))
    mean, spread, _ = values(pseudoinverse(operator, ball_data(operator.geometry)), grid)
    assert abs(mean - 1) > 0.01 or spread > 0.05


def test_partners_share_every_line() -> None:
    """Parker: w(beta, gamma) + w(beta + pi - 2 gamma, -gamma) = 1. Wang: w(s) + w(-s) = 1."""
    arc, gamma = math.pi + 0.7, np.linspace(-0.3, 0.3, 41)[None]
    beta = np.linspace(0, arc, 200)[:, None]
    partner = beta + math.pi - 2 * gamma
    both = fdk._parker(beta, gamma, arc) + fdk._parker(partner, -gamma, arc)
    np.testing.assert_allclose(both[partner <= arc], 1.0, atol=1e-12)
    alone = (partner > arc) & (beta - math.pi - 2 * gamma < 0)
    np.testing.assert_allclose(fdk._parker(beta, gamma, arc)[alone], 1.0, atol=1e-12)
    orbit = fdk.Circle(np.zeros(1), 500.0, 800.0, np.linspace(-20.0, 100.0, 61), np.zeros(1))
    weight = fdk._wang(orbit)
    np.testing.assert_allclose(np.interp(orbit.s, orbit.s, weight)[:21] + weight[:21][::-1], 1.0, atol=1e-12)
    assert (weight[21:] > 0.99).all()


@pytest.mark.parametrize("arc", [math.pi + 0.2, 4.0, 6.0])
def test_partners_share_every_line_of_an_offset_panel_on_an_arc(arc: float) -> None:
    """Noo: w(beta, gamma) and the weights of (beta + pi - 2 gamma, -gamma), (beta - pi - 2 gamma, -gamma) make 1."""
    s = np.linspace(-40.0, 90.0, 66)  # in steps of 2 mm, as -s is
    orbit = fdk.Circle(np.zeros(1), 500.0, 800.0, s, np.zeros(1))
    beta = (np.arange(300)[:, None] + 0.5) * arc / 300
    own = fdk._noo(beta, orbit, arc)
    assert own.shape == (300, 66) and own.min() >= 0 and own.max() <= 1
    total, twice = own.copy(), np.flatnonzero(np.abs(s) < 39)
    for turn in (math.pi, -math.pi):
        at = beta + turn - 2 * orbit.fan_rad
        for k in twice:
            seen = (at[:, k] > 0) & (at[:, k] < arc)
            partner = np.flatnonzero(np.isclose(s, -s[k]))[0]
            total[seen, k] += fdk._noo(at[seen, k : k + 1], orbit, arc)[:, partner]
    np.testing.assert_allclose(total[:, twice], 1.0, atol=1e-9)
    np.testing.assert_allclose(own[:, s > 39], 1.0)  # seen once


def test_far_source_is_parallel_beam() -> None:
    grid = Grid((16, 48, 48), (2.0, 2.0, 2.0))
    far = ConeBeamConfig(
        views=90, source_axis_mm=1e6, source_panel_mm=1.001e6, panel=(24, 72), pixel_mm=(2.002, 2.002)
    ).build(grid)
    level = ParallelBeamConfig(views=90, arc_degrees=360, panel=(24, 72), pixel_mm=(2.0, 2.0)).build(grid)
    cone, beam = (pseudoinverse(o, ball_data(o.geometry)) for o in (far, level))
    assert float((cone - beam).norm() / beam.norm()) < 2e-3


def test_middle_plane_of_a_cone_is_fan_beam() -> None:
    grid = Grid((9, 48, 48), (2.0, 2.0, 2.0))
    middle = Grid((1, 48, 48), (2.0, 2.0, 2.0))
    cone = ConeBeamConfig(views=60, panel=(15, 80), pixel_mm=(3.0, 3.0)).build(grid)
    fan = FanBeamConfig(views=60, columns=80, pixel_mm=3.0).build(middle)
    y = ball_data(cone.geometry)
    assert torch.equal(ball_data(fan.geometry), y[..., 7:8, :])
    torch.testing.assert_close(
        pseudoinverse(cone, y)[:, :, 4:5], pseudoinverse(fan, y[..., 7:8, :].contiguous()), rtol=0, atol=1e-6 * MU
    )


def test_fan_short_scan_agrees_with_full_turn() -> None:
    grid = Grid((1, 64, 64), (2.0, 2.0, 2.0))
    full = FanBeamConfig(views=360).build(grid)
    arc = math.degrees(math.pi + 2 * math.atan(full.geometry.panel[1] * 1.5 / 1500))
    short = FanBeamConfig(views=360, arc_degrees=arc, start_degrees=77).build(grid)
    a, b = (pseudoinverse(o, ball_data(o.geometry)) for o in (full, short))
    inside = torch.from_numpy(distance(grid) < BALL - 8)
    assert float((a - b)[0, 0][inside].abs().max()) < 0.01 * MU


def test_view_weights() -> None:
    share, place, arc = fdk.view_weights(ct.angles(8, start_rad=1.0))
    np.testing.assert_allclose(share, 2 * math.pi / 8)
    assert place is None and arc == pytest.approx(2 * math.pi)
    share, place, arc = fdk.view_weights(ct.angles(20, start_rad=5.0, arc_rad=3.5)[::-1])
    assert arc == pytest.approx(3.5) and share.sum() == pytest.approx(3.5)
    np.testing.assert_allclose(place, (np.arange(20)[::-1] + 0.5) * 3.5 / 20)
    uneven = np.array([0.0, 0.5, 1.5, 2.0, 3.0, 3.5, 4.5, 5.0])
    share, place, arc = fdk.view_weights(uneven)
    assert arc == pytest.approx(5.5) and share.sum() == pytest.approx(arc)
    np.testing.assert_allclose(share, [0.5, 0.75, 0.75, 0.75, 0.75, 0.75, 0.75, 0.5])
    np.testing.assert_allclose(place, uneven + 0.25)


def test_hann_window_is_smoother_and_keeps_the_mean() -> None:
    config, grid = CONE["circle"]
    operator = config.model_copy(update={"views": 120}).build(grid)
    rng = torch.Generator().manual_seed(0)
    y = ball_data(operator.geometry)
    y = y + 0.02 * torch.randn(y.shape, generator=rng)
    plain, smooth = (fdk.fdk(operator.geometry, grid, y, window=w) for w in ("ramp", "hann"))
    inside = torch.from_numpy(distance(grid) < BALL - 8)
    assert float(smooth[0, 0][inside].mean()) == pytest.approx(MU, rel=0.01)
    assert smooth[0, 0][inside].std() < 0.6 * plain[0, 0][inside].std()
    with pytest.raises(ValueError, match="window"):
        fdk.fdk(operator.geometry, grid, y, window="cosine")


def test_batch_dtype_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid((10, 24, 20), (2.0, 2.0, 2.0))
    operator = ConeBeamConfig(views=9).build(grid)
    y = torch.randn(2, 2, *operator.data_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = pseudoinverse(operator, y)
    assert x.shape == (2, 2, *grid.shape) and x.dtype == torch.float64
    torch.testing.assert_close(pseudoinverse(operator, y[1:, :1]), x[1:, :1])
    torch.testing.assert_close(pseudoinverse(operator, y.float()).double(), x, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(fdk, "SCRATCH_BYTES", 1)
    torch.testing.assert_close(pseudoinverse(operator, y), x)


def test_other_orbits_are_no_circle() -> None:
    bench = Bench((8, 10), (2.0, 2.0), 100.0, 160.0)
    grid = Grid((8, 8, 8), (2.0, 2.0, 2.0))
    assert fdk.circle(ct.helical(bench, 6, pitch_mm=10.0)) is None
    flat = ct.circular(bench, 6)
    turned = ct.Geometry(flat.source, flat.centre, flat.u + 0.2 * flat.normal, flat.v, flat.panel)
    assert fdk.circle(turned) is None
    with pytest.raises(ValueError, match="circular"):
        fdk.fdk(turned, grid, torch.zeros(1, 1, 6, 8, 10))
    helix = ConeBeam(ct.helical(bench, 6, pitch_mm=10.0), grid)
    truth = torch.zeros(1, 1, 8, 8, 8)
    truth[..., 2:6, 2:6, 2:6] = 1.0
    problem = Problem(helix, helix.forward(truth))
    x = pseudoinverse(helix, problem.y)
    assert float((helix.forward(x - truth)).norm() / problem.y.norm()) < 0.05
    meter = Meter(torch.device("cpu"))
    torch.testing.assert_close(pseudoinverse(counted_operator(helix, meter), problem.y), x)
    assert (meter.usage.forward_calls, meter.usage.adjoint_calls) == (20, 20)  # no FDK here: conjugate gradients
    with pytest.raises(ValueError, match="round a circle or an arc: use cgls"):
        build("solver", "fdk", operator=helix)


def test_sparse_views_take_well_under_two_seconds() -> None:
    operator = ConeBeamConfig(views=20).build(Grid((128,) * 3, (2.75,) * 3))
    y = torch.rand(1, 1, *operator.data_shape, generator=torch.Generator().manual_seed(0))
    start = time.process_time()
    pseudoinverse(operator, y)
    assert time.process_time() - start < 6  # seconds of CPU over all threads, on a busy machine
