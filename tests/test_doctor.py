"""The doctor finds what is wrong: an adjoint that is none, a wrong unit, a prior out of its range, a broken library."""

from __future__ import annotations

import json
import types
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import pdframe
from pdframe import doctor, machine, registry
from pdframe.cli import main
from pdframe.config import load
from pdframe.core.grid import Grid
from pdframe.ct.checkpoint import shipped_checkpoint
from pdframe.ct.chords import chord_mm
from pdframe.ct.geometry import Bench, Geometry, circular

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
PLUGIN = """
from pdframe.hooks import Entry, hookimpl

@hookimpl
def pdframe_register():
    return [
        Entry("dataset", "ward_data", "ward_parts:DataConfig", ""),
        Entry("operator", "ward_scan", "ward_parts:ScanConfig", ""),
        Entry("prior", "ward_prior", "ward_parts:PriorConfig", ""),
        Entry("solver", "ward_solver", "ward_parts:SolverConfig", ""),
        Entry("solver", "ward_lost", "ward_parts:SolverConfig", "", requires=("ward_lost_library",), extra="lost"),
    ]
"""
PARTS = """
from dataclasses import dataclass
from math import nan
import torch
import pdframe
from pdframe.core.grid import Grid
from pdframe.core.operator import ForwardOperator
from pdframe.core.prior import Prior, per_item
from pdframe.core.problem import Dataset, Item
from pdframe.hooks import Config

class DataConfig(Config):
    broken: bool = False
    def build(self): return Data(self.broken)

@dataclass(frozen=True)
class Data(Dataset):
    broken: bool
    def names(self): return ("one",)
    def load(self, name):
        x = 0.02 + 0.01 * torch.randn(1, 1, 12, 10, 8, generator=torch.Generator().manual_seed(1))
        if self.broken:
            raise FileNotFoundError("one.nii is not there")
        return Item(name, x, Grid((12, 10, 8), (2.0, 3.0, 4.0)))

class ScanConfig(Config):
    adjoint_gain: float = 1
    gain: float = 1
    matched: bool = True
    def build(self, grid):
        return Scan(pdframe.build("operator", "cone_beam", grid=grid, views=3), self)

@dataclass(frozen=True)
class Scan(ForwardOperator):
    inner: ForwardOperator
    settings: ScanConfig
    @property
    def grid(self): return self.inner.grid
    @property
    def data_shape(self): return self.inner.data_shape
    @property
    def geometry(self): return self.inner.geometry
    @property
    def matched(self): return self.settings.matched
    def forward(self, x): return self.settings.gain * self.inner.forward(x)
    def adjoint(self, y): return self.settings.adjoint_gain * self.settings.gain * self.inner.adjoint(y)

class PriorConfig(Config):
    mean: float = 0.02
    deviation: float = 0.01
    fault: str = ""
    def build(self): return Gaussian(self.mean, self.deviation, self.fault)

@dataclass(frozen=True)
class Gaussian(Prior):
    mean: float
    deviation: float
    fault: str
    sigma_range = (1e-4, 1.0)
    def denoise(self, x, sigma, *, rng=None):
        keep = self.deviation**2 / (self.deviation**2 + per_item(sigma, x) ** 2)
        if self.fault == "lost": return x * nan
        if self.fault == "shape": return x[..., 1:]
        if self.fault == "noisier": return x + 0.01
        return self.mean + keep * (x - self.mean)

class SolverConfig(Config):
    def build(self, prior): return prior
"""
TOML = "\n".join(f'[{kind}]\nname = "ward_{name}"' for kind, name in [
    ("dataset", "data"), ("operator", "scan"), ("prior", "prior"), ("solver", "solver"),
])  # fmt: skip


@pytest.fixture
def toml(foreign, tmp_path):
    foreign("ward-plugin", {"ward": PLUGIN, "ward_parts": PARTS}, entry="ward")
    path = tmp_path / "ward.toml"
    path.write_text(TOML)
    return path


def proofs(toml, *changes):
    return {f.name: f for f in doctor.prove(pdframe.load(toml, changes))}


def test_a_healthy_experiment_passes_every_proof(toml):
    found = proofs(toml)
    assert set(found) == {"data", "operator", "adjoint", "scale", "norm", "prior", "denoise", "memory"}
    assert [f for f in found.values() if f.ok is False] == []
    assert found["scale"].ok and found["adjoint"].ok and found["denoise"].ok
    assert "12 x 10 x 8 voxels of 2 x 3 x 4" in found["data"].said


