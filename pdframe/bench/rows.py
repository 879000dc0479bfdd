"""The rows of a bench folder: one folder for each method on each case, read back as flat dicts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdframe import runfolder

ROW, ROWS, BENCH, PAGE = "row.json", "rows", runfolder.BENCH, "report.html"
#: Statuses whose row holds no result, besides `nonfinite` of a solve.
FAILED = ("crashed", "timeout", "out_of_memory", "lost", "unfair", "backend_missing", "untuned", "nonfinite")
#: Of these, what is not the method's doing: a later run tries such a row again.
TRIED_AGAIN = ("lost", "backend_missing")


def read_rows(folder: Path | str, under: str = ROWS) -> list[dict[str, Any]]:
    """Every row below `folder`/`under`, in the order of the bench: one dict per (case, method, estimate).

    Each holds what row.json does, with its `rows` unfolded into "estimate" ("sample" or "mean of k"), "samples",
    "metrics", "residual" and "usage". A row that failed is one dict with estimate None, samples 0, metrics {},
    residual None and usage {}.
    """
    folder = Path(folder)
    return [flat for row in read_row_files(folder, under) for flat in _flat(row)]


def whole(folder: Path, pattern: str) -> list[Path]:
    """The files of the pattern below `folder`, in order, less those in hidden folders: these are half made."""
    found = folder.glob(pattern)
    return sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(folder).parts))


def sweep(rows: Path) -> None:
    """Puts right what a killed command left: a row that was being replaced comes back, one half written goes."""
    for old in rows.glob("*/.*.old"):
        runfolder.restore(old.with_name(old.name[1 : -len(".old")]))
    for new in rows.glob("*/.*.new"):
        shutil.rmtree(new)


def read_row_files(folder: Path, under: str = ROWS) -> list[dict[str, Any]]:
    """Every row.json as it is, in the order of the bench (or of names, where the bench does not say)."""
    found = [json.loads(path.read_text()) for path in whole(folder / under, f"*/*/{ROW}")]
    told = runfolder.read_json(folder / BENCH) or {}
    cases = {name: i for i, name in enumerate(told.get("cases", ()))}
    methods = {name: i for i, name in enumerate(told.get("methods", ()))}

    def place(row: Mapping[str, Any]) -> tuple[Any, ...]:
        case, method = row["case"], row["method"]
        return cases.get(case, len(cases)), case, methods.get(method, len(methods)), method

    return sorted(found, key=place)


def _flat(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    shared = {key: value for key, value in row.items() if key != "rows"}
    nothing = {"estimate": None, "samples": 0, "metrics": {}, "residual": None, "usage": {}}
    return [{**shared, **estimate} for estimate in (row["rows"] or [nothing])]
