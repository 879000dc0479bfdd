"""A bench from end to end, in real worker processes: what it leaves, what kills do to it, what can be joined."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from click.testing import CliRunner
from toy_bench import TABLE, lasting, outside

from pdframe.bench.answer import forget_other_attempts
from pdframe.bench.case import open_case
from pdframe.bench.config import Bench, load_bench
from pdframe.bench.driver import Driver, RowPlan
from pdframe.bench.merge import merge
from pdframe.bench.rows import read_row_files, read_rows
from pdframe.bench.run import freeze_bench, run_bench
from pdframe.cli import main
from pdframe.core.problem import Problem
from pdframe.lock import FolderBusy, only_one
from pdframe.measure import digest
from pdframe.mistakes import ConfigError

Make = Callable[..., Bench]
pytestmark = pytest.mark.usefixtures("private")


@pytest.fixture(scope="module")
def finished(make_bench: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bench of the toys, run to its end."""
    folder = tmp_path_factory.mktemp("bench") / "done"
    assert run_bench(make_bench(), out_dir=folder).ran == 4
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def everything(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()
    }


def results(folder: Path) -> list[dict[str, Any]]:
    return [lasting(row) for row in read_row_files(folder)]


def test_the_folder_holds_every_case_and_every_row(finished: Path):
    cases = [f"all--head--s{seed}" for seed in (0, 1)]
    want = {"bench.toml", "bench.json", *(f"truth/{case}.safetensors" for case in cases)}
    want |= {f"cases/{case}/{name}" for case in cases for name in ("case.json", "measurement.safetensors")}
    row = ("row.json", "trace.jsonl", "volume.nii.gz")
    want |= {f"rows/{case}/{method}/{name}" for case in cases for method in ("descent", "short") for name in row}
    assert set(everything(finished)) == want
    assert json.loads((finished / "bench.json").read_text())["cases"] == cases


def test_every_method_got_the_same_bytes_and_seeds_differ(finished: Path, make_bench: Make):
    rows, bench = read_rows(finished), make_bench()
    driver, case = Driver(bench, finished, bench.executor.build()), open_case(bench, bench.cases()[0], finished)
    jobs = [driver.job(RowPlan(case.plan, method.part("all")), case) for method in bench.method]
    assert [digest(job.y) for job in jobs] == [row["y_sha256"] for row in rows[:2]]
    assert [(r["seed"], r["method"]) for r in rows] == [(s, m) for s in (0, 1) for m in ("Descent", "Short")]
    assert rows[0]["y_sha256"] == rows[1]["y_sha256"] != rows[2]["y_sha256"] == rows[3]["y_sha256"]


def test_a_row_says_what_was_done_and_what_it_cost(finished: Path):
    row = read_rows(finished)[0]
    assert (row["status"], row["estimate"], row["samples"], row["timing"]) == ("finished", "sample", 1, True)
    assert row["config"]["name"] == "toy_descent" and row["config"]["steps"] == 6
    assert row["usage"]["view_calls"] == 48 and row["usage"]["seconds"] > 0
    assert row["command"].endswith("--only all--head--s0/descent") and row["machine"]["torch"] == torch.__version__
    steps = [point["step"] for point in row["curve"]]
    assert steps == [1, 2, 3, 4, 5, 6] and row["curve"][2]["view_calls"] == 24
    assert row["curve"][-1]["psnr_db"] == row["metrics"]["psnr_db"] and "ssim" not in row["curve"][0]
    assert row["metrics"].keys() >= {"psnr_db", "ssim", "body_rmse_hu"} and row["calibration"] is None


def test_a_row_is_what_the_same_solve_gives_here(finished: Path, make_bench: Make):
    from pdframe.core.seeds import generator
    from pdframe.core.solve import solve

    bench = make_bench()
    base, row = bench.problem_of("all"), read_rows(finished)[3]
    item = bench.scan[0].dataset.build().load("shepp_logan")
    operator, noise = base.operator.build(grid=item.grid), base.noise.build()
    key = json.loads((finished / "cases" / "all--head--s1" / "case.json").read_text())["truth_sha256"]
    y = noise.sample(operator.forward(item.x), rng=generator(1, "noise", key))
    assert digest(y) == row["y_sha256"]
    solver = bench.method[1].part("all").build(operator=operator)
    solution = solve(Problem(operator, y, noise), solver, rng=generator(1, "sample", 0))
    assert base.metrics.build().measure(solution.x, item.x)["psnr_db"] == pytest.approx(row["metrics"]["psnr_db"])


