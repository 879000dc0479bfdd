"""The cone-beam operator: exact transpose, two forms of one map, analytic line integrals, the odd cases."""

from __future__ import annotations

import math
import pickle
import sys

import numpy as np
import pytest
import torch
from pdframe_ray import columns
from pdframe_ray.config import ConeBeamConfig, FanBeamConfig, ParallelBeamConfig
from pdframe_ray.operator import ConeBeam

from pdframe.core.grid import Grid
from pdframe.core.operator import adjoint_mismatch, apply, apply_adjoint
from pdframe.ct import geometry as ct
from pdframe.ct.geometry import Bench, Geometry

GRID = Grid((14, 17, 12), (2.0, 1.5, 2.5), (3.0, -4.0, 5.0))
BENCH = Bench((15, 20), (2.9, 3.1), 120.0, 200.0)


def tilted() -> Geometry:
    """A circular scan with every panel turned by 20 degrees about its own u axis and 10 about its normal."""
    flat = ct.circular(BENCH, 5, start_rad=0.2)
    a, b = math.radians(20), math.radians(10)
    v = 2.9 * (math.cos(a) * flat.v / 2.9 + math.sin(a) * flat.normal)
    u = flat.u * math.cos(b) + flat.v * math.sin(b)
    return Geometry(flat.source, flat.centre, u, v, flat.panel)


SCANS = {
    "circular": ct.circular(BENCH, 7, start_rad=0.1),
    "45 degrees": ct.circular(BENCH, 8),
    "one view": ct.circular(BENCH, 1, start_rad=1.0),
    "one row": ct.circular(Bench((1, 20), (2.9, 3.1), 120.0, 200.0), 4),
    "one pixel": ct.circular(Bench((1, 1), (2.9, 3.1), 120.0, 200.0), 4),
    "short scan": ct.short_scan(BENCH, 6),
    "helical": ct.helical(BENCH, 9, pitch_mm=15.0, turns=2.0),
    "offset": ct.circular(Bench((15, 20), (2.9, 3.1), 120.0, 200.0, (6.0, -17.0)), 6),
    "volume wider than panel": ct.circular(Bench((4, 5), (2.9, 3.1), 120.0, 200.0), 6),
    "fine pixels": ct.circular(Bench((41, 37), (0.7, 0.9), 120.0, 200.0), 3),
    "coarse pixels": ct.circular(Bench((5, 6), (11.0, 9.0), 120.0, 200.0), 5),
    "parallel": ct.parallel(BENCH, 6, start_rad=0.3),
    "parallel on the lattice": ct.parallel(Bench((14, 12), (2.0, 2.5)), 2),
}


def upside_down(geometry: Geometry) -> Geometry:
    return Geometry(geometry.source, geometry.centre, geometry.u, -geometry.v, geometry.panel, geometry.parallel)


SCANS["upside down"] = upside_down(SCANS["offset"])
EVERY = {**SCANS, "tilted": tilted()}


def noise(operator: ConeBeam, *, dtype: torch.dtype = torch.float64, items: tuple[int, int] = (2, 1)):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(*items, *operator.grid.shape, generator=rng, dtype=dtype)
    return x, torch.randn(*items, *operator.data_shape, generator=rng, dtype=dtype)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def dot_gap(operator: ConeBeam, x: torch.Tensor, y: torch.Tensor) -> float:
    ax, aty = operator.forward(x).double(), operator.adjoint(y).double()
    return float(((ax * y).sum() - (x * aty).sum()).abs() / (ax.norm() * y.double().norm()))


@pytest.mark.parametrize("form", ["auto", "planes"])
@pytest.mark.parametrize("name", EVERY)
def test_adjoint_is_the_transpose(name: str, form: str) -> None:
    operator = ConeBeam(EVERY[name], GRID, form)
    for dtype, bound in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        x, y = noise(operator, dtype=dtype)
        assert dot_gap(operator, x, y) < bound
        assert dot_gap(operator, x.abs(), y.abs()) < bound
    assert operator.forward(x).norm() > 0


