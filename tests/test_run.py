"""A run: what it leaves behind, what it does when it is done, killed, interrupted, changed, or failing."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from math import sqrt
from pathlib import Path

import nibabel as nib
import numpy
import pytest
import torch

import pdframe
from pdframe import run as run_module
from pdframe import runfolder, solutions
from pdframe.core.noise import GaussianNoise
from pdframe.core.solve import solve
from pdframe.judge import data_residual
from pdframe.lock import FolderBusy, only_one
from pdframe.mistakes import ConfigError
from pdframe.report.table import as_markdown, as_text
from pdframe.run import RunFailed

SETTINGS = {
    "title": "small",
    "dataset": {"name": "phantom", "shape": [16, 18, 20], "spacing_mm": [12.0, 12.0, 12.0]},
    "operator": {"name": "cone_beam", "views": 6},
    "noise": {"name": "photon"},
    "measurement": {"seed": 3},
    "solver": {"name": "admm_tv", "steps": 8, "tolerance": 0.0, "label": "TV"},
    "compare": [{"name": "fdk", "label": "FDK"}],
    "metrics": {"name": "ct"},
}
PLUGIN = """
from pdframe.hooks import Entry, hookimpl

@hookimpl
def pdframe_register():
    return [
        Entry("dataset", "toy_flat", "toy_parts:FlatConfig", ""),
        Entry("operator", "toy_blur", "toy_parts:BlurConfig", ""),
        Entry("prior", "toy_white", "toy_parts:WhiteConfig", ""),
        Entry("solver", "toy_bad", "toy_parts:BadConfig", ""),
    ]
"""
PARTS = """
from dataclasses import dataclass
import torch
from pdframe import Config, Dataset, ForwardOperator, Grid, Item, Prior, Progress, Solver

class FlatConfig(Config):
    def build(self): return Flat()

@dataclass(frozen=True)
class Flat(Dataset):
    def names(self): return ("photo",)
    def load(self, name):
        x = torch.linspace(0, 1, 48).reshape(1, 1, 6, 8)
        return Item(name, x, Grid((6, 8), (1.0, 1.0), unit="grey"))

class BlurConfig(Config):
    def build(self, grid): return Blur(grid, grid.shape)

@dataclass(frozen=True)
class Blur(ForwardOperator):
    grid: Grid
    data_shape: tuple
    def forward(self, x): return (x + x.roll(1, -1)) / 2
    def adjoint(self, y): return (y + y.roll(-1, -1)) / 2

class WhiteConfig(Config):
    def build(self): return White()

@dataclass(frozen=True)
class White(Prior):
    sigma_range = (1e-4, 0.1)
    mean = 0.01
    deviation = 0.01
    def denoise(self, x, sigma, *, rng=None):
        share = 1e-4 / (1e-4 + sigma.reshape(-1, *(1,) * (x.ndim - 1)) ** 2)
        return self.mean + share * (x - self.mean)

class BadConfig(Config):
    how: str = "nan"
    def build(self): return Bad(self)

@dataclass(frozen=True)
class Bad(Solver):
    settings: BadConfig
    @property
    def total_steps(self): return 3
    def init(self, problem, rng): return {"x": problem.y.new_zeros(1, 1, *problem.operator.grid.shape), "k": 0}
    def step(self, problem, state, rng):
        if self.settings.how == "interrupt" and state["k"] == 1:
            raise KeyboardInterrupt
        return {"x": state["x"] * float("nan"), "k": state["k"] + 1} if self.settings.how == "nan" else (
            {"x": state["x"] + 0.01, "k": state["k"] + 1})
    def view(self, state): return Progress(state["x"], state["k"] == 3)