def test_a_second_run_changes_nothing_and_says_so(finished: Path, make_bench: Make, capsys: pytest.CaptureFixture[str]):
    before = everything(finished)
    assert run_bench(make_bench(), out_dir=finished, console=True).ran == 0
    assert everything(finished) == before
    assert "all 4 rows were done before: nothing to do" in capsys.readouterr().out


def test_the_resolved_bench_in_the_folder_is_the_same_bench(finished: Path):
    again = load_bench(finished / "bench.toml")
    assert run_bench(again, out_dir=finished).ran == 0


def test_a_folder_in_use_is_refused(finished: Path, make_bench: Make):
    with only_one(finished), pytest.raises(FolderBusy, match="in use by another process"):
        run_bench(make_bench(), out_dir=finished)


def test_other_cases_and_changed_methods_are_refused(finished: Path, copy: Path, make_bench: Make):
    with pytest.raises(ConfigError, match="other problems, scans, seeds or budget"):
        run_bench(make_bench("base.operator.views=5"), out_dir=copy)
    with pytest.raises(ConfigError, match="other settings of 'Short'; give the changed method another label"):
        run_bench(make_bench("method.1.steps=3"), out_dir=copy)
    assert results(copy) == results(finished)
    assert (copy / "bench.toml").read_bytes() == (finished / "bench.toml").read_bytes()


def test_a_damaged_case_is_refused(copy: Path, make_bench: Make):
    truth = copy / "truth" / "all--head--s0.safetensors"
    truth.write_bytes(truth.read_bytes()[:-1] + b"x")
    shutil.rmtree(copy / "rows" / "all--head--s0" / "short")
    with pytest.raises(ValueError, match="is not the truth that was frozen"):
        run_bench(make_bench(), out_dir=copy)


def test_what_a_killed_driver_left_half_written_is_put_right(copy: Path, make_bench: Make):
    before = results(copy)
    rows = copy / "rows" / "all--head--s0"
    os.replace(rows / "short", rows / ".short.old")  # it was being replaced
    (rows / ".short.new").mkdir()
    (rows / ".short.new" / "row.json").write_text((rows / ".short.old" / "row.json").read_text())
    assert len(read_rows(copy)) == len(before) - 1  # the half-made one is not counted
    assert run_bench(make_bench(), out_dir=copy).ran == 0
    assert results(copy) == before and sorted(p.name for p in rows.iterdir()) == ["descent", "short"]


def test_cases_can_be_frozen_alone_and_are_the_same(finished: Path, make_bench: Make, tmp_path: Path):
    freeze_bench(make_bench(), out_dir=tmp_path / "frozen")
    assert not (tmp_path / "frozen" / "rows").exists()
    paths = [sorted((folder / "cases").glob("*/measurement.safetensors")) for folder in (tmp_path / "frozen", finished)]
    measured = [{path.parent.name: path.read_bytes() for path in found} for found in paths]
    assert measured[0] == measured[1] and len(measured[0]) == 2


UNRULY = {
    "fair": "finished",
    "buffers": "unfair",
    "crash": "crashed",
    "quit": "crashed",
    "memory": "out_of_memory",
    "shape": "crashed",
    "killed": "lost",
    "killed once": "finished",
}