@pytest.mark.parametrize("name", SCANS)
def test_column_form_is_the_plane_form(name: str) -> None:
    pytest.importorskip("numba", reason="numba is not installed")
    fast, plain = ConeBeam(SCANS[name], GRID), ConeBeam(SCANS[name], GRID, "planes")
    assert fast._table_for(torch.zeros(1)) is not None
    for dtype, bound in ((torch.float32, 5e-6), (torch.float64, 1e-12)):
        x, y = noise(fast, dtype=dtype)
        assert relative(fast.forward(x), plain.forward(x)) < bound
        assert relative(fast.adjoint(y), plain.adjoint(y)) < bound


def test_the_loops_are_given_no_two_arrays_that_overlap(monkeypatch) -> None:
    """They are compiled on that promise: at the edge of the volume what became of a broken one hung on the CPU."""
    pytest.importorskip("numba", reason="numba is not installed")
    from pdframe_ray import kernels

    calls = []

    def spread(*arguments: object) -> None:
        low, high = arguments[-2:]
        assert len(low) == len(high) and not np.shares_memory(low, high)
        calls.append(len(low))

    monkeypatch.setattr(kernels, "_spread", spread)
    monkeypatch.setattr(kernels, "_spread_pair", spread)
    monkeypatch.setattr(kernels, "back_project", kernels.back_project.py_func)
    operator = ConeBeam(SCANS["circular"], GRID)
    operator.adjoint(noise(operator)[1])
    assert calls


def test_forms_agree_in_float32_at_the_size_of_a_scan() -> None:
    """White data show rounding of positions most; it must not grow with the number of voxels."""
    pytest.importorskip("numba", reason="numba is not installed")
    fast = ConeBeamConfig(views=2, start_degrees=20.0).build(Grid((128,) * 3, (2.75,) * 3))
    plain = ConeBeam(fast.geometry, fast.grid, "planes")
    x, y = noise(fast, dtype=torch.float32, items=(1, 1))
    exact_x, exact_y = fast.forward(x.double()), fast.adjoint(y.double())
    for got, exact in ((fast.forward(x), exact_x), (fast.adjoint(y), exact_y)):
        assert relative(got, exact) < 5e-7
    for got, want in ((plain.forward(x), fast.forward(x)), (plain.adjoint(y), fast.adjoint(y))):
        assert relative(got, want) < 5e-6


def test_tilted_panel_and_steep_rays_take_the_plane_form() -> None:
    assert ConeBeam(tilted(), GRID)._table is None
    steep = Bench((40, 8), (5.0, 3.0), 60.0, 100.0)
    assert ConeBeam(ct.circular(steep, 3), GRID)._table is None
    assert adjoint_mismatch(ConeBeam(ct.circular(steep, 3), GRID), rng=torch.Generator().manual_seed(1)) < 1e-6


def test_wide_fan_has_both_main_axes_in_one_view() -> None:
    wide = Bench((6, 90), (2.0, 3.0), 60.0, 90.0)
    grid = Grid((8, 24, 24), (2.0, 2.0, 2.0))
    fast, plain = ConeBeam(ct.circular(wide, 5), grid), ConeBeam(ct.circular(wide, 5), grid, "planes")
    assert all(len(which) for which in fast._table.by_axis)
    x, _ = noise(fast)
    assert relative(fast.forward(x), plain.forward(x)) < 1e-12


def test_matrix_of_a_tiny_scan() -> None:
    """Column by column: A e_i against A' rows, so every weight of one form is a weight of the other's transpose."""
    grid = Grid((3, 4, 3), (2.0, 1.5, 2.5))
    operator = ConeBeam(ct.circular(Bench((4, 5), (2.9, 3.1), 50.0, 80.0), 3, start_rad=0.4), grid)
    basis = torch.eye(grid.size, dtype=torch.float64).reshape(-1, 1, *grid.shape)
    rays = math.prod(operator.data_shape)
    cobasis = torch.eye(rays, dtype=torch.float64).reshape(-1, 1, *operator.data_shape)
    matrix = operator.forward(basis).reshape(grid.size, rays)
    transpose = operator.adjoint(cobasis).reshape(rays, grid.size)
    torch.testing.assert_close(matrix, transpose.T, rtol=0, atol=1e-13)
    assert (matrix >= 0).all() and matrix.max() > 1.5


