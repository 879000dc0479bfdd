"""What a page tells, as plain data: read from a bench folder or from rows, and shaped for the script that draws it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli
import torch

from pdframe.bench.rows import ROW, ROWS, read_rows, whole
from pdframe.bench.summary import Row, Summary, smaller_is_better, summarise
from pdframe.core.grid import Grid
from pdframe.ct.units import attenuation_to_hu
from pdframe.ct.windows import METRIC
from pdframe.report.details import numbers_text
from pdframe.report.results import COSTS, calibrations
from pdframe.report.tables import error_by_deviation, heading, number
from pdframe.report.volumes import Shown, embed

#: What a point of a curve may have cost.
CURVE_COSTS = ("seconds", "network_flops", "view_calls", "step")


@dataclass(frozen=True)
class Told:
    """What the page tells: the rows, their summary, the bench's own settings and text, and a slot for each method."""

    rows: Sequence[Row]
    summary: Summary
    settings: Mapping[str, Any]
    toml: str
    folder: Path | None
    slots: Mapping[str, int]

    def labels(self, name: str) -> list[str]:
        """The different values of one key of the rows, in their order."""
        return list(dict.fromkeys(str(row[name]) for row in self.rows if row.get(name) not in (None, "")))

    @property
    def unit(self) -> tuple[float, str]:
        """What a difference of two volumes is multiplied by to be told, and in which unit it then is."""
        cases = [] if self.folder is None else list((self.folder / "cases").glob("*/case.json"))
        if cases and json.loads(cases[0].read_text())["grid"]["unit"] == Grid((1,), (1.0,)).unit:
            return float(attenuation_to_hu(torch.tensor(1.0)) - attenuation_to_hu(torch.tensor(0.0))), "HU"
        return 1.0, "as the volumes"

    @property
    def window_hu(self) -> tuple[float, float]:
        """The window that the bench judges in; that of its first problem."""
        first, *_ = self.settings.get("problem") or [{}]
        metrics = first.get("set", {}).get("metrics") or {}
        low, high = metrics.get("window_hu", (METRIC.low_hu, METRIC.high_hu))
        return float(low), float(high)


def read(source: Path | str | Sequence[Row], reference: str, metric: str) -> Told:
    folder = Path(source) if isinstance(source, str | Path) else None
    rows = read_rows(folder) if folder else list(source)
    toml = folder / "bench.toml" if folder else None
    text = toml.read_text() if toml and toml.is_file() else ""
    summary = summarise(rows, reference=reference, metric=metric)
    labels = dict.fromkeys([*(row["method"] for row in rows), *(line.label for line in summary.lines)])
    return Told(rows, summary, tomli.loads(text), text, folder, {label: i for i, label in enumerate(labels)})


def chart_data(told: Told) -> dict[str, Any]:
    """What the script draws from."""
    metrics = list(dict.fromkeys(name for line in told.summary.lines for name in line.metrics))
    lines = [
        {
            "problem": line.problem,
            "label": line.label,
            "slot": told.slots[line.label],
            "timing": line.timing,
            "metrics": {name: [i.mean, i.low, i.high] for name, i in line.metrics.items()},
            "costs": {name: cost.mean for name, cost in line.costs.items()},
        }
        for line in told.summary.lines
        if line.costs
    ]
    curves = list(_curve_data(told))
    costs = [n for n in CURVE_COSTS if any(p.get(n) for c in curves for p in c["points"])]
    return {
        "problems": told.labels("problem"),
        "metrics": [{"name": n, "label": heading(n), "less": smaller_is_better(n)} for n in metrics],
        "currencies": [{"name": n, "label": heading(n)} for n in COSTS if any(line["costs"].get(n) for line in lines)],
        "lines": lines,
        "curves": curves,
        "curveCosts": [{"name": n, "label": heading(n)} for n in costs],
        "calibration": list(_calibration_data(told)),
    }


