"""What `pdframe bench export` writes: the table that benchopt reads, checked without it, and with it where it is."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pdframe.bench.cli import bench as commands
from pdframe.bench.export import KEY, benchopt_lines, export_benchopt, export_folder
from pdframe.bench.rows import BENCH, ROW, ROWS
from pdframe.mistakes import ConfigError
from pdframe.runfolder import write_json

TITLE = 'Sparse "views", 8 and 20'
USAGE = {"network_flops": 3e12, "network_voxels": 2e6, "view_calls": 400, "peak_memory_bytes": 2**30, "seconds": 7.0}


def row(
    method: str = "dds", *, scan: str = "chest", seed: int = 0, psnr_db: float = 30.0, **more: Any
) -> dict[str, Any]:
    return {
        "case": f"8-views-{scan}-{seed}",
        "problem": "8 views",
        "scan": scan,
        "split": "test",
        "seed": seed,
        "method": method,
        "y_sha256": "ab" * 32,
        "status": "finished",
        "reason": "",
        "timing": True,
        "config": {"name": method, "steps": 3, "levels": [1, 2], "prior": {"name": "patch3d"}},
        "command": "pdframe bench run x.toml",
        "machine": {"cpu": "Acme 1", "cores": 2, "memory_gib": 4.0, "torch_threads": 1},
        "date": "2026-01-02T03:04:05+00:00",
        "estimate": "sample",
        "samples": 1,
        "metrics": {"psnr_db": psnr_db, "ssim": 0.9},
        "residual": 1.01,
        "usage": USAGE,
        "curve": [],
    } | more


def points(*psnr_db: float) -> list[dict[str, float]]:
    return [
        {"step": i, "seconds": float(i), "network_flops": 1e12 * i, "view_calls": 100 * i, "psnr_db": value}
        for i, value in enumerate(psnr_db, 1)
    ]


def rows() -> list[dict[str, Any]]:
    """Two seeds whose curves differ in length, a method without steps, a mean of samples, and two failures."""
    broken = {"estimate": None, "samples": 0, "metrics": {}, "residual": None, "usage": {}, "curve": None}
    broken |= {"status": "timeout", "reason": "no end within 9 s"}
    return [
        row(curve=points(20.0, 25.0, 30.0)),
        row(seed=1, psnr_db=28.0, curve=points(21.0, 28.0)),
        row(estimate="mean of 4", samples=4, psnr_db=31.0, curve=points(20.0, 25.0, 30.0)),
        row("fdk", psnr_db=18.0),
        row("fdk", seed=1, psnr_db=18.5),
        row("tv", psnr_db=27.0, curve=points(26.0)),
        row("tv", seed=1, **broken),
        row("dps", **broken),
        row("dps", seed=1, **broken),
        row("fdk", scan="0003", psnr_db=17.0),
    ]


def read(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def test_no_line_stands_for_two_measurements_and_every_row_has_its_result():
    lines = benchopt_lines(rows(), TITLE)
    assert max(Counter(tuple(line[key] for key in KEY) for line in lines).values()) == 1
    results = [line for line in lines if "objective_residual" in line]
    assert len(results) == len(rows())
    for line, given in zip(results, rows(), strict=True):
        assert line.get("objective_psnr_db") == given["metrics"].get("psnr_db")
        assert line["time"] == given["usage"].get("seconds")
        assert line["idx_rep"] == given["seed"] and line["pdframe_status"] == given["status"]


def test_the_results_of_all_seeds_stand_at_the_last_stop():
    lines = [line for line in benchopt_lines(rows(), TITLE) if line["solver_name"] == "dds"]
    assert [(line["idx_rep"], line["stop_val"], line["objective_psnr_db"]) for line in lines] == [
        (0, 1, 20.0),
        (0, 2, 25.0),
        (0, 3, 30.0),
        (1, 1, 21.0),
        (1, 2, 28.0),
        (1, 3, 28.0),
    ]


def test_the_table_keeps_text_as_text_and_settings_as_columns(tmp_path):
    table = export_benchopt(rows(), tmp_path, TITLE)
    assert table == tmp_path / "outputs" / "sparse-views-8-and-20.csv"
    lines = read(table)
    assert {line["dataset_name"] for line in lines} == {"chest", "scan 0003"}
    assert {line["solver_name"] for line in lines} == {"dds", "dds (mean of 4)", "fdk", "tv", "dps"}
    assert lines[0]["p_solver_prior.name"] == "patch3d" and lines[0]["p_solver_levels"] == "[1, 2]"
    assert lines[0]["system-processor"] == "Acme 1"
    assert not list(tmp_path.rglob("*.part"))


def test_an_objective_that_is_there_stays_and_the_table_is_replaced(tmp_path):
    (tmp_path / "objective.py").write_text("mine")
    export_benchopt(rows(), tmp_path, TITLE)
    table = export_benchopt(rows()[:1], tmp_path, TITLE)
    assert (tmp_path / "objective.py").read_text() == "mine"
    assert len(read(table)) == 3


def test_an_empty_bench_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no row yet"):
        export_benchopt([], tmp_path / "out", TITLE)
    assert not (tmp_path / "out").exists()


def test_the_command_exports_a_bench_folder_and_refuses_another(tmp_path):
    bench = tmp_path / "bench"
    for i, given in enumerate(rows()[3:5]):
        keys = ("estimate", "samples", "metrics", "residual", "usage")
        estimates = [{key: given[key] for key in keys}]
        write_json(bench / ROWS / f"case {i}" / "fdk" / ROW, {**given, "rows": estimates})
    write_json(bench / BENCH, {"title": "", "cases": [], "methods": []})
    done = CliRunner().invoke(commands, ["export", str(bench), "--benchopt", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert [line["objective_psnr_db"] for line in read(tmp_path / "out" / "outputs" / "bench.csv")] == ["18.0", "18.5"]
    with pytest.raises(ConfigError, match="no bench folder"):
        export_folder(tmp_path / "out", tmp_path / "more")
    (bench / ROWS).rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="no row yet"):
        export_folder(bench, tmp_path / "more")


BENCHOPT = """
from click.testing import CliRunner
from benchopt.benchmark import Benchmark
from benchopt.cli.process_results import merge, plot
from benchopt.results import read_results
from benchopt.results.result_processing import describe_results

