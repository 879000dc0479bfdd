"""What bench tables say: every mean with its interval, every difference with its p, every failure with its reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pdframe import runfolder
from pdframe.bench.reach import Reach, reach
from pdframe.bench.statistics import Case, Interval, interval, most_coverage
from pdframe.bench.summary import CURRENCIES, Line, Summary, summarise
from pdframe.report.markup import Grid, as_latex, as_markdown, csv_text

Row = Mapping[str, Any]

HEADINGS = {
    "psnr_db": "PSNR, dB",
    "ssim": "SSIM",
    "rmse_hu": "RMSE, HU",
    "network_tflop": "network, TFLOP",
    "voxel_evaluations_m": "voxel-evaluations, M",
    "view_calls": "view-calls",
    "seconds": "seconds",
    "peak_gb": "peak, GB",
    "network_flops": "network FLOP",
    "step": "steps",
}
DECIMALS = {"psnr_db": 2, "ssim": 3, "rmse_hu": 1, "residual": 3, "times_faster": 2}
#: Ends of the names of metrics that are shown inside a mask too.
IN_MASKS = ("_psnr_db", "_ssim")
#: Below this many patients no interval by resampling can cover 95 %.
ENOUGH_PATIENTS = 6


def write_tables(folder: Path, rows: Sequence[Row], *, reference: str = "", metric: str = "psnr_db") -> Summary:
    """table.csv, table.md, table.tex and cases.csv (a line for each row) in `folder`, each whole or not at all."""
    summary = summarise(rows, reference=reference, metric=metric)
    runfolder.write(folder / "table.csv", as_csv(summary))
    runfolder.write(folder / "cases.csv", cases_csv(rows))
    grids = [*grids_of(summary), *reach_grids(rows, summary), *calibration_grids(rows)]
    runfolder.write(folder / "table.md", as_markdown(grids))
    runfolder.write(folder / "table.tex", as_latex(grids))
    return summary


def heading(name: str) -> str:
    """`psnr_db` as "PSNR, dB"; a metric inside a mask, `body_psnr_db`, as "body PSNR, dB"."""
    for known, text in HEADINGS.items():
        if name == known or name.endswith(f"_{known}"):
            return f"{name.removesuffix(known).replace('_', ' ')}{text}"
    return name.replace("_", " ")


def number(value: float, name: str = "") -> str:
    """With the digits that its metric is told with; three significant ones for anything else."""
    return numbers([value], name)[0]


def numbers(values: Sequence[float], name: str = "", *, sign: bool = False) -> list[str]:
    """As `number`, with as many decimals for each as the largest needs; `sign`: with a plus where there is no minus."""
    form = f"{'+' if sign else ''},.{_decimals(values, name)}f"
    return [format(value, form) for value in values]


def within(found: Interval | None, name: str = "", *, sign: bool = False) -> str:
    """ "28.31 [27.90, 28.71]"; for a single case the number and that there is no interval."""
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{numbers([found.mean], name, sign=sign)[0]} (1 case, no interval)"
    mean, low, high = numbers([found.mean, found.low, found.high], name, sign=sign)
    return f"{mean} [{low}, {high}]"


def cases_of(line: Line) -> str:
    """Patients and seeds behind the line's numbers, and how many cases failed."""
    first = next(iter(line.metrics.values()), None)
    told = _counted(first) if first else "none"
    return f"{told}; {line.failed} failed" if line.failures else told


def grids_of(summary: Summary) -> list[Grid]:
    """One table for each problem."""
    problems = dict.fromkeys(line.problem for line in summary.lines)
    return [_grid(summary, p, [line for line in summary.lines if line.problem == p]) for p in problems]


def reach_grids(rows: Sequence[Row], summary: Summary, currency: str = "seconds") -> list[Grid]:
    """What each method took to reach the reference's best value, where rows have curves of quality."""
    if not any(point.get(summary.metric) is not None for row in rows for point in row.get("curve") or ()):
        return []
    found = reach(rows, summary.reference, currency=currency, metric=summary.metric)
    head = ["problem", "method", "reached", heading(currency), f"times faster than {summary.reference}"]
    notes = [
        f"Target on each case: the best {heading(summary.metric)} of {summary.reference}. Amounts over the cases that "
        "reached it, at the first snapshot that did; ratios by geometric mean over the cases that both have."
    ]
    cells = [head, *(_reach_cells(line, currency) for line in found)]
    return [Grid("Cost to reach the reference", cells, notes + _timing_note(line.timing for line in found))]


