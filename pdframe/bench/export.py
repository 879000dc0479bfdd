"""A bench folder as files of another program: benchopt, which shows results and joins them with its own.

benchopt (1.6 and later) reads result tables, CSV or Parquet, from the folder `outputs` beside an `objective.py`. A line
is one solver on one dataset at one point of its curve; the columns that it looks for are `objective_name`,
`dataset_name`, `solver_name`, `idx_rep`, `stop_val`, `time`, `run_date` and one `objective_<metric>` for each number.
It minimises or maximises as the reader chooses, so that PSNR stays PSNR.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pdframe.bench.rows import BENCH, read_rows
from pdframe.mistakes import ConfigError
from pdframe.runfolder import folder_names, read_json, write

Row = Mapping[str, Any]

#: Columns by which benchopt tells one measurement from another.
KEY = ("dataset_name", "objective_name", "solver_name", "idx_rep", "stop_val")
#: What a method cost, shown beside its metrics; seconds are benchopt's `time`.
COSTS = ("network_flops", "network_voxels", "view_calls", "peak_memory_bytes")
#: Column of benchopt's page on machines -> key of a row's `machine`.
MACHINE = {
    "system-processor": "cpu",
    "system-cpus": "cores",
    "system-ram (GB)": "memory_gib",
    "env-OMP_NUM_THREADS": "torch_threads",
    "version-numpy": "numpy",
}
#: Words that a reader of CSV takes for a missing value.
BLANKS = {"", "#n/a", "#na", "n/a", "na", "<na>", "nan", "-nan", "null", "none", "1.#ind", "-1.#ind", "1.#qnan"}

OBJECTIVE = '''"""Results of a pdframe bench, for benchopt to show. They are made by `pdframe bench run`, not here."""

from benchopt import BaseObjective

MADE_ELSEWHERE = "these results come from `pdframe bench run`; benchopt shows them, it cannot repeat them"


class Objective(BaseObjective):
    name = {title!r}

    def set_data(self, **data):
        raise RuntimeError(MADE_ELSEWHERE)

    def get_objective(self):
        raise RuntimeError(MADE_ELSEWHERE)

    def evaluate_result(self, **result):
        raise RuntimeError(MADE_ELSEWHERE)
'''


def export_folder(bench: Path, folder: Path) -> Path:
    """The rows of a bench folder, as `export_benchopt` writes them. ConfigError if `bench` holds none."""
    head = read_json(bench / BENCH)
    if head is None:
        raise ConfigError(f"{bench} is no bench folder: it has no {BENCH}")
    try:
        return export_benchopt(read_rows(bench), folder, head["title"] or bench.resolve().name)
    except ValueError as error:
        raise ConfigError(f"{bench}: {error}") from None


def export_benchopt(rows: Sequence[Row], folder: Path, title: str) -> Path:
    """Writes what `benchopt plot`, `merge`, `publish` and `generate-results` read; returns the result table.

    rows: as `pdframe.bench.rows.read_rows` gives them.
    folder: a new folder, or a benchopt benchmark; an `objective.py` that is there stays.
    title: of the bench; it names the benchmark and the table, `outputs/<title>.csv`, which is replaced.
    ValueError if there is no row to write.
    """
    if not rows:
        raise ValueError("there is no row yet, so nothing to export; use `pdframe bench run` first")
    if not (folder / "objective.py").is_file():
        write(folder / "objective.py", OBJECTIVE.format(title=title))
    table = folder / "outputs" / f"{folder_names([title])[0]}.csv"
    write(table, _csv(benchopt_lines(rows, title)))
    return table


def benchopt_lines(rows: Sequence[Row], title: str) -> list[dict[str, Any]]:
    """One dict for each line of the table: the points of each curve, then the result itself.

    The results of one method on one scan share their `stop_val`, whatever the number of steps that a seed took, because
    benchopt summarises the last one. A failure is a line without numbers.
    """
    last: dict[tuple[str, ...], int] = {}
    for row in rows:
        last[_group(row)] = max(last.get(_group(row), 1), *(point["step"] for point in _curve(row)), 1)
    return [line for row in rows for line in _lines(row, title, last[_group(row)])]


def _lines(row: Row, title: str, last: int) -> Iterator[dict[str, Any]]:
    told = _told(row, title)
    for point in _curve(row):
        if point["step"] < last:
            numbers = {k: v for k, v in point.items() if k not in ("step", "seconds")}
            yield told | {"stop_val": point["step"], "time": point["seconds"]} | _objectives(numbers)
    usage = row.get("usage") or {}
    numbers = {**row["metrics"], "residual": row.get("residual"), **{k: usage.get(k) for k in COSTS}}
    yield told | {"stop_val": last, "time": usage.get("seconds")} | _objectives(numbers)


def _told(row: Row, title: str) -> dict[str, Any]:
    """What all lines of a row share."""
    machine = row.get("machine") or {}
    return {
        "objective_name": _text(row["problem"], "problem"),
        "obj_description": title,
        "dataset_name": _text(row["scan"], "scan"),
        "solver_name": _text(_solver(row), "method"),
        "idx_rep": row["seed"],
        "sampling_strategy": "Iteration" if _curve(row) else "Run_once",
        "run_date": row["date"],
        **{f"p_solver_{key}": value for key, value in _flat(row.get("config") or {})},
        **{column: machine.get(key, "unknown") for column, key in MACHINE.items()},
        **{f"pdframe_{key}": row.get(key) for key in ("case", "split", "status", "reason", "timing", "samples")},
        "pdframe_y_sha256": row.get("y_sha256"),
        "pdframe_command": row.get("command"),
    }


def _objectives(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {f"objective_{name}": value for name, value in numbers.items()}


def _solver(row: Row) -> str:
    estimate = row.get("estimate") or "sample"
    return row["method"] if estimate == "sample" else f"{row['method']} ({estimate})"


def _group(row: Row) -> tuple[str, ...]:
    return row["problem"], row["scan"], _solver(row)


def _curve(row: Row) -> Sequence[Mapping[str, Any]]:
    """Quality against time; it is that of one sample, so a mean of several has none."""
    return (row.get("curve") or ()) if (row.get("estimate") or "sample") == "sample" else ()


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("prior.name", "patch3d") for {"prior": {"name": "patch3d"}}; a list stays whole, as JSON."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value) if isinstance(value, list | tuple) else value


def _text(label: str, kind: str) -> str:
    """A label that stays text when it is read: "0003" becomes "scan 0003"."""
    try:
        float(label)
    except ValueError:
        return f"{kind} {label}" if label.lower() in BLANKS else label
    return f"{kind} {label}"


def _csv(lines: Iterable[Mapping[str, Any]]) -> str:
    lines = list(lines)
    columns = dict.fromkeys(key for line in lines for key in line)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()
