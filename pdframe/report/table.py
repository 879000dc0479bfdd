"""Rows of results as a table: for the terminal, for Markdown, for a picture's title."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def _metric(name: str, form: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        value = row["metrics"].get(name)
        return "-" if value is None else format(value, form)

    return cell


def _usage(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row['usage'][name]:,.0f}"


#: Heading -> text of the cell. A row is an element of `rows` in record.json.
COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "method": lambda row: row["method"],
    "PSNR dB": _metric("psnr_db", ".2f"),
    "SSIM": _metric("ssim", ".3f"),
    "RMSE HU": _metric("rmse_hu", ".1f"),
    "seconds": lambda row: f"{row['usage']['seconds']:.1f}",
    "network calls": _usage("network_calls"),
    "operator calls (views)": lambda row: (
        f"{row['usage']['forward_calls'] + row['usage']['adjoint_calls']:,} ({row['usage']['view_calls']:,})"
    ),
}


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """Heading and body, as text."""
    return [list(COLUMNS), *([cell(row) for cell in COLUMNS.values()] for row in rows)]


def as_text(rows: Sequence[Row]) -> str:
    """Aligned columns; the first to the left, numbers to the right."""
    return _aligned(cells(rows), "  ", "")


def as_markdown(rows: Sequence[Row]) -> str:
    """A Markdown table that also reads well as text."""
    table = cells(rows)
    widths = [max(len(line[i]) for line in table) for i in range(len(COLUMNS))]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return _aligned([table[0], rule, *table[1:]], " | ", "|")


def in_short(row: Row) -> str:
    """What a picture says below a method's name."""
    metrics = row["metrics"]
    parts = [
        f"PSNR {metrics['psnr_db']:.2f} dB" if "psnr_db" in metrics else "",
        f"SSIM {metrics['ssim']:.3f}" if "ssim" in metrics else "",
        f"RMSE {metrics['rmse_hu']:.0f} HU" if "rmse_hu" in metrics else "",
    ]
    return "\n".join(part for part in parts if part)


def _aligned(table: Sequence[Sequence[str]], gap: str, edge: str) -> str:
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = []
    for line in table:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        lines.append(f"{edge} {gap.join(padded)} {edge}" if edge else gap.join(padded).rstrip())
    return "\n".join(lines)
