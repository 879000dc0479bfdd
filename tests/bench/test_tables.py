"""From rows to tables: intervals, paired differences, failures told, costs, and what it takes to be as good."""

from __future__ import annotations

import csv
import io
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pdframe.bench.reach import amount_to_reach, reach
from pdframe.bench.statistics import interval, sign_flip_p
from pdframe.bench.summary import Summary, summarise
from pdframe.report.markup import Grid, as_latex, as_markdown
from pdframe.report.tables import as_csv, calibration_grids, cases_csv, grids_of, heading, number, numbers, write_tables

USAGE = {"network_flops": 3e12, "network_voxels": 2.5e8, "view_calls": 400, "seconds": 7.0, "peak_memory_bytes": 2e9}


def row(method: str, scan: str, seed: int, psnr_db: float, problem: str = "8 views", **more: Any) -> dict[str, Any]:
    return {
        "problem": problem,
        "scan": scan,
        "split": "test",
        "seed": seed,
        "method": method,
        "y_sha256": f"{problem} {scan} {seed}",
        "status": "finished",
        "reason": "",
        "timing": True,
        "estimate": "sample",
        "samples": 1,
        "metrics": {"psnr_db": psnr_db, "ssim": psnr_db / 40},
        "residual": 1.0 + seed / 10,
        "usage": USAGE,
        "curve": [],
    } | more


def failure(method: str, scan: str, seed: int, status: str, reason: str, **more: Any) -> dict[str, Any]:
    empty = {"estimate": None, "samples": 0, "metrics": {}, "residual": None, "usage": {}}
    return row(method, scan, seed, 0.0, status=status, reason=reason, **empty, **more)


def bench() -> list[dict[str, Any]]:
    rows = []
    for i, scan in enumerate(("a", "b", "c")):
        for seed in (0, 1):
            base = 25.0 + i + seed / 10
            rows.append(row("TV", scan, seed, base))
            rows.append(row("DDS", scan, seed, base + 1 + i / 10, timing=scan != "c"))
            mean = {"estimate": "mean of 4", "samples": 4, "usage": {**USAGE, "seconds": 28.0 + seed}}
            rows.append(row("DDS", scan, seed, base + 2, **mean))
            if (scan, seed) == ("c", 1):
                rows.append(failure("DPS", scan, seed, "out_of_memory", "needed 9 GiB of 8 GiB"))
            else:
                rows.append(row("DPS", scan, seed, base - 3))
            rows.append(failure("Late", scan, seed, "timeout", "stopped after 60 s"))
    return rows


def line_of(summary: Summary, label: str, problem: str = "8 views"):
    return next(line for line in summary.lines if (line.label, line.problem) == (label, problem))


def test_each_method_and_estimate_is_a_line_compared_by_pairs():
    summary = summarise(bench())
    assert [line.label for line in summary.lines] == ["TV", "DDS", "DDS, mean of 4", "DPS", "Late"]
    assert summary.reference == "TV"
    assert line_of(summary, "TV").difference is None
    dds = line_of(summary, "DDS")
    gained = {(scan, seed): 1 + i / 10 for i, scan in enumerate("abc") for seed in (0, 1)}
    assert dds.difference.interval.mean == pytest.approx(1.1)
    assert dds.difference.interval.low == pytest.approx(interval(gained).low)
    # The methods' own intervals overlap by far; the pairs do not.
    assert dds.metrics["psnr_db"].low < line_of(summary, "TV").metrics["psnr_db"].high
    assert dds.difference.interval.low > 0.99
    assert dds.difference.worst == pytest.approx(1.0)


def test_p_values_are_by_patients_and_corrected_for_all_lines():
    summary = summarise(bench())
    p = sign_flip_p({(scan, seed): 1.0 for scan in "abc" for seed in (0, 1)})
    assert p == 0.25
    compared = [line.difference for line in summary.lines if line.difference]
    assert summary.comparisons == len(compared) == 3
    assert [d.p for d in compared] == [0.25] * 3
    assert [d.p_holm for d in compared] == [0.75] * 3


def test_the_reference_can_be_any_method():
    summary = summarise(bench(), reference="DDS")
    assert line_of(summary, "DDS").difference is None
    assert line_of(summary, "DDS, mean of 4").difference.interval.mean == pytest.approx(0.9)
    with pytest.raises(ValueError, match="no row is of the reference 'DSD'; methods: TV, DDS"):
        summarise(bench(), reference="DSD")


