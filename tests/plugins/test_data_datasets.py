"""Phantoms against closed forms, scans on their grids, the packaged sample against its papers, measurements."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from pdframe_data.ellipsoids import Ellipsoid, line_integrals, voxels
from pdframe_data.sample import FOLDER

import pdframe
from pdframe import measure
from pdframe.core.noise import GaussianNoise, NoNoise, PhotonNoise
from pdframe.core.seeds import generator
from pdframe.ct.geometry import Bench, circular, covers, parallel
from pdframe.ct.scan import bin_intensities, oversampled

PLAIN = Path(__file__).parents[1] / "data" / "made_ras_plain.nii.gz"
CHEST_V1 = {"source_axis_mm": 1000.0, "source_panel_mm": 1500.0, "panel": (192, 192), "pixel_mm": (4.125, 4.125)}


@pytest.fixture(scope="module")
def sample() -> pdframe.Item:
    return pdframe.build("dataset", "sample").load("chest_lidc_0001")


def phantom(**settings) -> pdframe.Dataset:
    return pdframe.build("dataset", "phantom", **{"shape": (20, 24, 28), "spacing_mm": (4.0, 3.0, 3.5), **settings})


# Ellipsoids


def turned_ellipsoid() -> Ellipsoid:
    import numpy as np

    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    return Ellipsoid(0.03, np.array([4.0, -3.0, 2.0]), np.array([20.0, 12.0, 16.0]), q)


@pytest.mark.parametrize("beam", ["cone", "parallel"])
def test_central_ray_of_a_ball_is_its_diameter_and_no_ray_is_longer(beam):
    import numpy as np

    ball = Ellipsoid(0.02, np.array([10.0, 0.0, 0.0]), np.full(3, 15.0), np.eye(3))
    bench = Bench((65, 65), (1.0, 1.0), 500.0, 500.0)  # the panel stands in the axis: a pixel is a point there
    geometry = circular(bench, 1) if beam == "cone" else parallel(bench, 1)
    y = line_integrals([ball], geometry)[0, 0, 0]
    assert float(y[32, 42]) == pytest.approx(0.02 * 30.0, rel=1e-3 if beam == "cone" else 1e-9)
    assert float(y.max()) <= 0.6 * (1 + 1e-12)
    if beam == "parallel":
        x = torch.arange(65, dtype=torch.float64) - 32 - 10
        chord = 2 * 0.02 * (225 - x**2).clamp_min(0).sqrt()
        assert torch.allclose(y[32], chord, atol=1e-12)


def test_parallel_projections_hold_the_mass_of_the_ellipsoid():
    e = turned_ellipsoid()
    geometry = parallel(Bench((120, 120), (0.5, 0.5)), 3)
    mass = e.value * 4 / 3 * math.pi * e.semi_axes.prod()
    assert line_integrals([e], geometry).sum((0, 1, 3, 4)) * 0.25 == pytest.approx([mass] * 3, rel=1e-3)


def test_voxels_hold_the_mass_and_the_values_of_the_ellipsoid():
    e, grid = turned_ellipsoid(), pdframe.Grid((30, 28, 32), (1.7, 1.9, 1.5), (2.0, -3.0, 4.0))
    x = voxels([e], grid)
    mass = e.value * 4 / 3 * math.pi * e.semi_axes.prod()
    assert float(x.double().sum()) * math.prod(grid.spacing) == pytest.approx(mass, rel=3e-3)
    assert float(x.max()) == pytest.approx(e.value) and float(x.min()) == 0


@pytest.mark.parametrize("figure", ["shepp_logan", "ellipsoids"])
def test_projected_voxels_approach_the_exact_projection(figure):
    errors = []
    for factor in (1, 2):
        shape, spacing = [n * factor for n in (16, 20, 18)], [s / factor for s in (8.0, 7.0, 7.5)]
        dataset = phantom(figure=figure, shape=shape, spacing_mm=spacing, count=4)
        item = dataset.load(dataset.names()[0])
        operator = pdframe.build("operator", "cone_beam", grid=item.grid, views=4, pixel_mm=(11.0, 11.0))
        exact = measure.exact_data(dataset, item.name, operator)
        errors.append(float((operator.forward(item.x) - exact).norm() / exact.norm()))
    assert errors[1] < 0.7 * errors[0] < 0.2


def test_phantoms_are_reproducible_and_differ_by_item_and_seed():
    one, other = phantom(figure="ellipsoids", items=2), phantom(figure="ellipsoids", seed=1)
    assert torch.equal(one.load("ellipsoids_1").x, phantom(figure="ellipsoids", items=2).load("ellipsoids_1").x)
    assert not torch.equal(one.load("ellipsoids_0").x, one.load("ellipsoids_1").x)
    assert not torch.equal(one.load("ellipsoids_0").x, other.load("ellipsoids_0").x)
    with pytest.raises(KeyError, match="ellipsoids_0, ellipsoids_1"):
        one.load("head")


# NIfTI


def test_scan_alone_keeps_its_grid_and_a_spacing_covers_it():
    whole = pdframe.build("dataset", "nifti", path=PLAIN)
    assert whole.names() == ("made_ras_plain",)
    assert whole.load("made_ras_plain").grid.shape == (32, 40, 48)
    coarse = pdframe.build("dataset", "nifti", path=PLAIN, spacing_mm=(3.0, 3.0, 3.0)).load("made_ras_plain").grid
    assert coarse.shape == (11, 21, 25)  # 32, 62.5 and 75 mm


def test_native_scan_and_grid_hold_the_same_mass_in_the_same_place():
    dataset = pdframe.build("dataset", "nifti", path=PLAIN, shape=(10, 12, 14), spacing_mm=(2.5, 3.0, 3.0))
    item, native = dataset.load("made_ras_plain"), measure.native_item(dataset, "made_ras_plain")
    assert item.grid.centre == (0, 0, 0) and native.grid.spacing == pytest.approx((1.0, 1.5625, 1.5625))
    mass = [float(i.x.double().sum()) * math.prod(i.grid.spacing) for i in (item, native)]
    assert mass[0] == pytest.approx(mass[1], rel=1e-5)
    for axis, spacing in enumerate((2.5, 3.0, 3.0)):
        means = [_mean_place(i, axis) for i in (item, native)]
        assert abs(means[0] - means[1]) < 0.05 * spacing


def _mean_place(item: pdframe.Item, axis: int) -> float:
    from pdframe.ct.resample import axis_positions

    profile = item.x[0, 0].double().sum([a for a in range(3) if a != axis])
    return float((profile * axis_positions(item.grid, axis)).sum() / profile.sum())


def test_folders_and_patterns_are_listed_in_order(tmp_path):
    for name in ("b.nii.gz", "a.nii.gz", "readme.txt"):
        (tmp_path / name).write_bytes(PLAIN.read_bytes())
    for path in (tmp_path, tmp_path / "*.nii.gz"):
        assert pdframe.build("dataset", "nifti", path=path).names() == ("a", "b")
    with pytest.raises(ValueError, match="no NIfTI file"):
        pdframe.build("dataset", "nifti", path=tmp_path / "none")


# The packaged sample


def test_sample_is_what_its_papers_say(sample):
    origin = json.loads((FOLDER / "origin.json").read_text())
    assert sample.grid.shape == (128, 128, 128) and sample.grid.spacing == pytest.approx((2.75,) * 3)
    assert sample.header["licence"] == origin["licence"] == "CC BY 3.0"
    assert set(origin["files"]) | {"origin.json", "LICENCE.md"} == {p.name for p in FOLDER.iterdir()}
    assert 0.3 < float(sample.masks["body"].float().mean()) < 0.6
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) < 8e6


@pytest.mark.parametrize("views", [20, 8])
def test_frozen_measurement_fits_the_sample_to_its_noise_and_its_finer_grid(sample, views):
    operator = pdframe.build("operator", "cone_beam", grid=sample.grid, views=views, **CHEST_V1)
    noise, dataset = PhotonNoise(1e5, 5.0), pdframe.build("dataset", "sample")
    measured = measure.load(measure.frozen_measurement(dataset, f"chest_v1_{views}_views"), operator, noise)
    assert measured.record["simulated_on"] == "native" and measured.record["finer"]
    assert covers(operator.geometry, sample.grid)
    gap = operator.forward(sample.x) - measured.y
    # Not below the noise (that would be an inverse crime), not far above it (that would be another scan or geometry).
    assert 1.2 < float((noise.inverse_variance(measured.y) * gap**2).mean().sqrt()) < 4
    assert float(gap.norm() / measured.y.norm()) < 0.02


def test_frozen_measurement_of_another_name_noise_or_geometry_is_refused(sample):
    dataset = pdframe.build("dataset", "sample")
    path = measure.frozen_measurement(dataset, "chest_v1_8_views")
    operator = pdframe.build("operator", "cone_beam", grid=sample.grid, views=8, **CHEST_V1)
    moved = pdframe.build("operator", "cone_beam", grid=sample.grid, views=8, **{**CHEST_V1, "source_axis_mm": 999.0})
    fewer = pdframe.build("operator", "cone_beam", grid=sample.grid, views=7, **CHEST_V1)
    with pytest.raises(ValueError, match="chest_v1_20_views, chest_v1_8_views"):
        measure.frozen_measurement(dataset, "chest_v1_9_views")
    with pytest.raises(ValueError, match="another geometry"):
        measure.load(path, moved, PhotonNoise(1e5, 5.0))
    with pytest.raises(ValueError, match="data of shape"):
        measure.load(path, fewer, PhotonNoise(1e5, 5.0))
    with pytest.raises(ValueError, match="measured with noise"):
        measure.load(path, operator, PhotonNoise(1e4, 5.0))


# Measurements


def test_measurement_survives_its_file_and_a_changed_value_is_noticed(tmp_path):
    dataset = phantom()
    item = dataset.load("shepp_logan")
    operator = pdframe.build("operator", "cone_beam", grid=item.grid, views=3)
    made = measure.simulate(dataset, item.name, operator, PhotonNoise(1e4, 5.0), seed=4)
    measure.save(made, tmp_path / "y.safetensors")
    back = measure.load(tmp_path / "y.safetensors", operator, PhotonNoise(1e4, 5.0))
    assert torch.equal(back.y, made.y) and back.record["y_sha256"] == made.record["y_sha256"]
    with pytest.raises(ValueError, match="was measured of 'shepp_logan', .* gives 'ellipsoids_0'"):
        measure.load(tmp_path / "y.safetensors", operator, PhotonNoise(1e4, 5.0), item="ellipsoids_0")
    measure.save(dataclasses.replace(made, y=made.y + 1e-3), tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match="do not match their hash"):
        measure.load(tmp_path / "y.safetensors", operator, PhotonNoise(1e4, 5.0))
    (tmp_path / "z.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="not a measurement"):
        measure.load(tmp_path / "z.safetensors", operator, NoNoise())
    with pytest.raises(FileNotFoundError):
        measure.load(tmp_path / "nowhere.safetensors", operator, NoNoise())


def test_simulation_says_where_it_was_made_and_uses_it():
    scans = pdframe.build("dataset", "nifti", path=PLAIN, shape=(16, 20, 24), spacing_mm=(2.0, 3.125, 3.125))
    item = scans.load("made_ras_plain")
    operator = pdframe.build("operator", "cone_beam", grid=item.grid, views=3)
    native = measure.simulate(scans, item.name, operator, NoNoise())
    crime = measure.simulate(scans, item.name, operator, NoNoise(), on="grid")
    assert native.record["simulated_on"] == "native" and native.record["finer"]
    assert native.record["grid_shape"] == [32, 40, 48]
    assert crime.record["simulated_on"] == "grid" and not crime.record["finer"]
    assert torch.equal(crime.y, operator.forward(item.x))
    difference = float((native.y - crime.y).norm() / crime.y.norm())
    assert 1e-4 < difference < 0.05
    exact = measure.simulate(phantom(), "shepp_logan", operator, NoNoise())
    assert exact.record["simulated_on"] == "exact"


def test_noise_depends_on_its_seed_alone():
    dataset = phantom()
    operator = pdframe.build("operator", "cone_beam", grid=dataset.load("shepp_logan").grid, views=2)
    make = [measure.simulate(dataset, "shepp_logan", operator, GaussianNoise(0.1), seed=s).y for s in (1, 1, 2)]
    clean = measure.simulate(dataset, "shepp_logan", operator, NoNoise()).y
    assert torch.equal(make[0], make[1]) and not torch.equal(make[0], make[2])
    expected = 0.1 * torch.randn(clean.shape, generator=generator(1, "noise"))
    assert torch.allclose(make[0] - clean, expected, atol=1e-6)


def test_pixels_average_intensities_over_samples_that_tile_them():
    y = torch.rand(1, 1, 2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = bin_intensities(y, 2)
    assert float(got[0, 0, 1, 2, 1]) == pytest.approx(-math.log(float(torch.exp(-y[0, 0, 1, 4:6, 2:4]).mean())))
    geometry = circular(Bench((3, 5), (2.0, 3.0)), 4)
    fine = oversampled(geometry, 2)
    corner = [
        g.centre - (g.panel[0] / 2) * g.v - (g.panel[1] / 2) * g.u  # outer corner of pixel (0, 0)
        for g in (geometry, fine)
    ]
    assert corner[0] == pytest.approx(corner[1]) and fine.panel == (6, 10)