@pytest.mark.skipif(sys.platform != "linux", reason="kills, faults and memory limits as Linux has them")
def test_what_one_method_does_hurts_no_other(make_bench: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    methods = [{"name": "toy_descent", "label": how, "how": how} for how in (*UNRULY, "hang")]
    absent = {"name": "toy_absent", "label": "absent"}
    changes = {"method": [*methods, absent], "seeds": [0], "memory_limit_gib": 2.0}
    changes["executor"] = {"name": "local", "workers": 2, "threads": 1}
    run_bench(make_bench("timeout_s=12", **changes), out_dir=Path("bench"), only=["hang"])
    assert "the method hangs" in next(Path("bench/rows").glob("*/hang/log.txt")).read_text()
    assert run_bench(make_bench(**changes), out_dir=Path("bench")).ran == len(UNRULY) + 1
    rows = {row["method"]: row for row in read_rows("bench")}
    want = {**UNRULY, "hang": "timeout", "absent": "backend_missing"}
    assert {method: row["status"] for method, row in rows.items()} == want
    assert rows["hang"]["reason"] == "stopped at its limit of 12 s"
    assert rows["crash"]["reason"] == "ended by SIGSEGV: Fatal Python error: Segmentation fault"
    assert rows["quit"]["reason"].startswith("ended with exit code 7 and no outcome")
    assert "allocate memory" in rows["memory"]["reason"] and "no_such_library" in rows["absent"]["reason"]
    assert rows["shape"]["reason"] == "its volume has shape (1, 1, 6, 8, 9), the grid asks for (1, 1, 6, 8, 10)"
    assert rows["killed"]["reason"] == "killed from outside by SIGKILL"
    for row in rows.values():
        assert bool(row["metrics"]) == (row["status"] == "finished") and not row["timing"]
    # A worker that was killed and started again gives the same bits.
    assert rows["killed once"]["metrics"] == rows["fair"]["metrics"]
    assert rows["killed once"]["usage"]["view_calls"] == rows["fair"]["usage"]["view_calls"] == 48
    # What was not the method's doing is tried again; what was is not.
    asked = run_bench(make_bench(**changes), out_dir=Path("bench"), only=["absent", "quit", "hang", "buffers"])
    assert (asked.ran, asked.rows) == (1, 4)


def command(toml: Path, folder: Path) -> subprocess.Popen[bytes]:
    words = ["bench", "run", str(toml), "--out", str(folder), "--only", "Short"]
    return subprocess.Popen([sys.executable, "-m", "pdframe", *words], env=outside(), stdout=subprocess.DEVNULL)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_driver_goes_on_and_ends_with_the_same_rows(finished: Path, make_bench: Make, tmp_path: Path):
    toml, folder = tmp_path / "toys.toml", tmp_path / "killed"
    toml.write_text(tomli_w.dumps(TABLE))
    driver = command(toml, folder)
    first = folder / "rows" / "all--head--s0" / "short" / "row.json"
    while not first.is_file():
        assert driver.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert len(read_rows(folder)) == 1
    stamp = first.stat().st_mtime_ns
    assert run_bench(load_bench(toml), out_dir=folder, only=["Short"]).ran == 1
    assert first.stat().st_mtime_ns == stamp
    want = [row for row in results(finished) if row["method"] == "Short"]
    assert [{**row, "command": ""} for row in results(folder)] == [{**row, "command": ""} for row in want]
    for row in want:
        volume = Path("rows") / row["case"] / "short" / "volume.nii.gz"
        assert (folder / volume).read_bytes() == (finished / volume).read_bytes()


def test_a_timing_pass_runs_those_again_that_ran_beside_others_and_changes_nothing_but_time(
    finished: Path, make_bench: Make, tmp_path: Path
):
    folder = tmp_path / "bench"
    run_bench(make_bench("executor.workers=2"), out_dir=folder)
    assert not any(row["timing"] for row in read_row_files(folder))
    timed = run_bench(make_bench("executor.workers=2"), out_dir=folder, timing=True)
    assert timed.ran == timed.rows and all(row["timing"] for row in read_row_files(folder))
    assert run_bench(make_bench("executor.workers=2"), out_dir=folder, timing=True).ran == 0
    assert results(folder) == results(finished)


def test_merging_what_two_machines_ran_gives_the_whole(finished: Path, tmp_path: Path):
    parts = []
    for name, gone in (("a", "descent"), ("b", "short")):
        part = Path(shutil.copytree(finished, tmp_path / name))
        shutil.rmtree(part / "rows" / "all--head--s1" / gone)
        parts.append(part)
    merged = merge(tmp_path / "whole", parts)
    assert (merged.added, merged.known) == (4, 2)
    assert results(tmp_path / "whole") == results(finished)
    assert set(everything(tmp_path / "whole")) == set(everything(finished))
    assert merge(tmp_path / "whole", parts).added == 0
    assert merge(parts[0], parts[1:]).added == 1 and results(parts[0]) == results(finished)


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("path", "changes", "message"),
    [
        ("bench.json", {"bench_sha256": "other"}, "is of another bench than"),
        ("cases/all--head--s1/case.json", {"y_sha256": "other"}, "case all--head--s1 has other values"),
        ("rows/all--head--s1/short/row.json", {"config_sha256": "other"}, "was run with other settings than"),
        ("rows/all--head--s1/short/row.json", {"status": "crashed", "rows": []}, "has another result than"),
    ],
)
def test_a_contradiction_is_refused_before_a_file_moves(
    path: str, changes: dict[str, Any], message: str, finished: Path, copy: Path, tmp_path: Path
):
    change(copy / path, **changes)
    with pytest.raises(ConfigError, match=message):
        merge(tmp_path / "whole", [finished, copy])
    assert not (tmp_path / "whole").exists()


