"""The tables of the page: quality with intervals, paired differences, costs, failures, calibration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pdframe.bench.statistics import Interval, interval
from pdframe.bench.summary import Line, Row, Spread, Summary, failed, smaller_is_better
from pdframe.report.element import Markup, join, tag
from pdframe.report.markup import Grid
from pdframe.report.tables import grids_of, heading, numbers

#: Width and height of an interval drawn in a table cell, in pixels.
FOREST = (96, 26)
#: Metrics that the main table shows beside the one that differences are taken in; the others are below it.
MAIN = ("psnr_db", "ssim", "rmse_hu")
#: Costs in the main table and in the fronts; voxel-evaluations tell the same as FLOPs, for networks of one size.
COSTS = ("seconds", "network_tflop", "view_calls", "peak_gb")
SHAPES = (
    "M0,-6A6,6 0 1 1 -0.01,-6Z",
    "M-5.4,-5.4H5.4V5.4H-5.4Z",
    "M0,-7.4L7.4,0L0,7.4L-7.4,0Z",
    "M0,-7L7,5.2H-7Z",
    "M0,7L7,-5.2H-7Z",
    "M-6.6,-2.3H-2.3V-6.6H2.3V-2.3H6.6V2.3H2.3V6.6H-2.3V2.3H-6.6Z",
    "M-6.8,0L-3.4,-6H3.4L6.8,0L3.4,6H-3.4Z",
)
COLOURS = 10
#: Headings of columns that hold words.
TEXT = {"method", "problem"}


def symbols(count: int) -> Markup:
    """The mark of every method, by its slot, to be drawn with <use>: shapes and colours have no common period."""
    marks = [
        tag(
            "symbol",
            tag("path", class_=f"m{i % COLOURS}", d=SHAPES[i % len(SHAPES)]),
            id=f"k{i}",
            viewBox="-8 -8 16 16",
        )
        for i in range(count)
    ]
    return tag("svg", marks, class_="marks", aria_hidden="true")


def key(slot: int) -> Markup:
    """A method's mark beside its name."""
    return tag("svg", tag("use", href=f"#k{slot}"), class_="key", viewBox="0 0 16 16", aria_hidden="true")


def problem_tables(summary: Summary, slots: Mapping[str, int]) -> Markup:
    """For each problem a table, the best mean first, and the other metrics folded away; notes of all at the end."""
    grids = grids_of(summary)
    shared = [note for note in grids[0].notes if all(note in grid.notes for grid in grids)]
    tables = [
        _problem(
            [line for line in summary.lines if line.problem == grid.title],
            summary,
            slots,
            [note for note in grid.notes if note not in shared],
        )
        for grid in grids
    ]
    return join([*tables, tag("div", notes(shared), class_="shared")])


def failure_table(rows: Sequence[Row], slots: Mapping[str, int]) -> Markup:
    """Every row without a result, and why; those of one method that failed alike stand together."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if failed(row):
            kind = (row["method"], row["problem"], row["status"].replace("_", " "), row.get("reason") or "not given")
            alike.setdefault(kind, []).append(f"{row['scan']}, seed {row['seed']}")
    if not alike:
        return tag("p", f"None: each of the {len(rows)} rows has a result.")
    cells = [
        [tag("th", key(slots[method]), method, scope="row"), tag("td", problem, class_="text"),
         tag("td", status, class_="text failed"), tag("td", reason, class_="text reason"),
         tag("td", f"{len(cases)}: {'; '.join(cases)}", class_="text reason")]
        for (method, problem, status, reason), cases in alike.items()
    ]  # fmt: skip
    return _table(["method", "problem", "status", "reason", "cases"], cells, text=True)


def grid_table(grid: Grid) -> Markup:
    """A table of plain cells, as the Markdown has it."""
    head, *body = grid.cells
    texts = ["text" if name in TEXT else None for name in head]
    cells = [
        [tag("td" if i else "th", cell, class_=texts[i], scope=None if i else "row") for i, cell in enumerate(line)]
        for line in body
    ]
    return join([_table(head, cells), notes(grid.notes)])


def calibration_table(rows: Sequence[Row], slots: Mapping[str, int], scale: float, unit: str) -> Markup:
    """Calibration of every method that gave samples: means over cases, intervals. `scale` brings it to `unit`."""
    cells = [
        [tag("th", key(slots[method]), method, scope="row"), tag("td", problem, class_="text"),
         tag("td", "/".join(str(k) for k in sorted({c["samples"] for c in found.values()}))),
         _within(_over(found, "spread_skill")),
         *(_within(_over(found, name, scale)) for name in ("crps", "rmse", "deviation"))]
        for (problem, method), found in calibrations(rows).items()
    ]  # fmt: skip
    head = ["method", "problem", "samples", "deviation / error"]
    return _table(head + [f"{name}, {unit}" for name in ("CRPS", "error", "predicted deviation")], cells)


def calibrations(rows: Sequence[Row]) -> dict[tuple[str, str], dict[tuple[str, int], Mapping[str, Any]]]:
    """(problem, method) -> case -> what `pdframe.bench.calibration` found."""
    found: dict[tuple[str, str], dict[tuple[str, int], Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("calibration"):
            of_method = found.setdefault((row["problem"], row["method"]), {})
            of_method[row["scan"], row["seed"]] = row["calibration"]
    return found


def notes(lines: Iterable[str]) -> Markup:
    """Small print below a table."""
    return join(tag("p", line, class_="note") for line in lines)


def _problem(lines: Sequence[Line], summary: Summary, slots: Mapping[str, int], told: Sequence[str]) -> Markup:
    problem, metric = lines[0].problem, summary.metric
    metrics = list(dict.fromkeys(name for line in lines for name in line.metrics))
    main = [metric, *(name for name in MAIN if name in metrics and name != metric)]
    sign = 1 if smaller_is_better(metric) else -1
    ranked = sorted(lines, key=lambda line: sign * line.metrics[metric].mean if metric in line.metrics else math.inf)
    span = _span([line.metrics[metric] for line in lines if metric in line.metrics])
    best = next((line for line in ranked if metric in line.metrics), None)
    head = ["method", heading(metric), "", f"less {summary.reference}", "p", *(heading(m) for m in main[1:])]
    head += ["data residual", *(heading(c) for c in COSTS), "cases"]
    body = [(_cells(line, main, span, slots), "best" if line is best and len(lines) > 1 else None) for line in ranked]
    parts = [tag("h3", problem), _table(head, [cells for cells, _ in body], [kind for _, kind in body])]
    parts.append(notes(told))
    if others := [name for name in metrics if name not in main]:
        cells = [[_named(line, slots), *(_within(line.metrics.get(m), m) for m in others)] for line in ranked]
        table = _table(["method", *(heading(m) for m in others)], cells)
        parts.append(tag("details", tag("summary", f"Other metrics, {problem}"), tag("div", table)))
    return join(parts)


def _cells(line: Line, metrics: Sequence[str], span: tuple[float, float], slots: Mapping[str, int]) -> list[Markup]:
    first = line.metrics.get(metrics[0])
    return [
        _named(line, slots),
        _within(first, metrics[0]),
        tag("td", _forest(first, span, slots[line.label]) if first else None, class_="forest"),
        *_difference(line, metrics[0]),
        *(_within(line.metrics.get(name), name) for name in metrics[1:]),
        _within(line.residual),
        *(_cost(line.costs.get(name), name, line.timing) for name in COSTS),
        _cases(line, first),
    ]


def _cases(line: Line, found: Interval | None) -> Markup:
    """How many cases the line's numbers are of, of how many patients, and how many failed."""
    lost = tag("small", f"{line.failed} failed", class_="failed") if line.failed else None
    if found is None:
        return tag("td", 0, lost)
    return tag("td", found.cases, tag("small", f"{found.patients} patient{'s' * (found.patients != 1)}"), lost)