@pytest.mark.parametrize("form", ["auto", "planes"])
def test_same_bits_on_one_and_two_threads(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "BLOCK_BYTES", 1)  # many tasks, in any order
    monkeypatch.setattr(columns, "BLOCK_COLUMNS", 3)
    operator = ConeBeam(SCANS["45 degrees"], GRID, form)
    x, y = noise(operator, dtype=torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = operator.forward(x), operator.adjoint(y)
        torch.set_num_threads(2)
        two = operator.forward(x), operator.adjoint(y)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


@pytest.mark.parametrize("form", ["auto", "planes"])
def test_batch_and_channel_ride_along(form: str) -> None:
    operator = ConeBeam(SCANS["helical"], GRID, form)
    x, y = noise(operator, items=(2, 3))
    ax, aty = operator.forward(x), operator.adjoint(y)
    assert ax.shape == (2, 3, *operator.data_shape) and aty.shape == (2, 3, *GRID.shape)
    for b, c in ((0, 0), (1, 2)):
        one = slice(b, b + 1), slice(c, c + 1)
        torch.testing.assert_close(operator.forward(x[one]), ax[one], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(operator.adjoint(y[one]), aty[one], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["auto", "planes"])
def test_non_contiguous_input(form: str) -> None:
    operator = ConeBeam(SCANS["circular"], GRID, form)
    x, y = noise(operator)
    ragged_x = x.transpose(2, 4).contiguous().transpose(2, 4)
    ragged_y = y.repeat_interleave(2, dim=4)[..., ::2]
    assert not ragged_x.is_contiguous() and not ragged_y.is_contiguous()
    assert torch.equal(operator.forward(ragged_x), operator.forward(x))
    assert torch.equal(operator.adjoint(ragged_y), operator.adjoint(y))
    assert torch.equal(
        operator.adjoint(torch.ones(1, 1, 1, 1, 1).expand(y.shape)), operator.adjoint(torch.ones(y.shape))
    )


def test_gradients_of_first_and_second_order() -> None:
    grid = Grid((3, 4, 3), (2.0, 1.5, 2.5))
    operator = ConeBeam(ct.circular(Bench((3, 4), (2.9, 3.1), 50.0, 80.0), 2, start_rad=0.4), grid)
    x, y = noise(operator, items=(1, 1))
    for function, value in ((apply, x), (apply_adjoint, y)):
        value.requires_grad_()
        assert torch.autograd.gradcheck(lambda v, f=function: f(operator, v) ** 2, (value,))
        assert torch.autograd.gradgradcheck(lambda v, f=function: f(operator, v) ** 2, (value,))


def line_integrals(geometry: Geometry, middle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared distance of every ray from `middle`, and of nothing else: (view, row, column) twice (mm^2, ones)."""
    rows, cols = (np.arange(n) - (n - 1) / 2 for n in geometry.panel)
    u, v, centre, source = (a[:, None, None] for a in (geometry.u, geometry.v, geometry.centre, geometry.source))
    pixel = centre + cols[:, None] * u + rows[:, None, None] * v
    ray = np.broadcast_to(source, pixel.shape) if geometry.parallel else pixel - source
    ray = ray / np.linalg.norm(ray, axis=-1, keepdims=True)
    away = middle - pixel
    return (away**2).sum(-1) - (away * ray).sum(-1) ** 2


def phantom(grid: Grid, value, *, fine: int) -> torch.Tensor:
    """value(x, y, z) averaged over fine^3 points of every voxel."""
    total = np.zeros(grid.shape)
    shifts = (np.arange(fine) - (fine - 1) / 2) / fine
    axes = [c + (np.arange(n) - (n - 1) / 2) * s for n, s, c in zip(grid.shape, grid.spacing, grid.centre, strict=True)]
    for dz in shifts:
        for dy in shifts:
            for dx in shifts:
                z, y, x = (a + d * s for a, d, s in zip(axes, (dz, dy, dx), grid.spacing, strict=True))
                total += value(x, y[:, None], z[:, None, None])
    return torch.from_numpy(total / fine**3).float()[None, None]


BALL, SIGMA, MIDDLE = 58.0, 17.0, np.array([22.0, -14.0, 9.0])


def gaussian(x, y, z):
    return np.exp(-((x - MIDDLE[0]) ** 2 + (y - MIDDLE[1]) ** 2 + (z - MIDDLE[2]) ** 2) / (2 * SIGMA**2))


def ball(x, y, z):
    return ((x - MIDDLE[0]) ** 2 + (y - MIDDLE[1]) ** 2 + (z - MIDDLE[2]) ** 2 <= BALL**2).astype(float)


def scan(n: int, form: str) -> ConeBeam:
    """20 views of n^3 voxels in a 200 mm cube."""
    h = 200.0 / n
    return ConeBeam(ct.circular(Bench((3 * n // 2,) * 2, (1.5 * h,) * 2), 20), Grid((n,) * 3, (h,) * 3), form)


def gaussian_error(operator: ConeBeam) -> float:
    """Relative L2 error against the analytic integrals."""
    squared = line_integrals(operator.geometry, MIDDLE)
    truth = torch.from_numpy(SIGMA * math.sqrt(2 * math.pi) * np.exp(-squared / (2 * SIGMA**2)))[None, None]
    return relative(operator.forward(phantom(operator.grid, gaussian, fine=1)), truth)


def errors(n: int, form: str) -> tuple[float, float]:
    """The same of the ball, and of the Gaussian."""
    operator = scan(n, form)
    squared = line_integrals(operator.geometry, MIDDLE)
    truth = torch.from_numpy(2 * np.sqrt(np.maximum(BALL**2 - squared, 0)))[None, None]
    return relative(operator.forward(phantom(operator.grid, ball, fine=5)), truth), gaussian_error(operator)


def test_analytic_line_integrals() -> None:
    """The errors of a right Joseph projector on these phantoms, as measured on six independent ones."""
    coarse, fine = errors(64, "auto"), errors(128, "auto")
    assert coarse == pytest.approx((2.26e-2, 2.44e-3), rel=0.1)
    assert fine == pytest.approx((1.133e-2, 7.30e-4), rel=0.1)
    assert errors(64, "planes") == pytest.approx(coarse, rel=1e-3)
    assert gaussian_error(scan(128, "planes")) == pytest.approx(fine[1], rel=1e-3)
    assert gaussian_error(scan(256, "auto")) == pytest.approx(2.06e-4, rel=0.1)


@pytest.mark.parametrize("name", [n for n in EVERY if n not in ("volume wider than panel", "coarse pixels")])
def test_gaussian_in_every_geometry(name: str) -> None:
    """Scale and place are right in every geometry, on anisotropic voxels off the isocentre."""
    grid = Grid((56, 68, 48), (0.5, 0.375, 0.625), (3.0, -4.0, 5.0))
    middle, sigma = np.array([6.0, -5.0, 2.0]), 3.0
    x = phantom(
        grid,
        lambda x, y, z: np.exp(-((x - middle[0]) ** 2 + (y - middle[1]) ** 2 + (z - middle[2]) ** 2) / (2 * sigma**2)),
        fine=1,
    )
    truth = sigma * math.sqrt(2 * math.pi) * np.exp(-line_integrals(EVERY[name], middle) / (2 * sigma**2))
    assert relative(ConeBeam(EVERY[name], grid).forward(x), torch.from_numpy(truth)[None, None]) < 8e-3


def test_source_in_or_behind_the_volume_is_refused() -> None:
    inside = Bench((4, 4), (1.0, 1.0), 10.0, 50.0)
    with pytest.raises(ValueError, match="behind the source of view"):
        ConeBeam(ct.circular(inside, 3), GRID)
    with pytest.raises(ValueError, match="rotation axis"):
        ConeBeamConfig(source_axis_mm=15.0, source_panel_mm=50.0).build(GRID)


def test_wrong_shapes_and_types_are_refused() -> None:
    operator = ConeBeam(SCANS["circular"], GRID)
    with pytest.raises(ValueError, match=r"\(batch, channel, 14, 17, 12\)"):
        operator.forward(torch.zeros(1, 1, 12, 17, 14))
    with pytest.raises(TypeError, match="float32 or float64"):
        operator.adjoint(torch.zeros(1, 1, *operator.data_shape, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"axes \(z, y, x\)"):
        ConeBeam(SCANS["circular"], Grid((8, 8), (1.0, 1.0)))


def test_a_call_that_would_lose_a_gradient_is_refused() -> None:
    operator = ConeBeam(SCANS["circular"], GRID)
    x = torch.ones(1, 1, *GRID.shape, requires_grad=True)
    with pytest.raises(ValueError, match="call pdframe.apply or pdframe.apply_adjoint"):
        operator.forward(x)
    with torch.no_grad():
        assert not operator.forward(x).requires_grad


def test_falls_back_to_torch_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = ConeBeam(SCANS["circular"], GRID)
    x, _ = noise(operator)
    want = operator.forward(x)
    columns.available.cache_clear()
    monkeypatch.setitem(sys.modules, "pdframe_ray.kernels", None)
    monkeypatch.delattr("pdframe_ray.kernels", raising=False)
    try:
        assert not columns.available()
        assert relative(operator.forward(x), want) < 1e-12
    finally:
        columns.available.cache_clear()


def test_pickles_small_and_whole() -> None:
    operator = ConeBeamConfig(views=20).build(Grid((128,) * 3, (2.75,) * 3))
    operator.forward(torch.zeros(1, 1, 128, 128, 128))
    packed = pickle.dumps(operator)
    assert len(packed) < 10_000
    again = pickle.loads(packed)  # noqa: S301 - our own bytes
    assert again == operator and again.geometry.sha256() == operator.geometry.sha256()


@pytest.mark.parametrize("config", [ConeBeamConfig(views=8), ParallelBeamConfig(views=8)])
def test_covering_panel_sees_the_whole_volume_and_no_more(config) -> None:
    grid = Grid((20, 24, 28), (2.0, 1.5, 1.0), (4.0, 0.0, -3.0))
    operator = config.build(grid)
    assert ct.covers(operator.geometry, grid)
    rows, cols = operator.geometry.panel
    smaller = config.model_copy(update={"panel": (rows // 2, cols)}).build(grid)
    assert not ct.covers(smaller.geometry, grid)


def test_configs() -> None:
    grid = Grid((128,) * 3, (2.75,) * 3)
    chest = ConeBeamConfig(views=20, panel=(192, 192)).build(grid)
    assert chest.data_shape == (20, 192, 192) and chest.views == 20 and ct.covers(chest.geometry, grid)
    assert np.linalg.norm(chest.geometry.u[0]) == pytest.approx(4.125)
    np.testing.assert_allclose(chest.geometry.source[0], (0, -1000, 0), atol=1e-9)
    with pytest.raises(ValueError, match="arc_degrees"):
        ConeBeamConfig(orbit="limited").build(grid)
    with pytest.raises(ValueError, match="pitch_mm"):
        ConeBeamConfig(pitch_mm=3.0).build(grid)
    helix = ConeBeamConfig(orbit="helical", pitch_mm=30.0, views=10).build(grid)
    assert ct.covers(helix.geometry, grid)
    assert FanBeamConfig(views=3).build(Grid((1, 64, 64), (1.0,) * 3)).data_shape[:2] == (3, 1)