benchmark = Benchmark("sparse")
df = read_results(benchmark.get_result_files()[0])
told = describe_results(df)
print(benchmark.pretty_name, told["solvers"], told["datasets"], told["n_repetitions"])
plots, _ = benchmark.get_plot_data(df, ["table"])
table = next(v for k, v in plots["table"].items() if "chest" in k)
print({line[0]: line[table["columns"].index("psnr_db")] for line in table["data"]})
for command, *arguments in (plot, "--no-display"), (merge, "--output", "joined"):
    done = CliRunner().invoke(command, ["sparse", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
"""


@pytest.mark.slow
def test_benchopt_reads_plots_and_joins_it(tmp_path):
    """In a process of its own: benchopt brings pandas and much else, and sets matplotlib up for itself."""
    if find_spec("benchopt") is None:
        pytest.skip("benchopt is not installed")
    export_benchopt(rows(), tmp_path / "sparse", TITLE)
    done = subprocess.run([sys.executable, "-c", BENCHOPT], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[:2] == [
        f"{TITLE} ['dds', 'dds (mean of 4)', 'dps', 'fdk', 'tv'] ['chest', 'scan 0003'] 2",
        "{'dds': 29.0, 'dds (mean of 4)': 31.0, 'dps': nan, 'fdk': 18.25, 'tv': 27.0}",
    ]
    outputs = tmp_path / "sparse" / "outputs"
    assert {p.name for p in outputs.glob("*.html")} == {"sparse.html", "sparse_sparse-views-8-and-20.html"}
    assert len(read(outputs / "joined.csv")) == len(benchopt_lines(rows(), TITLE))
