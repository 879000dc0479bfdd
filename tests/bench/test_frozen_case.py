"""Freezing of cases: whose volume may be in which split, and what noise lies on it."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from click.testing import CliRunner

from pdframe import build, runfolder
from pdframe.bench.case import freeze, missing_scans, open_case
from pdframe.bench.config import Bench, load_bench
from pdframe.bench.driver import Driver, RowPlan, _judged
from pdframe.bench.job import Outcome, Point
from pdframe.bench.rows import read_rows
from pdframe.bench.run import check_only, freeze_bench, run_bench
from pdframe.bench.summary import summarise
from pdframe.bench.tune import tune_bench
from pdframe.cli import main
from pdframe.core.budget import Usage
from pdframe.core.noise import GaussianNoise
from pdframe.core.problem import Metric
from pdframe.core.seeds import generator
from pdframe.core.solve import Solution, Status
from pdframe.mistakes import ConfigError
from pdframe.report.tables import grids_of

PHANTOM = {"name": "phantom", "shape": [6, 8, 10], "spacing_mm": [40.0, 30.0, 24.0]}
SCAN = Path(__file__).parents[1] / "data" / "made_ras_plain.nii.gz"


GAUSSIAN, NONE = {"name": "gaussian", "deviation": 0.3}, {"name": "none"}


def bench_of(*scans: dict[str, Any], noise: dict[str, Any] = GAUSSIAN) -> Bench:
    """FDK on the last of the scans; the others are to tune on."""
    base = {"operator": {"name": "cone_beam", "views": 4}, "noise": noise, "metrics": {"name": "ct"}}
    named = [
        {"label": f"scan {i}", "split": "validation" if i + 1 < len(scans) else "test", "dataset": scan}
        for i, scan in enumerate(scans)
    ]
    return load_bench({"base": base, "scan": named, "method": [{"name": "fdk"}]})


def nifti(path: Path) -> dict[str, Any]:
    return {"name": "nifti", "path": str(path)}


def test_one_file_by_two_paths_is_one_volume():
    round_about = SCAN.parent / ".." / "data" / SCAN.name
    with pytest.raises(ConfigError, match="is the same volume as 'scan 1' of the test split"):
        bench_of(nifti(SCAN), nifti(round_about))


def test_a_copy_of_a_file_is_refused_when_it_is_frozen(tmp_path):
    copy = shutil.copy(SCAN, tmp_path / "copy.nii.gz")
    bench = bench_of(nifti(SCAN), nifti(copy))
    (tuning,), (test,) = bench.cases("validation"), bench.cases("test")
    freeze(bench, tuning, tmp_path / "bench")
    with pytest.raises(ConfigError, match=r"'scan 1' \(test\) is the same volume as 'scan 0' \(validation\)"):
        freeze(bench, test, tmp_path / "bench")
    assert [path.name for path in (tmp_path / "bench" / "truth").iterdir()] == [f"{tuning.id}.safetensors"]


def test_the_bytes_of_a_case_do_not_depend_on_where_its_files_lie_and_two_scans_share_no_noise(tmp_path):
    y = {}
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        shutil.copy(SCAN, tmp_path / name / f"{name}.nii.gz")
        bench = bench_of(nifti(tmp_path / name / f"{name}.nii.gz"))
        freeze(bench, bench.cases("test")[0], tmp_path / name / "bench")
        y[name] = open_case(bench, bench.cases("test")[0], tmp_path / name / "bench").y
    assert torch.equal(y["here"], y["there"])
    noises = []
    for figure in ("ellipsoids", "shepp_logan"):
        both = [bench_of(PHANTOM | {"figure": figure}, noise=noise) for noise in (GAUSSIAN, NONE)]
        for i, bench in enumerate(both):
            freeze(bench, bench.cases("test")[0], tmp_path / f"{figure}{i}")
        noisy, clean = (open_case(b, b.cases("test")[0], tmp_path / f"{figure}{i}").y for i, b in enumerate(both))
        noises.append(noisy - clean)
    assert abs(float((noises[0] * noises[1]).mean())) < 0.1 * float(noises[0].std() * noises[1].std())


def test_a_scan_that_is_not_there_is_named_and_seen_before_hours_of_tuning(tmp_path, capsys):
    bench = bench_of(PHANTOM, nifti(tmp_path / "gone.nii.gz"))
    (note,) = missing_scans(bench, tmp_path)
    assert note.startswith("note: scan 'scan 1' cannot be frozen here: ") and "gone.nii.gz" in note
    tune_bench(load_bench(bench.resolved() | {"tuning": {"trials": 1}}), out_dir=tmp_path / "bench", console=True)
    told = capsys.readouterr().out
    assert 0 <= told.index("note: scan 'scan 1'") < told.index("tuning has ended")
    with pytest.raises(ConfigError, match=r"^scan 'scan 1': .*gone.nii.gz"):
        freeze(bench, bench.cases("test")[0], tmp_path)


def test_of_a_bench_that_is_to_be_tuned_the_cases_to_tune_on_are_frozen_first(tmp_path):
    table = bench_of(PHANTOM, PHANTOM | {"figure": "ellipsoids"}).resolved() | {"tuning": {"trials": 1}}
    freeze_bench(load_bench(table), out_dir=tmp_path / "bench")
    assert [path.name for path in (tmp_path / "bench" / "cases").iterdir()] == ["all--scan-0--s0"]
    tune_bench(load_bench(table), out_dir=tmp_path / "bench")
    freeze_bench(load_bench(table), out_dir=tmp_path / "bench")
    assert len(list((tmp_path / "bench" / "cases").iterdir())) == 2


def test_only_is_looked_at_before_anything_is_run(tmp_path):
    bench = bench_of(PHANTOM)
    check_only(bench, ["fdk", "all--scan-0--s0/*"])
    check_only(load_bench({**bench.resolved(), "method": [{"name": "fdk", "label": "FDK [8]"}]}), ["FDK [8]"])
    with pytest.raises(ConfigError, match=r"--only 'fbp' matches no row: give CASE/METHOD, .* or one of 'fdk'"):
        run_bench(bench, out_dir=tmp_path / "new", only=["fdk", "fbp"])
    table = bench_of(PHANTOM, PHANTOM | {"figure": "ellipsoids"}).resolved() | {"tuning": {"trials": 1}}
    (tmp_path / "b.toml").write_text(tomli_w.dumps(table))
    words = ["bench", "run", str(tmp_path / "b.toml"), "--out", str(tmp_path / "new"), "--only", "fbp"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2 and "matches no row" in done.stderr and not (tmp_path / "new").exists()


class Fussy(Metric):
    """Judges whole volumes, and no estimate on the way."""

    def measure(self, x, reference, mask=None):
        if x.shape != reference.shape:
            raise ValueError("shapes differ")
        return {"psnr_db": 30.0}


def judged_row(tmp_path: Path, x: torch.Tensor, point: torch.Tensor, metric: Metric) -> dict[str, Any]:
    """The row that comes of a volume and an estimate on the way to it."""
    bench = bench_of(PHANTOM)
    (plan,) = bench.cases("test")
    freeze(bench, plan, tmp_path)
    case = open_case(bench, plan, tmp_path)
    outcome = Outcome("finished", "", x[None], (Usage(),), ((),), (Point(1, Usage(), point),))
    driver = Driver(bench, tmp_path, bench.executor.build())
    judge = replace(case.judge("cpu"), metric=metric)
    driver._finish(RowPlan(plan, bench.method[0].solver), outcome, judge, case.y_sha256)
    (row,) = read_rows(tmp_path)
    return row


def test_a_result_that_cannot_be_judged_is_a_row_that_failed_with_what_was_found(tmp_path):
    row = judged_row(tmp_path, torch.full((1, 1, 6, 8, 10), 0.01), torch.full((1, 1, 3, 4, 5), 0.01), Fussy())
    assert (row["status"], row["metrics"]) == ("crashed", {})
    assert row["reason"] == "its result could not be judged: ValueError: shapes differ"
    folder = tmp_path / "rows" / row["case"] / "fdk"
    assert "Traceback" in (folder / "log.txt").read_text() and (folder / "volume.nii.gz").is_file()


def test_a_judge_that_has_no_memory_left_stops_the_bench_and_blames_no_method(tmp_path):
    class Hungry(Metric):
        def measure(self, x, reference, mask=None):
            raise MemoryError

    x = torch.full((1, 1, 6, 8, 10), 0.01)
    with pytest.raises(MemoryError):
        judged_row(tmp_path, x, x, Hungry())
    assert not (tmp_path / "rows").exists()


def test_a_volume_so_far_off_that_its_projection_overflows_has_no_residual_and_spoils_no_table(tmp_path):
    x = torch.full((1, 1, 6, 8, 10), 3e38)
    row = judged_row(tmp_path, x, x, Fussy())
    assert (row["status"], row["residual"]) == ("finished", None) and grids_of(summarise([row]))


def test_a_solver_cannot_draw_the_noise_again_by_the_seed_that_it_is_given(tmp_path):
    """Solvers know seed and noise model; were the noise keyed by these alone, A x would be y less that draw."""
    y = {}
    for noise in (GAUSSIAN, NONE):
        bench = bench_of(PHANTOM, noise=noise)
        (plan,) = bench.cases("test")
        freeze(bench, plan, tmp_path / noise["name"])
        y[noise["name"]] = open_case(bench, plan, tmp_path / noise["name"]).y
    drawn, model = y["gaussian"] - y["none"], build("noise", "gaussian", deviation=0.3)
    assert isinstance(model, GaussianNoise)
    guessed = model.sample(torch.zeros_like(drawn), rng=generator(plan.seed, "noise"))
    assert float(drawn.std()) == pytest.approx(float(guessed.std()), rel=0.1)
    assert abs(float((drawn * guessed).mean())) < 0.1 * float(drawn.std() * guessed.std())


def test_an_exact_answer_has_no_psnr_rather_than_an_infinite_one(tmp_path):
    """No mean could be taken with it, and one row would cost the others their table."""
    bench = bench_of(PHANTOM)
    (plan,) = bench.cases("test")
    freeze(bench, plan, tmp_path)
    judge = open_case(bench, plan, tmp_path).judge("cpu")
    exact = Solution(judge.item.x, Status.finished, Usage(), ())
    told = _judged(Outcome("finished", "", points=(Point(1, Usage(), judge.item.x),)), [exact], judge)
    (row,) = told["rows"]
    assert row["metrics"]["rmse_hu"] == 0 and "psnr_db" not in row["metrics"]
    assert all(math.isfinite(value) for value in (*row["metrics"].values(), *told["curve"][0].values()))


@pytest.mark.parametrize("command", ["run", "tune", "merge"])
def test_a_folder_with_files_of_ones_own_is_left_alone(tmp_path, command):
    source = tmp_path / "done"
    runfolder.write_json(source / "bench.json", {"bench_sha256": "0", "methods": [], "cases": []})
    (tmp_path / "mine").mkdir()
    toml = tmp_path / "mine" / "bench.toml"
    table = bench_of(PHANTOM, PHANTOM | {"figure": "ellipsoids"}).resolved() | {"tuning": {"trials": 1}}
    toml.write_text(mine := "# mine\n" + tomli_w.dumps(table))
    words = [str(toml.parent), str(source)] if command == "merge" else [str(toml), "--out", str(toml.parent)]
    done = CliRunner().invoke(main, ["bench", command, *words])
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1) and "but it holds bench.toml" in done.stderr
    assert toml.read_text() == mine and sorted(p.name for p in toml.parent.iterdir()) == ["bench.toml"]
