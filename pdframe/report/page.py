"""One HTML file that tells a bench: tables, fronts, curves, a slice viewer, every setting and every citation.

It opens offline: style, script and volumes are inside, and its content security policy lets nothing else in. Numbers
and names are written by Python, escaped; charts and slices are drawn by the script from data in the page.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from pdframe import runfolder
from pdframe.bench.summary import Row, failed
from pdframe.report.details import citations, copyable, machine_text, row_list
from pdframe.report.element import Markup, join, tag
from pdframe.report.page_data import Told, chart_data, read, viewer_data
from pdframe.report.results import (
    calibration_table,
    calibrations,
    failure_table,
    grid_table,
    problem_tables,
    symbols,
)
from pdframe.report.tables import heading, number, reach_grids

#: Windows of the viewer: name, low and high in HU.
WINDOWS = (("lung", -1350, 150), ("soft tissue", -160, 240), ("bone", -500, 1300))
SCRIPTS = ("charts.js", "viewer.js", "page.js")


def write_page(
    source: Path | str | Sequence[Row], path: Path | str, *, reference: str = "", metric: str = "psnr_db"
) -> Path:
    """Writes the page of a bench folder, whole or not at all, and gives its path.

    source: a bench folder, or its rows as `pdframe.bench.rows.read_rows` gives them (then there are no slices to see).
    reference: the method that paired differences are taken to; default: the first. metric: what they are taken in.
    Raises ValueError without rows, or if the reference is none of their methods.
    """
    told = read(source, reference, metric)
    reduced, viewer, packed = viewer_data(told) or ("", None, {})
    sections = [
        ("results", "Results", _results(told)),
        ("cost", "Quality and cost", _fronts()),
        ("time", "Quality against time", _curves(told)),
        ("slices", "Slices", _slices(told, reduced) if viewer else None),
        ("calibration", "Calibration", _calibration(told)),
        ("failures", "Failures", failure_table(told.rows, told.slots)),
        ("rows", "Settings and commands", _settings(told)),
        ("cite", "Citations", citations(told.settings, told.rows)),
    ]
    shown = [section for section in sections if section[2] is not None]
    links = tag("ul", [tag("li", tag("a", title, href=f"#{name}")) for name, title, _ in shown])
    body = [_head(told), tag("nav", links, aria_label="Sections")]
    body.append(tag("main", [tag("section", tag("h2", title), inner, id=name) for name, title, inner in shown]))
    data = {**chart_data(told), "viewer": viewer}
    runfolder.write(Path(path), _page(_title(told), join(body), data, packed, len(told.slots)))
    return Path(path)


def _page(title: str, body: Markup, data: Mapping[str, Any], packed: Mapping[str, str], slots: int) -> str:
    style, script = _asset("page.css"), "\n".join(_asset(name).replace('"use strict";', "") for name in SCRIPTS)
    script = f'(() => {{\n"use strict";\n{script}\n}})();'
    # In a script element "<" could begin "</script>" or "<!--"; in JSON it may be written as an escape.
    told = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    volumes = [f'<script type="text/plain" id="{name}">{text}</script>' for name, text in packed.items()]
    return Template(_asset("page.html")).substitute(
        title=join([title]),
        style=style,
        style_hash=_csp_hash(style),
        script=script,
        script_hash=_csp_hash(script),
        marks=symbols(slots),
        body=body,
        data=told,
        volumes="\n".join(volumes),
    )


def _asset(name: str) -> str:
    return files("pdframe.report").joinpath(name).read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _title(told: Told) -> str:
    return str(told.settings.get("title") or (told.folder.name if told.folder else "Benchmark"))


def _head(told: Told) -> Markup:
    rows, lost = told.rows, sum(failed(row) for row in told.rows)
    problems, scans, seeds, methods = (told.labels(name) for name in ("problem", "scan", "seed", "method"))
    dates = sorted({str(row["date"])[:10] for row in rows if row.get("date")})
    budget = {k: v for k, v in (told.settings.get("budget") or rows[0].get("budget") or {}).items() if v}
    lead = (
        f"{_count(methods, 'method')} on {_count({row['case'] for row in rows}, 'case')}, each on the same frozen "
        f"measurements{f'; {lost} rows failed' if lost else ''}."
    )
    facts = {
        "Protocol": f"{told.summary.split} split; problems: {', '.join(problems)}",
        "Budget": ", ".join(f"at most {number(value)} {name.replace('_', ' ')}" for name, value in budget.items())
        or "none: to convergence",
        "Patients": f"{len(scans)}: {', '.join(scans)}",
        "Seeds": f"{len(seeds)}: {', '.join(seeds)} (measurement noise and solver)",
        "Machine": "; ".join(dict.fromkeys(machine_text(row.get("machine") or {}) for row in rows)),
        "Date": " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "not recorded",
        "Bench": ", ".join(told.labels("bench_sha256")),
    }
    listed = [join([tag("dt", name), tag("dd", value)]) for name, value in facts.items() if value]
    return tag("header", tag("h1", _title(told)), tag("p", lead, class_="lead"), tag("dl", listed, class_="facts"))


def _results(told: Told) -> Markup:
    costs = [f"{heading(told.summary.metric)} less {told.summary.reference}: paired, with p of a sign-flip test."]
    return join([tag("p", costs[0], class_="note"), problem_tables(told.summary, told.slots)])


def _fronts() -> Markup:
    about = (
        "Mean quality with its 95 % interval against mean cost. The dashed line joins the methods that no other beats "
        "in both; a hollow mark was not timed alone."
    )
    return join([tag("p", about, class_="note"), _plot("fronts", problem="Problem", metric="Quality")])


def _curves(told: Told) -> Markup | None:
    if not any(row.get("curve") for row in told.rows):
        return None
    about = "One line for each case, from snapshots that are not charged to the solver."
    plot = _plot("curves", problem="Problem", scan="Case", cost="Against", metric="Quality")
    tables = [join([tag("h3", g.title), grid_table(g)]) for g in reach_grids(told.rows, told.summary)]
    return join([tag("p", about, class_="note"), plot, tables])


def _calibration(told: Told) -> Markup | None:
    if not calibrations(told.rows):
        return None
    about = (
        "Whether posterior samples are as uncertain as they are wrong: deviation / error is 1 if so, below 1 for a "
        "method that is too sure. On the diagonals coverage and error are as predicted; below the first, intervals "
        "are too narrow; above the second, which has a point for each tenth of the voxels, deviations are too small."
    )
    table = calibration_table(told.rows, told.slots, *told.unit)
    return join([tag("p", about, class_="note"), table, _plot("calibrated", problem="Problem")])


def _plot(name: str, **selects: str) -> Markup:
    choices = [tag("label", f"{label} ", tag("select", name=key)) for key, label in selects.items()]
    legend = tag("div", class_="legend", role="group", aria_label="Methods")
    panels = tag("div", tag("noscript", "Charts are drawn by a script."), class_="panels")
    return tag("div", tag("div", choices, class_="controls"), legend, panels, id=name)


def _settings(told: Told) -> Markup:
    whole = tag("details", tag("summary", "The whole bench"), tag("div", copyable(told.toml))) if told.toml else None
    where = tag("p", "Commands are typed in the folder of the bench's TOML.", class_="note")
    return join([whole, where, row_list(told.rows, told.slots)])


def _slices(told: Told, reduced: str) -> Markup:
    windows = [*WINDOWS, ("protocol", *told.window_hu)]
    presets = [tag("button", name, type="button", data_low=f"{a:g}", data_high=f"{b:g}") for name, a, b in windows]
    return Markup(Template(_asset("viewer.html")).substitute(presets=join(presets), reduced=reduced))


def _count(things: Sequence[str] | set[str], word: str) -> str:
    return f"{len(things)} {word}" if len(things) == 1 else f"{len(things)} {word}s"