def test_seconds_of_different_machines_do_not_compare_and_versions_are_told():
    here, there = ({"cpu": cpu, "torch": "2.13", "pdframe": "0.1", "plugins": {}} for cpu in ("small", "large"))
    curve = [{"step": 1, "seconds": 1.0, "psnr_db": 30.0}]
    rows = [row(m, s, 0, 30.0, machine=here, curve=curve) for m in "AB" for s in "ab"]
    assert all(line.timing for line in summarise(rows).lines) and all(found.timing for found in reach(rows, "A"))
    mixed = [r if r["method"] == "A" else {**r, "machine": there} for r in rows]
    assert not any(line.timing for line in summarise(mixed).lines)
    assert [found.timing for found in reach(mixed, "A")] == [True, False]
    notes = grids_of(summarise(mixed))[0].notes
    assert any("different machines" in note for note in notes) and not any("versions" in note for note in notes)
    lost = [*rows, failure("A", "c", 0, "timeout", "late"), failure("B", "c", 0, "timeout", "late")]
    assert all(line.timing for line in summarise(lost).lines) and all(found.timing for found in reach(lost, "A"))
    newer = [r if r["method"] == "A" else {**r, "machine": {**here, "torch": "2.14"}} for r in rows]
    assert any("2 sets of versions" in note for note in grids_of(summarise(newer))[0].notes)


def test_worst_is_the_other_way_round_for_an_error():
    rows = [row("A", s, 0, 30.0, metrics={"rmse_hu": 50.0}) for s in "ab"]
    rows += [row("B", s, 0, 30.0, metrics={"rmse_hu": v}) for s, v in (("a", 40.0), ("b", 52.0))]
    assert line_of(summarise(rows, metric="rmse_hu"), "B").difference.worst == 2.0


def test_failures_are_rows_with_their_reason_not_gaps():
    summary = summarise(bench())
    dps, late = line_of(summary, "DPS"), line_of(summary, "Late")
    assert dps.failures == {"out of memory: needed 9 GiB of 8 GiB": ["c, seed 1"]}
    assert dps.metrics["psnr_db"].cases == 5
    assert dps.difference.interval.cases == 5
    assert dps.ended == {"finished": 5, "out_of_memory": 1}
    assert (late.metrics, late.difference, late.failed) == ({}, None, 6)


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match="no rows yet"):
        summarise([])
    with pytest.raises(ValueError, match="splits test, validation"):
        summarise([row("A", "a", 0, 1.0), row("A", "b", 0, 1.0, split="validation")])
    with pytest.raises(ValueError, match="two different measurements"):
        summarise([row("A", "a", 0, 1.0), row("B", "a", 0, 1.0, y_sha256="another")])


def test_no_mean_stands_bare_in_a_table():
    text = as_markdown(grids_of(summarise(bench())))
    assert "| 26.05 [25.00, 27.10] |" in text
    assert "+1.10 [+1.00, +1.20]" in text
    assert "| 1.050 [1.000, 1.100] |" in text
    assert "3 patients x 2 seeds" in text
    assert "3 patients, 2 seeds, 5 cases; 1 failed" in text
    assert "28 to 29" in text
    assert "covers at best about 75%" in text
    assert "DPS: out of memory: needed 9 GiB of 8 GiB (c, seed 1)." in text
    assert "Late: timeout: stopped after 60 s (a, seed 0; a, seed 1; b, seed 0;" in text


def test_rows_that_ran_beside_others_are_marked():
    dds, tv = (next(c for c in grids_of(summarise(bench()))[0].cells if c[0] == name) for name in ("DDS", "TV"))
    assert "7*" in dds
    assert "7" in tv
    assert any("not for timing" in note for note in grids_of(summarise(bench()))[0].notes)


def test_rows_of_other_weights_or_another_machine_are_told():
    rows = [row("DDS", s, 0, 30.0, prior_sha256=s, machine={"cpu": s}) for s in "ab"]
    (grid,) = grids_of(summarise(rows))
    assert "DDS: its rows are of 2 different weights of its prior; run them all again." in grid.notes
    assert "DDS: its rows ran on 2 kinds of machine; their seconds do not compare." in grid.notes


def test_one_case_says_that_it_has_no_interval():
    grid = grids_of(summarise([row("A", "a", 0, 30.0), row("B", "a", 0, 31.0)]))[0]
    assert grid.cells[1][1] == "30.00 (1 case, no interval)"
    assert any("With one patient" in note for note in grid.notes)


def test_pages_show_the_usual_metrics_and_the_compared_one_and_csv_all():
    more = {"psnr_db": 30.0, "ssim_slices": 0.9, "body_psnr_db": 28.0}
    summary = summarise([row(m, "a", 0, 30.0, metrics=more) for m in "AB"], metric="body_psnr_db")
    assert grids_of(summary)[0].cells[0][:4] == ["method", "PSNR, dB", "body PSNR, dB", "body PSNR, dB less A"]
    assert more.keys() <= set(as_csv(summary).splitlines()[0].split(","))