def _named(line: Line, slots: Mapping[str, int]) -> Markup:
    return tag("th", key(slots[line.label]), line.label, scope="row")


def _within(found: Interval | None, name: str = "", *, sign: bool = False) -> Markup:
    """The mean, and its interval below it."""
    if found is None:
        return tag("td", "–", class_="none")
    edges = [found.mean] if found.low is None or found.high is None else [found.mean, found.low, found.high]
    mean, *range_ = (text.replace("-", "−") for text in numbers(edges, name, sign=sign))
    return tag("td", mean, tag("small", f"[{', '.join(range_)}]" if range_ else "1 case"))


def _difference(line: Line, metric: str) -> list[Markup]:
    """The paired difference and its corrected p."""
    if line.difference is None:
        return [tag("td", "–", class_="none"), tag("td")]
    return [_within(line.difference.interval, metric, sign=True), tag("td", f"{line.difference.p_holm:.2g}")]


def _cost(spread: Spread | None, name: str, timing: bool) -> Markup:
    if spread is None:
        return tag("td", "–", class_="none")
    mark = "*" if name == "seconds" and not timing else ""
    mean, low, high = numbers([spread.mean, spread.low, spread.high])
    return tag("td", mean + mark, tag("small", f"{low} to {high}") if spread.low != spread.high else None)


def _span(found: Sequence[Interval]) -> tuple[float, float]:
    """What the drawn intervals of one table share: least to most of all their ends."""
    ends = [end for i in found for end in (i.mean, i.low, i.high) if end is not None]
    return (min(ends, default=0.0), max(ends, default=1.0))


def _forest(found: Interval, span: tuple[float, float], slot: int) -> Markup:
    width, height = FOREST
    room = max(span[1] - span[0], 1e-12)

    def at(value: float) -> str:
        return f"{9 + (width - 18) * (value - span[0]) / room:.1f}"

    middle, mark = height / 2, 12
    parts = [tag("line", class_="zero", x1=0, x2=width, y1=middle, y2=middle)]
    if found.low is not None and found.high is not None:
        colour = f"s{slot % COLOURS}"
        parts.append(tag("line", class_=colour, x1=at(found.low), x2=at(found.high), y1=middle, y2=middle))
    corner = f"{float(at(found.mean)) - mark / 2:.1f}"
    parts.append(tag("use", href=f"#k{slot}", x=corner, y=middle - mark / 2, width=mark, height=mark))
    return tag("svg", parts, width=width, height=height, viewBox=f"0 0 {width} {height}", aria_hidden="true")


def _table(
    head: Sequence[str], body: Sequence[Sequence[Markup]], kinds: Sequence[str | None] = (), *, text: bool = False
) -> Markup:
    """Head and body; `kinds` are the classes of the body's lines. `text`: every column holds words."""
    names = [tag("th", name, scope="col", class_="text" if text or name in TEXT else None) for name in head]
    padded = kinds or [None] * len(body)
    lines = [tag("tr", cells, class_=kind) for cells, kind in zip(body, padded, strict=True)]
    return tag("div", tag("table", tag("thead", tag("tr", names)), tag("tbody", lines)), class_="scroll")


def _over(found: Mapping[tuple[str, int], Mapping[str, Any]], name: str, scale: float = 1.0) -> Interval | None:
    values = {case: scale * float(c[name]) for case, c in found.items() if c.get(name) is not None}
    return interval(values) if values else None