"""


@pytest.fixture
def toys(foreign):
    foreign("toy-ct", {"toy": PLUGIN, "toy_parts": PARTS}, entry="toy")


def settings(**changes):
    return pdframe.load({**SETTINGS, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "small"
    return pdframe.load(SETTINGS).run(folder)


def test_the_folder_holds_everything(finished):
    names = {str(p.relative_to(finished.folder)) for p in finished.folder.rglob("*") if p.is_file()}
    own = {"volume.nii.gz", "trace.jsonl", "method.json"}
    top = {"config.toml", "record.json", "measurement.safetensors", "figure.png", "truth.nii.gz"}
    assert names == own | top | {f"fdk/{name}" for name in own}
    rows = [json.loads(line) for line in (finished.folder / "trace.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert (finished.folder / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_record_says_what_was_done_and_what_it_cost(finished):
    record = json.loads((finished.folder / "record.json").read_text())
    assert record["status"] == "done" and record == finished.record
    assert record["measurement"]["simulated_on"] == "exact" and record["seeds"] == {"solver": 0, "noise": 3}
    assert record["adjoint_mismatch"] < 1e-6 and record["machine"]["torch"] == torch.__version__
    assert record["machine"]["numpy"] == numpy.__version__ and record["machine"]["numba"] == version("numba")
    fdk, tv = finished.rows
    assert (fdk["method"], tv["method"]) == ("FDK", "TV")
    assert tv["usage"]["view_calls"] == 6 * (tv["usage"]["forward_calls"] + tv["usage"]["adjoint_calls"]) > 0
    assert tv["usage"]["network_calls"] == tv["usage"]["network_voxels"] == 0
    assert tv["usage"]["seconds"] > 0 and tv["usage"]["peak_memory_bytes"] > 0
    assert {"psnr_db", "ssim", "ssim_slices", "rmse_hu", "body_psnr_db", "body_rmse_hu"} <= set(tv["metrics"])


def test_numbers_in_the_record_are_those_of_the_volume(finished):
    item = pdframe.load(SETTINGS).dataset.build().load("shepp_logan")
    metric = pdframe.build("metric", "ct")
    for label, row in zip(("FDK", "TV"), finished.rows, strict=True):
        again = metric.measure(finished.volume(label), item.x, item.masks["body"])
        assert again["rmse_hu"] == pytest.approx(row["metrics"]["body_rmse_hu"], abs=0.5)  # whole HU in the file
    truth = runfolder.load_volume(finished.folder, "truth")
    assert metric.measure(truth, item.x)["rmse_hu"] < 0.5
    with pytest.raises(KeyError, match="FDK, TV"):
        finished.volume("DDS")


def test_settings_in_the_folder_give_the_same_run(finished):
    from pdframe.config import sha256

    assert sha256(pdframe.load(finished.folder / "config.toml")) == finished.record["config_sha256"]


def test_a_finished_run_is_not_repeated_but_its_table_is_shown(finished, monkeypatch, capsys):
    def never(*args, **kwargs):
        raise AssertionError("it was run again")

    monkeypatch.setattr(solutions, "solve", never)
    again = pdframe.load(SETTINGS).run(finished.folder, console=True)
    assert again.record == finished.record
    said = capsys.readouterr().out
    assert "done before" in said and as_text(finished.rows) in said and "figure.png" in said


def test_a_folder_that_another_process_works_in_is_refused_in_one_line(finished, tmp_path):
    code = f"from pathlib import Path; from pdframe.lock import only_one\nwith only_one(Path({str(tmp_path / 'r')!r})):"
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{code} print('held', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(FolderBusy, match=rf"r is in use by another process \(process {holder.pid}\)"):
            settings().run(tmp_path / "r")
    finally:
        holder.kill()
        holder.communicate()
    with only_one(tmp_path / "r"):  # a kill leaves the file and not the lock
        assert [p.name for p in (tmp_path / "r").iterdir()] == [".lock"]
    assert not list((tmp_path / "r").iterdir())


def test_fresh_runs_again_to_the_same_bits_and_leaves_other_files_alone(finished):
    before = (finished.folder / "volume.nii.gz").read_bytes()
    (finished.folder / "notes.txt").write_text("mine")
    stamp = (finished.folder / "record.json").stat().st_mtime_ns
    pdframe.load(SETTINGS).run(finished.folder, fresh=True)
    assert (finished.folder / "record.json").stat().st_mtime_ns > stamp
    assert (finished.folder / "volume.nii.gz").read_bytes() == before
    assert (finished.folder / "notes.txt").read_text() == "mine"
    (finished.folder / "notes.txt").unlink()


def test_a_folder_with_other_settings_is_refused(finished):
    with pytest.raises(ConfigError, match="other settings"):
        settings(seed=1).run(finished.folder)


KILLED = """
import functools, os, signal, sys
import pdframe
from pdframe import solutions
from pdframe.core import checkpoint, solve

