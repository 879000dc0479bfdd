"""What a reader needs to repeat or to cite it: the command and settings of every row, and BibTeX."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w

from pdframe.bench.summary import Row, failed
from pdframe.cite import cited, used
from pdframe.report.element import Markup, join, tag
from pdframe.report.results import key
from pdframe.report.table import in_short
from pdframe.report.tables import heading, number

#: Facts of a machine that a reader asks for, as `pdframe.machine.facts` names them.
MACHINE = ("cpu", "cores", "memory_gib", "devices", "torch", "python", "pdframe")


def row_list(rows: Sequence[Row], slots: Mapping[str, int]) -> Markup:
    """By problem and method: the settings, once where all cases share them, and each row with its command."""
    parts = []
    for problem in dict.fromkeys(row["problem"] for row in rows):
        of_problem = [row for row in rows if row["problem"] == problem]
        parts.append(tag("h3", problem))
        for method in dict.fromkeys(row["method"] for row in of_problem):
            parts.append(_method(method, [row for row in of_problem if row["method"] == method], slots))
    return join(parts)


def citations(settings: Mapping[str, Any], rows: Sequence[Row]) -> Markup:
    """BibTeX of every plugin that the bench names, with who asks for it, as one block to copy."""
    entries = used({**settings, "method": [row["config"] for row in rows if row.get("config")]})
    found = cited(entries)
    if not found:
        return tag("p", "No plugin that was used asks to be cited.")
    asked = [
        tag("li", tag("code", name), ": ", ", ".join(f"{e.kind} {e.name}" for e in entries if name in cited([e])))
        for name in found
    ]
    return join([tag("ul", asked), copyable("\n\n".join(found.values()))])


def copyable(text: str) -> Markup:
    """A block of code with a button that copies it; the button shows itself where scripts run."""
    return tag(
        "div", tag("pre", text), tag("button", "Copy", type="button", data_copy=True, hidden=True), class_="copy"
    )


def as_toml(settings: Mapping[str, Any]) -> str:
    """Settings as a TOML; what is None is left out."""
    return tomli_w.dumps(_without_none(settings)).strip()


def machine_text(machine: Mapping[str, Any]) -> str:
    """One line of the facts that matter."""
    units = {
        "cores": "{} cores",
        "memory_gib": "{} GiB",
        "torch": "torch {}",
        "python": "Python {}",
        "pdframe": "pdframe {}",
    }
    told = [(name, machine[name]) for name in MACHINE if machine.get(name) not in (None, "", ["cpu"])]
    flat = [(n, ", ".join(map(str, v)) if isinstance(v, list | tuple) else v) for n, v in told]
    return ", ".join(units.get(name, "{}").format(value) for name, value in flat) or "not recorded"


def numbers_text(row: Row) -> str:
    """The usual metrics in short: "PSNR 28.31 dB, SSIM 0.861, RMSE 78 HU"; "" of a row without them."""
    return ", ".join(in_short(row).splitlines())


def _method(method: str, rows: Sequence[Row], slots: Mapping[str, int]) -> Markup:
    cases: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        cases.setdefault((row["scan"], row["seed"]), []).append(row)
    settings = {json.dumps(row.get("config"), sort_keys=True, default=str) for row in rows}
    shared = rows[0].get("config") if len(settings) == 1 else None
    lost = sum(failed(row) for row in rows)
    note = f"{len(cases)} cases" + (f", {lost} failed" if lost else "")
    body = [copyable(as_toml(shared))] if shared else []
    body += [_case(found, with_settings=shared is None) for found in cases.values()]
    return tag("details", tag("summary", key(slots[method]), method, tag("small", note)), tag("div", body))


def _case(rows: Sequence[Row], *, with_settings: bool) -> Markup:
    row = rows[0]
    metrics = [", ".join(f"{heading(m)} {number(v, m)}" for m, v in r["metrics"].items()) for r in rows]
    told = [row["status"].replace("_", " "), numbers_text(row)]
    budget = ", ".join(f"{name} {value}" for name, value in (row.get("budget") or {}).items() if value is not None)
    facts = {
        "reason": row.get("reason"),
        **{r["estimate"] or "metrics": text for r, text in zip(rows, metrics, strict=True) if text},
        "data residual": "-" if row.get("residual") is None else number(row["residual"]),
        "usage": ", ".join(f"{name} {number(value)}" for name, value in (row.get("usage") or {}).items()),
        "budget": budget or "none",
        "timed alone": "yes" if row.get("timing") else "no",
        "measurement": f"SHA-256 {row['y_sha256']}",
        "bench": f"SHA-256 {row.get('bench_sha256', 'not recorded')}",
        "machine": machine_text(row.get("machine") or {}),
        "date": row.get("date"),
    }
    listed = [join([tag("dt", name), tag("dd", value)]) for name, value in facts.items() if value]
    summary = tag("summary", f"{row['scan']}, seed {row['seed']}", tag("small", "; ".join(t for t in told if t)))
    config = copyable(as_toml(row.get("config") or {})) if with_settings else None
    command = copyable(row["command"]) if row.get("command") else None
    return tag("details", summary, tag("div", command, config, tag("dl", listed, class_="facts small")))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list | tuple) else value