def test_csv_holds_intervals_costs_and_failures():
    lines = {(r["method"], r["samples"]): r for r in csv.DictReader(io.StringIO(as_csv(summarise(bench()))))}
    dds = lines["DDS", "4"]
    assert float(dds["psnr_db"]) == pytest.approx(28.05)
    assert float(dds["psnr_db_low"]) < 28.05 < float(dds["psnr_db_high"])
    assert float(dds["psnr_db_difference"]) == pytest.approx(2.0)
    assert [dds[k] for k in ("patients", "seeds", "cases", "failed")] == ["3", "2", "6", "0"]
    assert [float(dds[k]) for k in ("seconds_least", "seconds_most")] == [28.0, 29.0]
    assert [float(dds[k]) for k in ("network_tflop", "voxel_evaluations_m", "peak_gb")] == [3.0, 250.0, 2.0]
    assert lines["DPS", "1"]["failures"] == "out of memory: needed 9 GiB of 8 GiB (c, seed 1)"
    late = lines["Late", "1"]
    assert (late["psnr_db"], late["failed"], late["ended"]) == ("", "6", "timeout 6")


def test_every_row_has_a_line_of_its_own():
    lines = list(csv.DictReader(io.StringIO(cases_csv(bench()))))
    assert len(lines) == len(bench())
    lost = next(line for line in lines if line["status"] == "out_of_memory")
    assert (lost["method"], lost["reason"], lost["psnr_db"], lost["seconds"]) == (
        "DPS",
        "needed 9 GiB of 8 GiB",
        "",
        "",
    )


def test_the_latex_is_escaped_and_has_as_many_cells_in_every_line():
    rows = [row("A_1 & B", s, 0, v, problem="50% of #1") for s, v in (("a", 30.0), ("b", 31.0))]
    text = as_latex(grids_of(summarise(rows)))
    assert r"A\_1 \& B" in text
    assert r"50\% of \#1" in text
    head, body = (line for line in text.splitlines() if line.endswith(r"\\"))
    assert head.count(" & ") == body.count(" & ")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_latex_compiles(tmp_path):
    rows = [row("[5] A_1 & B", s, 0, v, problem="50% of #1") for s, v in (("a", 30.0), ("b", 31.0))]
    text = as_latex(grids_of(summarise(rows)))
    page = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + text + "\\end{document}\n"
    (tmp_path / "t.tex").write_text(page)
    done = subprocess.run(["pdflatex", "-interaction=batchmode", "t.tex"], cwd=tmp_path, check=False)
    assert done.returncode == 0


def test_a_cell_that_begins_with_a_bracket_is_no_option_of_latex():
    (line,) = (line for line in as_latex([Grid("t", [["a", "b"], ["[5] A<B|C", "1"]], [])]).splitlines() if "A" in line)
    assert line == r"{}[5] A\textless{}B\textbar{}C & 1 \\"


def test_markdown_cells_cannot_break_the_table():
    text = as_markdown([Grid("t", [["a|b", "c"], ["1", "2"]], ["* note"])])
    body = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in body} == {3}
    assert "\\* note" in text


def test_headings_and_digits_follow_the_metric_into_a_mask():
    assert heading("body_psnr_db") == "body PSNR, dB"
    assert heading("my_metric") == "my metric"
    assert number(31.234, "body_psnr_db") == "31.23"
    assert [number(v) for v in (12345.6, 0.12345, 7.0)] == ["12,346", "0.123", "7"]


def test_numbers_that_stand_together_have_as_many_decimals():
    assert numbers([0.952, 0.751, 1.08]) == ["0.95", "0.75", "1.08"]
    assert numbers([79.7, 102.4]) == ["80", "102"]
    assert numbers([1.0, 1.0, 1.0], "times_faster") == ["1.00"] * 3
    assert numbers([-0.2, 0.31], "psnr_db", sign=True) == ["-0.20", "+0.31"]
    assert numbers([math.inf, 31.2]) == ["inf", "31.2"]


def curve(*points: tuple[float, float]) -> list[dict[str, float]]:
    return [{"step": i, "seconds": s, "network_flops": s * 1e9, "psnr_db": p} for i, (s, p) in enumerate(points, 1)]


def test_the_first_snapshot_that_is_as_good_counts():
    risen = curve((1, 20.0), (2, 25.0), (3, 24.0), (4, 26.0))
    assert amount_to_reach(risen, 25.0) == 2.0
    assert amount_to_reach(risen, 25.1) == 4.0
    assert amount_to_reach(risen, 26.1) is None
    assert amount_to_reach(risen, 21.0, "network_flops") == 2e9
    assert amount_to_reach([{"seconds": 1.0, "psnr_db": None}], 1.0) is None