def test_of_two_equal_rows_the_one_that_was_timed_is_kept(finished: Path, copy: Path):
    path = "rows/all--head--s1/short/row.json"
    for here, there, kept in ((False, True, True), (True, False, True)):
        other = Path(shutil.copytree(finished, copy.with_name(f"other-{here}")))
        change(copy / path, timing=here)
        change(other / path, timing=there)
        merge(copy, [other])
        assert json.loads((copy / path).read_text())["timing"] is kept


def test_a_row_that_was_lost_gives_way_to_one_that_ended(finished: Path, copy: Path, tmp_path: Path):
    change(copy / "rows/all--head--s1/short/row.json", status="lost", rows=[], curve=[])
    assert merge(copy, [finished]).added == 1
    assert results(copy) == results(finished)
    change(copy / "rows/all--head--s1/short/row.json", status="lost", rows=[], curve=[])
    merge(tmp_path / "whole", [finished, copy])
    assert results(tmp_path / "whole") == results(finished)


def test_the_commands(finished: Path, copy: Path, tmp_path: Path):
    (tmp_path / "toys.toml").write_text(tomli_w.dumps(TABLE))
    done = CliRunner().invoke(main, ["bench", "run", str(tmp_path / "toys.toml"), "--out", str(copy)])
    assert done.exit_code == 0 and "nothing to do" in done.output
    assert {"report.html", "table.md", "table.csv", "cases.csv"} <= {path.name for path in copy.iterdir()}
    before = everything(copy)
    done = CliRunner().invoke(main, ["bench", "run", str(tmp_path / "toys.toml"), "--out", str(copy)])
    assert done.exit_code == 0 and "nothing to do" in done.output and everything(copy) == before
    row = copy / "rows" / "all--head--s1" / "short" / "row.json"
    for option, spoilt in (("--retry", {"status": "crashed", "rows": []}), ("--timing", {"timing": False})):
        change(row, **spoilt)
        told = ["bench", "run", str(tmp_path / "toys.toml"), "--out", str(copy)]
        assert "nothing to do" in CliRunner().invoke(main, told).output
        assert "1 rows run" in CliRunner().invoke(main, [*told, option]).output
        assert results(copy) == results(finished)
    frozen = ["bench", "run", str(tmp_path / "toys.toml"), "--out", str(tmp_path / "frozen"), "--freeze"]
    assert "2 cases of the test split are frozen" in CliRunner().invoke(main, frozen).output
    assert not (tmp_path / "frozen" / "rows").exists()
    done = CliRunner().invoke(main, ["bench", "merge", str(copy), str(finished)])
    assert done.exit_code == 0 and "0 rows joined" in done.output
    done = CliRunner().invoke(main, ["bench", "run", str(tmp_path / "toys.toml"), "--quick"])
    assert done.exit_code == 2 and "there is no [quick] table" in done.stderr


def test_the_command_of_a_row_repeats_it_and_one_command_does_all(toys: None, tmp_path: Path, monkeypatch):
    """Tunes, runs and reports; the command in a row then runs that row again, in a folder that lacks it."""
    monkeypatch.chdir(tmp_path)
    other = {"label": "v", "split": "validation", "dataset": {**TABLE["scan"][0]["dataset"], "figure": "ellipsoids"}}
    method = {**TABLE["method"][0], "search": {"steps": [2, 3]}}
    tuned = {**TABLE, "scan": [*TABLE["scan"], other], "method": [method], "tuning": {"trials": 2}, "seeds": [0, 1]}
    Path("toys.toml").write_text(tomli_w.dumps(tuned))
    done = CliRunner().invoke(main, ["bench", "run", "toys.toml", "--set", "seeds=[0]", "--out", "mine"])
    assert done.exit_code == 0, done.output
    assert Path("mine/tuning/lock.json").is_file() and Path("mine/report.html").is_file()
    (row,) = read_row_files(Path("mine"))
    shutil.rmtree(Path("mine/rows", row["case"]))
    program, *words = shlex.split(row["command"])
    assert program == "pdframe" and CliRunner().invoke(main, words).exit_code == 0
    (again,) = read_row_files(Path("mine"))
    assert lasting(again) == lasting(row)


def test_what_a_killed_attempt_left_is_used_again_only_with_the_same_prior_and_solver(tmp_path: Path):
    left = [tmp_path / f"{name}.safetensors" for name in ("checkpoint_1", "solution_0", "point_3")]
    for made_with, kept in (("old weights", False), ("old weights", True), ("new weights", False)):
        for path in left:
            path.touch()
        forget_other_attempts(tmp_path, made_with)
        assert [path.exists() for path in left] == [kept] * 3
