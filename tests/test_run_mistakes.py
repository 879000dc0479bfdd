"""What a run says of mistakes that only building a part or opening a file finds, and of scans that look odd."""

from __future__ import annotations

import pytest
import torch

import pdframe
from pdframe.core.grid import Grid
from pdframe.ct.nifti import write_nifti
from pdframe.hooks import BackendMissing
from pdframe.mistakes import ConfigError

SETTINGS = {
    "dataset": {"name": "phantom", "shape": [16, 18, 20], "spacing_mm": [12.0, 12.0, 12.0]},
    "operator": {"name": "cone_beam", "views": 6},
    "solver": {"name": "fdk"},
}


def settings(**changes):
    return pdframe.load({**SETTINGS, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item": "nobody"}, "dataset: no item 'nobody'; there are shepp_logan"),
        ({"dataset": {"name": "nifti", "path": "none.nii"}}, "dataset: .*none.nii: no NIfTI file"),
        ({"operator": {"name": "cone_beam", "views": 6, "source_axis_mm": 50.0}}, "operator: the volume reaches"),
        ({"measurement": {"frozen": "8_views"}}, "measurement: "),
        ({"solver": {"name": "fbp"}}, "solver 'fbp': fbp is for parallel beams"),
        ({"device": "gpu"}, "device: expected .* got 'gpu'"),
    ],
)
def test_a_mistake_that_only_building_finds_is_one_line_before_any_method_runs(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        settings(**changes).run(tmp_path / "r")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r" / "config.toml").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU here, which this is about the lack of")
def test_a_device_that_is_not_here_is_a_missing_back_end(tmp_path):
    with pytest.raises(BackendMissing, match='device = "cuda": torch .* cannot use it here'):
        settings(device="cuda").run(tmp_path / "r")


def test_voxels_that_the_prior_has_not_seen_and_a_large_run_are_told_before_it(tmp_path, capsys, monkeypatch):
    from pdframe import run as run_module

    monkeypatch.setattr(run_module, "LARGE_BYTES", 0)
    solver = {"name": "dds", "steps": 1, "cg": 1, "prior": {"name": "patch3d"}, "label": "ours"}
    settings(solver=solver).run(tmp_path / "r", console=True)
    told = capsys.readouterr().out
    assert "note on the prior of 'ours': trained on voxels of 1.3 to 4 mm in plane, these have 12" in told
    assert "memory: a solve takes about 0." in told


def test_what_looks_odd_about_a_scan_is_told_and_recorded(tmp_path, capsys):
    tiny = Grid((12, 12, 12), (0.004, 0.004, 0.004))
    write_nifti(tmp_path / "scan.nii", 0.02 + 0.02 * torch.rand(1, 1, 12, 12, 12), tiny, dtype="float32")
    scan = {"name": "nifti", "path": str(tmp_path / "scan.nii")}
    source = {"name": "parallel_beam", "views": 3}
    run = settings(dataset=scan, operator=source, solver={"name": "fbp"}).run(tmp_path / "r", console=True)
    assert run.record["notes"][0].startswith("voxels of 0.004 x 0.004 x 0.004 mm: perhaps the header's unit")
    assert "no value below 0" in run.record["notes"][1]
    assert capsys.readouterr().out.count("note on scan: ") == len(run.record["notes"])


def test_a_scan_that_changed_since_the_run_is_told_and_nothing_is_mixed(tmp_path):
    def scan(seed: int) -> None:
        x = 0.02 * torch.rand(1, 1, 12, 12, 12, generator=torch.Generator().manual_seed(seed))
        write_nifti(tmp_path / "scan.nii", x, Grid((12, 12, 12), (9.0, 9.0, 9.0)), dtype="float32")

    scan(0)
    data = {"name": "nifti", "path": str(tmp_path / "scan.nii")}
    experiment = settings(dataset=data, operator={"name": "parallel_beam", "views": 3}, solver={"name": "fbp"})
    first = experiment.run(tmp_path / "r")
    assert experiment.run(tmp_path / "r").record == first.record
    scan(1)
    with pytest.raises(ConfigError, match=r"scan\.nii changed since the run in .* began: start afresh"):
        experiment.run(tmp_path / "r")
    assert experiment.run(tmp_path / "r", fresh=True).record["files"] != first.record["files"]


def test_a_flattering_simulation_and_a_method_that_was_cut_short_are_told(tmp_path, capsys):
    told = "simulated on the grid that is reconstructed, which flatters every method"
    solver = {"name": "admm_tv", "label": "TV", "steps": 2}
    settings(solver=solver, measurement={"simulate_on": "grid"}).run(tmp_path / "cut", console=True)
    said = capsys.readouterr().out
    assert told in said and "TV: Stopped at the step limit before the solver's own stopping rule" in said
    settings(solver={"name": "fdk"}).run(tmp_path / "whole", console=True)
    said = capsys.readouterr().out
    assert told not in said and "Stopped" not in said