count = 0
def save(path, snapshot, key):
    global count
    real(path, snapshot, key)
    count += 1
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

real, checkpoint.save = checkpoint.save, save
solutions.solve = functools.partial(solve.solve, checkpoint_every_s=0.0)
pdframe.load(sys.argv[1]).run(sys.argv[2])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(finished, tmp_path):
    config, folder = finished.folder / "config.toml", tmp_path / "killed"
    done = subprocess.run([sys.executable, "-c", KILLED, config, folder, "4"], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert json.loads((folder / "record.json").read_text())["status"] == "running"
    stamp = (folder / "fdk" / "method.json").stat().st_mtime_ns
    (folder / ".volume.nii.gz.99999.part").write_bytes(b"torn")
    steps = []
    original = run_module.Silent.stepped
    run_module.Silent.stepped = lambda self, k: steps.append(k)
    try:
        pdframe.load(config).run(folder)
    finally:
        run_module.Silent.stepped = original
    assert (folder / "fdk" / "method.json").stat().st_mtime_ns == stamp
    assert steps == [4, 5, 6, 7, 8]  # one checkpoint was FDK's
    for name in ("volume.nii.gz", "fdk/volume.nii.gz"):
        assert (folder / name).read_bytes() == (finished.folder / name).read_bytes()
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert names == {str(p.relative_to(finished.folder)) for p in finished.folder.rglob("*") if p.is_file()}


def test_an_interrupted_run_says_so_and_keeps_its_checkpoint(toys, tmp_path):
    experiment = settings(solver={"name": "toy_bad", "how": "interrupt"})
    with pytest.raises(KeyboardInterrupt):
        experiment.run(tmp_path / "r")
    assert json.loads((tmp_path / "r" / "record.json").read_text())["status"] == "interrupted"
    assert (tmp_path / "r" / "checkpoint_0.safetensors").is_file()


def test_a_method_that_gives_nan_fails_the_run_and_not_the_others(toys, tmp_path):
    with pytest.raises(RunFailed, match="toy_bad: The volume holds NaN"):
        settings(solver={"name": "toy_bad"}).run(tmp_path / "r")
    record = json.loads((tmp_path / "r" / "record.json").read_text())
    assert record["status"] == "failed"
    assert [m["status"] for m in record["methods"]] == ["finished", "nonfinite"]
    assert record["methods"][1]["rows"][0]["metrics"] == {}
    assert not (tmp_path / "r" / "volume.nii.gz").exists() and (tmp_path / "r" / "figure.png").is_file()


def test_several_samples_give_a_mean_a_deviation_and_rows_with_their_own_cost(toys, tmp_path):
    changes = {"prior": {"name": "toy_white"}, "solver": {"name": "dds", "steps": 3, "label": "DDS"}}
    three = settings(**changes, samples=3).run(tmp_path / "three")
    one = settings(**changes).run(tmp_path / "one")
    fdk, single, mean = three.rows
    assert (single["method"], mean["method"]) == ("DDS, one sample", "DDS, mean of 3")
    assert (single["samples"], mean["samples"], fdk["samples"]) == (1, 3, 1)
    assert single["metrics"] == one.rows[1]["metrics"]  # the first sample does not depend on how many there are
    assert (
        mean["usage"]["network_calls"] == 3 * single["usage"]["network_calls"] == 3 * (3 + 1)
    )  # two at the last level
    assert mean["metrics"] != single["metrics"]
    samples = torch.stack(
        [torch.from_numpy(nib.load(three.folder / f"sample_{i}.nii.gz").get_fdata()) for i in range(3)]
    )
    files = [nib.load(three.folder / f"{name}.nii.gz").get_fdata() for name in ("volume", "deviation")]
    assert abs(samples.mean(0).numpy() - files[0]).max() <= 1.0  # each file rounds to whole HU
    assert abs(samples.std(0).numpy() - files[1]).max() <= 1.5
    assert files[1].max() > 10


def test_what_is_no_ct_volume_runs_without_hounsfield_units(toys, tmp_path):
    changes = {"dataset": {"name": "toy_flat"}, "operator": {"name": "toy_blur"}, "noise": {"name": "none"}}
    changes |= {"solver": {"name": "cgls", "iterations": 6}, "compare": [], "metrics": None}
    result = settings(**changes).run(tmp_path / "r")
    assert result.volume().shape == (1, 1, 6, 8) and result.rows[0]["metrics"] == {}
    assert not (tmp_path / "r" / "figure.png").exists()
    assert "-" in result.table.splitlines()[1]


def test_default_folder_is_named_after_file_and_settings(tmp_path, monkeypatch):
    from pdframe.config import dump, sha256

    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(dump(settings(solver={"name": "fdk"}, compare=[])))
    experiment = pdframe.load(tmp_path / "tiny.toml")
    assert experiment.run().folder == Path("runs") / f"tiny-{sha256(experiment)[:8]}"


EXAMPLES = sorted((Path(__file__).parents[1] / "docs" / "examples").glob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=[p.stem for p in EXAMPLES])
def test_examples_are_valid(path):
    from pdframe.config import load_sampling

    if path.stem == "sample":
        assert load_sampling(path).prior.name == "patch3d"
    else:
        assert pdframe.load(path).methods


def test_the_main_job_runs_in_its_shortest_form(tmp_path):
    short = ["solver.start=pseudoinverse", "solver.steps=1", "solver.cg=1", "solver.last_tilings=1", "budget.steps=1"]
    run = pdframe.load(EXAMPLES[0].with_name("chest_20_views.toml"), short).run(tmp_path / "main")
    assert [m["label"] for m in run.record["methods"]] == ["FDK", "TV", "patch3d + DDS"]
    assert run.record["measurement"]["protocol"] == "chest-v1" and run.record["measurement"]["finer"]
    assert (tmp_path / "main" / "figure.png").stat().st_size > 1e5
    psnr = {row["method"]: row["metrics"]["psnr_db"] for row in run.rows}
    assert psnr["FDK"] == pytest.approx(19.36, abs=0.02) and psnr["patch3d + DDS"] > psnr["FDK"]


def test_residual_of_the_truth_is_one_deviation():
    grid = pdframe.Grid((8, 8, 8), (10.0, 10.0, 10.0))
    operator = pdframe.build("operator", "cone_beam", grid=grid, views=4)
    x = 0.02 * torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = GaussianNoise(0.05)
    y = noise.sample(operator.forward(x), rng=torch.Generator().manual_seed(1))
    assert data_residual(operator, x, y, noise) == pytest.approx(1.0, abs=4 / sqrt(2 * y.numel()))
    assert data_residual(operator, x, operator.forward(x) + 0.1, noise) == pytest.approx(2.0, rel=1e-4)


def test_solutions_survive_their_file_and_are_not_mixed_up(tmp_path):
    grid = pdframe.Grid((4, 4, 4), (10.0, 10.0, 10.0))
    operator = pdframe.build("operator", "cone_beam", grid=grid, views=2)
    problem = pdframe.Problem(operator, operator.forward(torch.rand(1, 1, 4, 4, 4)))
    solution = solve(problem, pdframe.build("solver", "cgls", iterations=2))
    runfolder.save_solution(tmp_path / "s.safetensors", solution, "abc")
    back = runfolder.load_solution(tmp_path / "s.safetensors", "abc")
    assert torch.equal(back.x, solution.x) and back.trace == solution.trace and back.usage == solution.usage
    assert runfolder.load_solution(tmp_path / "s.safetensors", "other data") is None


def test_labels_become_different_folder_names():
    assert runfolder.folder_names(["TV", "tv", "patch3d + DDS", "samples", "***"]) == [
        "tv",
        "tv-2",
        "patch3d-dds",
        "samples-2",
        "method",
    ]


def test_table_aligns_and_speaks_markdown(finished):
    text, markdown = as_text(finished.rows).splitlines(), as_markdown(finished.rows).splitlines()
    assert text[0].split()[0] == "method" and len(text) == 3
    assert len({len(line) for line in markdown}) == 1 and set(markdown[1]) <= set("|-: ")
    assert f"{finished.rows[1]['metrics']['psnr_db']:.2f}" in text[2] and "network calls" in markdown[0]