@pytest.mark.parametrize(
    ("change", "guilty", "said"),
    [
        ("operator.adjoint_gain=1.01", "adjoint", "not a transpose"),
        ("operator.gain=0.1", "scale", "projects to 0.1"),
        ("prior.mean=-500", "prior", "out of its range: check the units"),
        ("prior.deviation=500", "prior", "out of its range: check the units"),
        ("prior.fault=noisier", "denoise", "not made for volumes like this"),
        ("prior.fault=lost", "denoise", "not finite"),
        ("prior.fault=shape", "denoise", "(1, 1, 12, 10, 8) became (1, 1, 12, 10, 7)"),
        ("dataset.broken=true", "data", "FileNotFoundError: one.nii is not there"),
    ],
)
def test_a_fault_is_found_where_it_is(toml, change, guilty, said):
    failed = {name: f for name, f in proofs(toml, change).items() if f.ok is False}
    assert guilty in failed and said in failed[guilty].said
    assert set(failed) <= {guilty, "denoise"}  # a prior in the wrong unit cannot denoise either


def test_an_operator_that_admits_an_approximate_adjoint_is_not_failed_for_it(toml):
    found = proofs(toml, "operator.adjoint_gain=1.01", "operator.matched=false")
    assert found["adjoint"].ok is None and "approximate" in found["adjoint"].said


def test_a_scan_that_does_not_turn_about_the_middle_of_its_grid_is_told():
    small = {"dataset": {"name": "phantom", "shape": [8, 8, 8], "spacing_mm": [8.0, 8.0, 8.0]}}
    small |= {"operator": {"name": "cone_beam", "views": 3}, "solver": {"name": "fdk"}}
    for isocentre, said in (([0.0, 0.0, 3.0], None), ([0.0, -20.0, 5.0], "(0, -20, 5) mm (z, y, x) from the middle")):
        small["operator"]["isocentre_mm"] = isocentre
        found = {f.name: f for f in doctor.prove(load(small))}
        assert found["scale"].ok and found["adjoint"].ok and found["operator"].ok is None
        assert (said in found["operator"].said) if said else ("middle" not in found["operator"].said)


def test_a_frozen_measurement_is_held_against_scan_and_noise():
    for override, said in (
        ("operator.views=19", "[operator] gives (19, 192, 192)"),
        ("noise.photons=2e5", "[noise] describes"),
        ("operator.source_axis_mm=900", "another geometry"),
    ):
        experiment = load(EXAMPLES / "chest_20_views.toml", [override])
        dataset = experiment.dataset.build()
        item = types.SimpleNamespace(name=dataset.names()[0], grid=Grid((128, 128, 128), (2.75, 2.75, 2.75)))
        parts = {"dataset": dataset, "item": item}
        doctor._PROOFS["operator"](experiment, parts)
        with pytest.raises(ValueError) as error:
            doctor._PROOFS["measurement"](experiment, parts)
        assert said in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU here, which this is about the lack of")
def test_a_device_that_is_not_there_ends_it_as_it_ends_a_run():
    done = call(EXAMPLES / "phantom.toml", "--set", "device=cuda")
    assert done.exit_code == 3 and len(done.output.splitlines()) == 1 and "cuda" in done.output


def test_without_data_nothing_else_is_claimed(toml):
    assert set(proofs(toml, "dataset.broken=true")) == {"data"}


def call(*args):
    return CliRunner().invoke(main, ["doctor", *map(str, args)])


def test_the_command_exits_with_the_verdict(toml, monkeypatch):
    monkeypatch.setattr(machine, "libraries", lambda: [])  # they have a test of their own below
    good = call(toml)
    assert good.exit_code == 0 and "ok     adjoint" in good.output
    bad = call(toml, "--set", "operator.adjoint_gain=2", "--json")
    report = json.loads(bad.output)
    assert bad.exit_code == 1 and not report["healthy"]
    assert [p["name"] for p in report["proofs"] if p["ok"] is False] == ["adjoint"]
    assert report["machine"]["cores"] >= 1 and report["machine"]["devices"][0] == "cpu"
    assert 'solver ward_lost needs ward_lost_library: pip install "ward-plugin[lost]"' in call().output


GROWN = """
from pdframe.hooks import Entry, hookimpl

@hookimpl
def pdframe_register():
    return [
        Entry("prior", "grown", "grown_parts.prior:GrownConfig", ""),
        Entry("prior", "given", "grown_parts.prior:GivenConfig", ""),
        Entry("task", "grown", "grown_parts.training:GrownTrainingConfig", ""),
    ]
"""


