"""Every bench of benchmarks/quality runs in its shortest form, and every method of it ends with an estimate."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest

from pdframe.bench.config import load_bench
from pdframe.bench.rows import read_rows
from pdframe.bench.run import run_bench

FOLDER = Path(__file__).parents[2] / "benchmarks" / "quality"
BENCHES = sorted(
    path.name for path in FOLDER.glob("*.toml") if "\n[smoke]\n" in path.read_text() and path.stem != "small"
)


def test_the_benches_are_there():
    named = {"sparse_view", "limited_angle", "low_dose", "steps", "limited_data", "ablation", "generalise", "chest_v1"}
    assert {Path(name).stem for name in BENCHES} == named


def test_every_bench_says_how_long_it_takes():
    benches = [text for path in FOLDER.glob("*.toml") if "\ntitle = " in (text := path.read_text())]
    assert len(benches) == len(BENCHES) + len(["native", "anisotropic"])
    assert all(re.search(r"Budget: [\d.]+ (minutes|hours?) on 2 cores", text) for text in benches)


@pytest.mark.parametrize("name", BENCHES)
def test_its_whole_and_its_quick_form_are_valid(name: str):
    whole, quick = load_bench(FOLDER / name), load_bench(FOLDER / name, variant="quick")
    assert whole.cases("test") and not quick.tuning
    packaged = [scan.dataset for scan in quick.scan]
    assert all(d.name == "sample" or Path(d.settings.path).resolve().is_file() for d in packaged)


@pytest.mark.parametrize("name", BENCHES)
def test_its_smoke_form_leaves_a_row_of_every_method(name: str, tmp_path: Path):
    bench = load_bench(FOLDER / name, variant="smoke")
    run_bench(bench, out_dir=tmp_path / "bench", variant="smoke")
    rows = read_rows(tmp_path / "bench")
    told = {row["method"]: f"{row['status']}: {row['reason']}" for row in rows if not row["metrics"]}
    # A prior without weights in this installation says so in its row; every other method has to work.
    assert all("this installation came without" in line for line in told.values()), told
    assert {row["method"] for row in rows} == {method.label for method in bench.method}
    assert all(math.isfinite(row["metrics"]["psnr_db"]) for row in rows if row["metrics"])
    assert len(told) < len(bench.method)
    shutil.rmtree(tmp_path / "bench")
