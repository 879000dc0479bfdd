"""The vector geometry: conventions, constructors, projection of points, hash."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pdframe.core.grid import Grid
from pdframe.ct import geometry as ct
from pdframe.ct.geometry import Bench, Geometry

BENCH = Bench((11, 21), (2.0, 3.0), 100.0, 250.0)


def test_convention_at_zero_and_ninety_degrees() -> None:
    scan = ct.circular(BENCH, 4)
    np.testing.assert_allclose(scan.source[:2], [(0, -100, 0), (100, 0, 0)], atol=1e-12)
    np.testing.assert_allclose(scan.centre[:2], [(0, 150, 0), (-150, 0, 0)], atol=1e-12)
    np.testing.assert_allclose(scan.u[:2], [(3, 0, 0), (0, 3, 0)], atol=1e-12)
    np.testing.assert_allclose(scan.v[:2], [(0, 0, 2), (0, 0, 2)], atol=1e-12)
    assert scan.views == 4 and scan.upright


def test_points_fall_where_similar_triangles_say() -> None:
    scan = ct.circular(BENCH, 1)
    index = scan.project(np.array([(0, 0, 0), (6, 0, 0), (0, 0, -4), (0, 100, 6), (0, -100.5, 0)], dtype=float))[0]
    np.testing.assert_allclose(index[:4], [(5, 10), (5, 15), (0, 10), (5 + 3 * 1.25, 10)], atol=1e-9)
    assert np.isnan(index[4]).all()
    level = ct.parallel(BENCH, 1)
    np.testing.assert_allclose(level.project(np.array([(6.0, 50.0, -4.0)]))[0], [(3, 12)], atol=1e-9)


def test_offset_moves_the_panel_along_its_own_axes() -> None:
    moved = ct.circular(Bench((11, 21), (2.0, 3.0), 100.0, 250.0, (4.0, -9.0)), 5)
    plain = ct.circular(BENCH, 5)
    np.testing.assert_allclose(moved.centre - plain.centre, 2 * plain.v - 3 * plain.u, atol=1e-12)
    assert np.array_equal(moved.source, plain.source)


def test_isocentre_moves_everything() -> None:
    moved = ct.circular(Bench((11, 21), (2.0, 3.0), 100.0, 250.0, isocentre_mm=(1.0, 2.0, 3.0)), 5)
    np.testing.assert_allclose(
        moved.source - ct.circular(BENCH, 5).source, np.tile([3.0, 2.0, 1.0], (5, 1)), atol=1e-12
    )
    assert moved.isocentre == (3.0, 2.0, 1.0)


def test_short_scan_is_pi_plus_fan() -> None:
    scan = ct.short_scan(BENCH, 1000)
    angle = np.unwrap(np.arctan2(scan.source[:, 0], -scan.source[:, 1]))
    assert angle[-1] * 1000 / 999 == pytest.approx(math.pi + 2 * math.atan(31.5 / 250))


def test_helix_rises_by_its_pitch_about_the_isocentre() -> None:
    scan = ct.helical(BENCH, 40, pitch_mm=30.0, turns=4.0, start_rad=0.3)
    height = scan.source[:, 2]
    np.testing.assert_allclose(np.diff(height), 3.0)
    np.testing.assert_allclose(height[10:] - height[:-10], 30.0)
    assert height[0] == pytest.approx(-60.0)
    np.testing.assert_allclose(scan.centre[:, 2], height)


def test_upright_is_exact() -> None:
    flat = ct.circular(BENCH, 3)
    tilted = flat.v + 1e-6 * flat.normal
    assert not Geometry(flat.source, flat.centre, flat.u, tilted, flat.panel).upright
    climbing = ct.parallel(BENCH, 3)
    up = climbing.source + np.array([0, 0, 0.1])
    assert climbing.upright
    assert not Geometry(up, climbing.centre, climbing.u, climbing.v, climbing.panel, True).upright


def test_hash_and_equality_see_every_number() -> None:
    scan = ct.circular(BENCH, 6)
    assert scan == ct.circular(BENCH, 6) and hash(scan) == hash(ct.circular(BENCH, 6))
    nudged = scan.centre.copy()
    nudged[3, 1] += 1e-9
    others = [
        Geometry(scan.source, nudged, scan.u, scan.v, scan.panel),
        Geometry(scan.source, scan.centre, scan.u, scan.v, (11, 22)),
        scan.subset(slice(0, 5)),
    ]
    assert len({scan, *others}) == 4
    assert scan.subset(slice(0, 6)) == scan and scan.subset([4, 2]).views == 2


def test_arrays_are_frozen_copies() -> None:
    source = np.array([(0.0, -100.0, 0.0)])
    one = ct.circular(BENCH, 1)
    scan = Geometry(source, one.centre, one.u, one.v, one.panel)
    source[0, 0] = 5.0
    assert scan.source[0, 0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        scan.source[0, 0] = 1.0


def test_nonsense_is_refused() -> None:
    one = ct.circular(BENCH, 2)
    with pytest.raises(ValueError, match=r"\(view, 3\)"):
        Geometry(one.source, one.centre[:1], one.u, one.v, one.panel)
    with pytest.raises(ValueError, match="finite"):
        Geometry(one.source * np.nan, one.centre, one.u, one.v, one.panel)
    with pytest.raises(ValueError, match="parallel: check"):
        Geometry(one.source, one.centre, one.u, one.u, one.panel)
    with pytest.raises(ValueError, match="rows, columns"):
        Geometry(one.source, one.centre, one.u, one.v, (0, 3))
    with pytest.raises(ValueError, match="source_axis_mm"):
        Bench((3, 3), (1.0, 1.0), 200.0, 100.0)
    with pytest.raises(ValueError, match="at least one view"):
        ct.circular(BENCH, 0)
    with pytest.raises(ValueError, match="one row"):
        ct.fan(BENCH, 3)


def test_covering_panel_is_tight_for_every_angle() -> None:
    grid = Grid((8, 20, 14), (2.0, 1.5, 2.5), (3.0, -4.0, 2.0))
    for bench in (Bench((1, 1), (2.0, 3.0), 100.0, 250.0), Bench((1, 1), (2.0, 3.0), 100.0, 250.0, (3.0, 7.0))):
        rows, columns = ct.covering_panel(bench, grid)
        panels = [
            Bench((rows - dr, columns - dc), bench.pixel_mm, 100.0, 250.0, bench.offset_mm)
            for dr, dc in ((0, 0), (2, 0), (0, 2))
        ]
        assert [ct.covers(ct.circular(b, 720), grid) for b in panels] == [True, False, False]