def test_a_prior_that_came_without_weights_is_told_until_they_are_there(foreign, monkeypatch):
    monkeypatch.setattr(machine, "libraries", lambda: [])
    site = foreign("grown-ct", {"grown": GROWN}, entry="grown")
    weights = site / "grown_parts" / "shipped" / "grown.safetensors"
    weights.parent.mkdir(parents=True)
    (site / "grown_parts" / "__init__.py").write_text("raise ImportError('this was only to be listed')")
    hint = "came without weights: train your own (`pdframe train`, task grown) and set `weights` to the file"
    for there in (False, True):
        if there:
            weights.write_bytes(b"")
        text, lines = call().output, CliRunner().invoke(main, ["plugins"]).output
        assert (f"no     grown        prior grown {hint}" in text) is not there
        assert lines.count(hint) == (not there) and "prior given came" not in text
        offers = json.loads(CliRunner().invoke(main, ["plugins", "--json"]).output)["entries"]
        found = {(o["kind"], o["name"]): (o["usable"], o["untrained"]) for o in offers if o["plugin"] == "grown"}
        assert found["prior", "grown"] == ((True, "") if there else (False, hint))
        assert found["prior", "given"] == found["task", "grown"] == (True, "")


def test_the_weights_that_are_looked_for_are_those_that_would_be_loaded():
    trained = {e.name for e in registry.entries("task")}
    priors = [(registry.origin(e), e) for e in registry.entries("prior") if e.name in trained]
    assert {e.name for _, e in priors} >= {"patch3d", "slice2d", "blend3", "volume3d"}
    for plugin, entry in priors:
        there = shipped_checkpoint(entry.target.partition(".")[0], entry.name).is_file()
        assert (machine.untrained(plugin, entry) == "") is there


def test_a_library_is_absent_broken_or_working(tmp_path, monkeypatch):
    (tmp_path / "cracked_library.py").write_text("raise OSError('libcuda.so.1 is not there')")
    (tmp_path / "sound_library.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    absent = machine._library("no_such_library_xyz", "x", "pip install it", "import no_such_library_xyz")
    cracked = machine._library("cracked_library", "x", "", "import cracked_library")
    sound = machine._library("sound_library", "x", "", "import sound_library")
    assert (absent.ok, cracked.ok, sound.ok) == (False, False, True)
    assert "not installed" in absent.said and "pip install it" in absent.said
    assert "cannot be used" in cracked.said and "libcuda.so.1 is not there" in cracked.said


def test_chords_have_their_closed_forms():
    grid = Grid((4, 6, 8), (1.0, 2.0, 3.0), (5.0, -2.0, 7.0))  # extents 4, 12, 24 mm; centre (x, y, z) = (7, -2, 5)

    def through(direction, point):
        u, v = np.linalg.svd(np.array([direction], float))[2][1:]
        one = Geometry([direction], [point], [u], [v], (1, 1), parallel=True)
        return chord_mm(one, grid, 0)[0, 0]

    assert through((1, 0, 0), (7, -2, 5)) == pytest.approx(24)
    assert through((0, 0, -1), (7, -2, 5)) == pytest.approx(4)
    assert through((1, 0, 0), (7, 4.01, 5)) == 0
    assert through((1, 1, 0), (7, -2, 5)) == pytest.approx(12 * sqrt(2))
    assert through((24, 12, 4), (7, -2, 5)) == pytest.approx(sqrt(24**2 + 12**2 + 4**2))


def test_chords_of_a_cone_beam_agree_with_marching_along_the_rays():
    grid = Grid((9, 10, 11), (2.0, 3.0, 1.5), (1.0, -2.0, 3.0))
    geometry = circular(Bench((5, 7), (9.0, 8.0), 60.0, 100.0, (1.0, 2.0)), 3, start_rad=0.3)
    steps = np.linspace(0.0, 2.0, 40001)
    for view in range(3):
        chord = chord_mm(geometry, grid, view)
        for row, column in [(0, 0), (2, 3), (4, 1)]:
            pixel = geometry.centre[view] + (row - 2) * geometry.v[view] + (column - 3) * geometry.u[view]
            ray = pixel - geometry.source[view]
            points = geometry.source[view] + steps[:, None] * ray
            inside = (np.abs(points - np.array(grid.centre[::-1])) <= np.array(grid.extent[::-1]) / 2).all(1)
            step_mm = (steps[1] - steps[0]) * np.linalg.norm(ray)
            assert chord[row, column] == pytest.approx(inside.sum() * step_mm, abs=2 * step_mm)