def curves() -> list[dict[str, Any]]:
    rows = []
    for i, scan in enumerate("abc"):
        top = 30.0 + i
        rows.append(row("blend", scan, 0, top, curve=curve((4, 20.0), (8, top), (12, top - 1))))
        fast = top if scan != "c" else top - 1
        rows.append(row("patch", scan, 0, fast, curve=curve((1, 22.0), (2 * (i + 1), fast)), timing=scan != "b"))
    return [*rows, failure("dead", "a", 0, "crashed", "segmentation fault")]


def test_times_to_the_best_of_another_method():
    blend, patch, dead = reach(curves(), "blend")
    assert (blend.reached, blend.amount.mean, blend.speedup.mean) == (3, 8.0, 1.0)
    assert (patch.reached, patch.cases, patch.timing) == (2, 3, False)
    assert patch.amount.mean == pytest.approx(3.0)
    assert patch.speedup.mean == pytest.approx(math.sqrt((8 / 2) * (8 / 4)))
    assert (patch.speedup.low, patch.speedup.high) == pytest.approx((2.0, 4.0))
    assert (dead.reached, dead.cases, dead.amount, dead.speedup) == (0, 1, None, None)


def test_of_an_error_less_is_better_to_reach():
    falling = [{"seconds": s, "rmse_hu": v} for s, v in ((1.0, 80.0), (2.0, 60.0), (3.0, 50.0))]
    assert amount_to_reach(falling, 60.0, metric="rmse_hu") == 2.0
    rows = [row("TV", "a", 0, 0.0, curve=falling), row("bad", "a", 0, 0.0, curve=[{"seconds": 9.0, "rmse_hu": 400.0}])]
    tv, bad = reach(rows, "TV", metric="rmse_hu")
    assert (tv.amount.mean, bad.reached) == (3.0, 0)


def test_times_to_a_number():
    blend, patch, _ = reach(curves(), 21.0)
    assert (blend.amount.mean, patch.amount.mean, patch.speedup) == (8.0, 1.0, None)
    with pytest.raises(ValueError, match="no row is of the method 'bland'"):
        reach(curves(), "bland")


def test_calibration_has_intervals_over_cases():
    def told(observed: float) -> dict[str, Any]:
        return {"samples": 4, "coverage": [{"nominal": 0.6, "observed": observed}], "spread_skill": 0.9, "crps": 4e-4}

    rows = [row("DDS", s, 0, 30.0, calibration=told(o)) for s, o in (("a", 0.5), ("b", 0.6))]
    rows += [{**r, "estimate": "mean of 4", "samples": 4} for r in rows] + [row("TV", "a", 0, 29.0, calibration=None)]
    (grid,) = calibration_grids(rows)
    assert grid.cells[1:] == [
        ["8 views", "DDS", "4", "0.600", "0.550 [0.500, 0.600]", "0.900 [0.900, 0.900]"]
        + ["0.000400 [0.000400, 0.000400]", "2 patients x 1 seed"]
    ]
    assert calibration_grids(rows[-1:]) == []


def test_error_by_predicted_deviation_is_a_root_mean_square_over_cases_bin_by_bin():
    def told(*bins: tuple[float, float]) -> dict[str, Any]:
        curve = [{"deviation": d, "rmse": e, "voxels": 5} for d, e in bins]
        one = {"samples": 4, "coverage": [{"nominal": 0.6, "observed": 0.6}], "spread_skill": 1.0, "crps": 1.0}
        return {**one, "error_by_deviation": curve}

    cases = (("a", told((1.0, 2.0), (5.0, 6.0))), ("b", told((7.0, 2.0), (5.0, 8.0))))
    rows = [row("DDS", scan, 0, 30.0, calibration=c) for scan, c in cases]
    _, grid = calibration_grids(rows)
    assert grid.cells == [
        ["problem", "method", "bin 1", "bin 2"],
        ["8 views", "DDS", "5 / 2", "5 / 7.07"],
    ]


def test_a_bench_without_tuning_says_so():
    told = "No method was tuned in this bench"
    for trials, expected in ((0, True), (4, False), (None, False)):
        (grid,) = grids_of(summarise([row("TV", "a", 0, 29.0, trials=trials), row("DDS", "a", 0, 30.0, trials=trials)]))
        assert any(told in note for note in grid.notes) is expected


def test_all_tables_are_written_with_the_cost_to_reach(tmp_path: Path):
    write_tables(tmp_path, curves(), reference="blend")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cases.csv", "table.csv", "table.md", "table.tex"]
    text = (tmp_path / "table.md").read_text()
    assert "times faster than blend" in text
    assert "2 of 3" in text
    assert "2.83 [2.00, 4.00]*" in text