def _curve_data(told: Told) -> Iterator[dict[str, Any]]:
    """A curve for each row that has one; of several estimates of one row, once."""
    done = set()
    for row in told.rows:
        name = (row["case"], row["method"])
        if name in done or not row.get("curve"):
            continue
        done.add(name)
        points = [{k: v for k, v in p.items() if not isinstance(v, float) or math.isfinite(v)} for p in row["curve"]]
        where = f"{row['scan']}, seed {row['seed']}"
        yield {"problem": row["problem"], "scan": where, "label": row["method"], "slot": told.slots[row["method"]],
               "points": points}  # fmt: skip


def _calibration_data(told: Told) -> Iterator[dict[str, Any]]:
    """Observed coverage by nominal coverage, and error by predicted deviation: each the mean over a method's cases."""
    scale, unit = told.unit
    for (problem, method), found in calibrations(told.rows).items():
        observed: dict[float, list[float]] = {}
        for calibration in found.values():
            for one in calibration.get("coverage") or ():
                observed.setdefault(round(one["nominal"], 6), []).append(one["observed"])
        yield {
            "problem": problem,
            "label": method,
            "slot": told.slots[method],
            "unit": unit,
            "coverage": [[nominal, sum(values) / len(values)] for nominal, values in sorted(observed.items())],
            "errors": [[scale * deviation, scale * error] for deviation, error in error_by_deviation(found)],
        }


def viewer_data(told: Told) -> tuple[str, dict[str, Any], dict[str, str]] | None:
    """(what was reduced, what the viewer reads, id -> packed volume); None where there is no CT volume to show."""
    cases = shown_cases(told)
    if not cases:
        return None
    reduction, kept, packed = embed(cases)
    for case in kept:
        case["methods"] = _methods(told, case, case.pop("volumes"))
    return reduction.sentence, {"window": list(told.window_hu), "cases": kept}, packed


def shown_cases(told: Told) -> list[Shown]:
    """The cases of the folder that have a truth and at least one reconstruction, as CT volumes."""
    if told.folder is None:
        return []
    volumes = {}
    for row in whole(told.folder / ROWS, f"*/*/{ROW}"):
        if (row.parent / "volume.nii.gz").is_file():
            named = json.loads(row.read_text())
            volumes[named["case"], named["method"]] = row.parent / "volume.nii.gz"
    cases = {row["case"]: row for row in told.rows}
    found = []
    for name, row in cases.items():
        truth = told.folder / "truth" / f"{name}.safetensors"
        methods = [(m, volumes[name, m]) for m in told.labels("method") if (name, m) in volumes]
        if truth.is_file() and methods:
            found.append(Shown(name, row["problem"], row["scan"], row["seed"], truth, tuple(methods)))
    return found


def _methods(told: Told, case: Mapping[str, Any], volumes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Every method as the viewer offers it, the failed ones with their reason instead of a volume."""
    shown = []
    for method in told.labels("method"):
        own = [r for r in told.rows if r["method"] == method and _case_of(r) == _case_of(case)]
        if not own:
            continue
        row, volume = own[-1], volumes.get(method)  # the last estimate is the one whose volume is kept
        value = row["metrics"].get(told.summary.metric)
        brief = row["status"].replace("_", " ") if value is None else f"{number(value, told.summary.metric)} dB"
        if told.summary.metric != "psnr_db" and value is not None:
            brief = number(value, told.summary.metric)
        name = f"{method}, {row['estimate']}" if row["samples"] > 1 else method
        text = f"{name}: {numbers_text(row) or row.get('reason') or row['status']}"
        shown.append({"label": method, "volume": volume, "short": brief, "told": text, "value": value})
    better = min if smaller_is_better(told.summary.metric) else max
    known = [m["value"] for m in shown if m["value"] is not None and m["volume"]]
    return [{**m, "best": bool(known) and m["value"] == better(known)} for m in shown]


def _case_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["problem"], row["scan"], row["seed"]