def calibration_grids(rows: Sequence[Row]) -> list[Grid]:
    """Of each method that drew samples: its widest central interval, error against deviation, CRPS; over cases."""
    found: dict[tuple[str, str], dict[Case, Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("calibration"):
            cases = found.setdefault((row["problem"], row["method"]), {})
            cases[row["scan"], row["seed"]] = row["calibration"]
    if not found:
        return []
    head = ["problem", "method", "samples", "interval, nominal", "truth within", "deviation / error", "CRPS", "cases"]
    cells = [head, *(_calibration_cells(*key, cases) for key, cases in found.items())]
    note = "Calibrated: the truth lies within as often as nominal, deviation / error is 1. CRPS in the volume's unit."
    return [Grid("Calibration", cells, [note]), *_error_grids(found)]


def error_by_deviation(cases: Mapping[Case, Mapping[str, Any]]) -> list[tuple[float, float]]:
    """(predicted deviation, error) of each bin of voxels, root mean squares over cases; empty with under 4 samples."""
    curves = [curve for told in cases.values() if (curve := told.get("error_by_deviation"))]

    def over_cases(bins: Sequence[Mapping[str, float]], name: str) -> float:
        return math.sqrt(sum(one[name] ** 2 for one in bins) / len(bins))

    return [(over_cases(bins, "deviation"), over_cases(bins, "rmse")) for bins in zip(*curves, strict=False)]


def as_csv(summary: Summary) -> str:
    """A line for each method and problem; every mean has columns for its interval, every cost for its range."""
    metrics = list(dict.fromkeys(name for line in summary.lines for name in line.metrics))
    return csv_text(_flat(line, summary, metrics) for line in summary.lines)


def cases_csv(rows: Sequence[Row]) -> str:
    """A line for each row: one method, one estimate, one case; failed ones with their reason."""
    keys = ("problem", "scan", "split", "seed", "method", "estimate", "samples", "status", "reason", "timing")
    metrics = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    return csv_text(
        {key: row.get(key) for key in keys}
        | {name: row["metrics"].get(name) for name in metrics}
        | {"residual": row.get("residual")}
        | {name: amount(row["usage"]) if row.get("usage") else None for name, amount in CURRENCIES.items()}
        | {"y_sha256": row["y_sha256"]}
        for row in rows
    )


def _decimals(values: Sequence[float], name: str) -> int:
    known = next((d for metric, d in DECIMALS.items() if name == metric or name.endswith(f"_{metric}")), None)
    if known is not None:
        return known
    if all(value == int(value) for value in values if math.isfinite(value)):
        return 0
    largest = max(abs(value) for value in values if math.isfinite(value))
    return max(0, 2 - math.floor(math.log10(largest)))


def _grid(summary: Summary, problem: str, lines: Sequence[Line]) -> Grid:
    metrics = _shown(lines, summary.metric)
    columns: dict[str, Callable[[Line], str]] = {"method": lambda line: line.label}
    columns |= {heading(m): (lambda line, m=m: within(line.metrics.get(m), m)) for m in metrics}
    columns[f"{heading(summary.metric)} less {summary.reference}"] = lambda line: _difference(line, summary.metric)
    columns["p (Holm)"] = lambda line: "-" if line.difference is None else f"{line.difference.p_holm:.2g}"
    columns["data residual"] = lambda line: within(line.residual, "residual")
    columns |= {heading(c): (lambda line, c=c: _cost(line, c)) for c in CURRENCIES}
    if any(line.trials for line in lines):
        columns["tuning trials"] = lambda line: "-" if line.trials is None else str(line.trials)
    columns["cases"] = cases_of
    columns["ended"] = lambda line: ", ".join(f"{status.replace('_', ' ')} ({n})" for status, n in line.ended.items())
    cells = [list(columns), *([cell(line) for cell in columns.values()] for line in lines)]
    return Grid(problem, cells, _notes(summary, lines))


def _shown(lines: Sequence[Line], compared: str) -> list[str]:
    """The usual metrics of the whole volume, two of them inside each mask, and the one that is compared; all where none
    is usual. CSV has them all."""
    there = list(dict.fromkeys(name for line in lines for name in line.metrics))
    return [name for name in there if name in DECIMALS or name == compared or name.endswith(IN_MASKS)] or there


def _mixed(line: Line) -> list[str]:
    """What was not the same over the rows of a line, and should have been."""
    told = []
    if line.priors > 1:
        told.append(f"{line.method}: its rows are of {line.priors} different weights of its prior; run them all again.")
    if (machines := len(line.machines)) > 1:
        told.append(f"{line.method}: its rows ran on {machines} kinds of machine; their seconds do not compare.")
    return told


def _notes(summary: Summary, lines: Sequence[Line]) -> list[str]:
    counted = [i for line in lines for i in line.metrics.values()]
    most = max((i.patients for i in counted), default=0)
    notes = [
        f"Split: {summary.split}. In brackets 95 % intervals by resampling patients, then seeds; a scan counts as a "
        f"patient. Differences over the cases that both methods have; p of sign flips over patients, two-sided, "
        f"corrected for {_plural(summary.comparisons, 'comparison')} (Holm). Costs: least to most over cases."
    ]
    if 2 <= most < ENOUGH_PATIENTS:
        notes.append(
            f"With {most} patients an interval by resampling covers at best about {most_coverage(most):.0%}, and "
            f"no p can be below {2.0 ** (1 - most):.2g} before correction."
        )
    if most == 1:
        notes.append("With one patient the intervals speak of seeds on that patient alone, and no p can be below 1.")
    if all(line.trials == 0 for line in lines):
        notes.append("No method was tuned in this bench: settings are as it writes them, or defaults.")
    notes += _timing_note(line.timing for line in lines)
    notes += dict.fromkeys(text for line in lines for text in _mixed(line))
    if len(versions := frozenset[str]().union(*(line.versions for line in lines))) > 1:
        notes.append(f"Methods ran with {len(versions)} sets of versions of pdframe, torch or plugins: see the rows.")
    # A method's failures stand with each of its estimates; once is enough here.
    return notes + list(dict.fromkeys(f"{line.method}: {text}." for line in lines for text in _failures(line)))


def _failures(line: Line) -> list[str]:
    return [f"{reason} ({'; '.join(cases)})" for reason, cases in line.failures.items()]


def _timing_note(timing: Iterable[bool]) -> list[str]:
    note = "* not for timing: ran beside other rows, on different machines or with different numbers of threads."
    return [] if all(timing) else [note]


def _difference(line: Line, metric: str) -> str:
    if line.difference is None:
        return "-"
    found = line.difference.interval
    fewer = "" if found.cases == line.metrics[metric].cases else f" over {_counted(found)}"
    return within(found, metric, sign=True) + fewer


def _counted(found: Interval) -> str:
    full = found.cases == found.patients * found.seeds
    patients, seeds = _plural(found.patients, "patient"), _plural(found.seeds, "seed")
    return f"{patients} x {seeds}" if full else f"{patients}, {seeds}, {found.cases} cases"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _cost(line: Line, currency: str) -> str:
    spread = line.costs.get(currency)
    if spread is None:
        return "-"
    low, high = numbers([spread.low, spread.high])
    mark = "" if line.timing or currency != "seconds" else "*"
    return f"{low}{mark}" if low == high else f"{low} to {high}{mark}"


def _reach_cells(line: Reach, currency: str) -> list[str]:
    mark = "*" if currency == "seconds" and not line.timing else ""
    amount, speedup = within(line.amount), within(line.speedup, "times_faster")
    marked = [text if text == "-" else text + mark for text in (amount, speedup)]
    return [line.problem, line.method, f"{line.reached} of {line.cases}", *marked]


def _calibration_cells(problem: str, method: str, cases: Mapping[Case, Mapping[str, Any]]) -> list[str]:
    def over_cases(value: Callable[[Mapping[str, Any]], float | None]) -> Interval | None:
        known = {case: v for case, told in cases.items() if (v := value(told)) is not None}
        return interval(known) if known else None

    first = next(iter(cases.values()))
    observed = over_cases(lambda told: told["coverage"][0]["observed"])
    skill, crps = over_cases(lambda told: told["spread_skill"]), over_cases(lambda told: told["crps"])
    nominal = f"{first['coverage'][0]['nominal']:.3f}"
    counted = "-" if crps is None else _counted(crps)
    return [problem, method, str(first["samples"]), nominal, *map(within, (observed, skill, crps)), counted]


def _error_grids(found: Mapping[tuple[str, str], Mapping[Case, Mapping[str, Any]]]) -> list[Grid]:
    """Error by predicted deviation, bin by bin, where a method drew samples enough for it."""
    curves = {key: curve for key, cases in found.items() if (curve := error_by_deviation(cases))}
    if not curves:
        return []
    bins = max(map(len, curves.values()))
    head = ["problem", "method", *(f"bin {i + 1}" for i in range(bins))]
    cells = [head, *([*key, *(f"{d:.3g} / {e:.3g}" for d, e in curve)] for key, curve in curves.items())]
    note = "Predicted deviation / error in bins of equally many voxels, the surest first, in the volume's unit."
    return [Grid("Error by predicted deviation", cells, [note])]


def _flat(line: Line, summary: Summary, metrics: Sequence[str]) -> dict[str, Any]:
    first = next(iter(line.metrics.values()), None)
    flat: dict[str, Any] = {"problem": line.problem, "method": line.method, "estimate": line.estimate}
    flat |= {"samples": line.samples, "trials": line.trials, "split": summary.split}
    flat |= {key: getattr(first, key, 0) for key in ("patients", "seeds", "cases")}
    flat |= {"failed": line.failed, "timing": line.timing}
    for name in metrics:
        flat |= _edges(name, line.metrics.get(name))
    flat |= _edges("residual", line.residual)
    difference = line.difference
    flat |= {"reference": summary.reference}
    flat |= _edges(f"{summary.metric}_difference", difference.interval if difference else None)
    flat |= {"worst_difference": difference.worst if difference else None}
    flat |= {"p": difference.p if difference else None, "p_holm": difference.p_holm if difference else None}
    for name in CURRENCIES:
        cost = line.costs.get(name)
        parts = (cost.mean, cost.low, cost.high) if cost else (None, None, None)
        flat |= dict(zip((name, f"{name}_least", f"{name}_most"), parts, strict=True))
    flat["ended"] = "; ".join(f"{status} {n}" for status, n in line.ended.items())
    flat["failures"] = "; ".join(_failures(line))
    return flat


def _edges(name: str, found: Interval | None) -> dict[str, float | None]:
    parts = (found.mean, found.low, found.high) if found else (None, None, None)
    return dict(zip((name, f"{name}_low", f"{name}_high"), parts, strict=True))
