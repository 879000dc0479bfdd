"""Table cells as Markdown, LaTeX or CSV; knows nothing of what they mean."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Grid:
    """One table as text cells, before any markup: heading first, then the body; and the notes below it."""

    title: str
    cells: list[list[str]]
    notes: list[str]


def as_markdown(grids: Iterable[Grid]) -> str:
    """Markdown that also reads well as text."""
    return "\n\n".join(_markdown(grid) for grid in grids) + "\n"


def as_latex(grids: Iterable[Grid]) -> str:
    r"""A `table` environment for each; needs `\usepackage{booktabs}`."""
    return "% needs \\usepackage{booktabs}\n" + "\n".join(_latex(grid) for grid in grids)


def csv_text(lines: Iterable[Mapping[str, Any]]) -> str:
    """A heading of the first line's keys, then every line."""
    table, text = list(lines), io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def _markdown(grid: Grid) -> str:
    cells = [[cell.replace("|", "\\|") for cell in line] for line in grid.cells]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    lines = []
    for line in [cells[0], rule, *cells[1:]]:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n\n".join([f"## {grid.title}", "\n".join(lines), *(note.replace("*", "\\*") for note in grid.notes)])


def _latex(grid: Grid) -> str:
    head, *body = [[_escaped(cell) for cell in line] for line in grid.cells]
    rows = ["{}" + " & ".join(line) + r" \\" for line in body]  # {}: after \\ a [ would open an option
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_escaped(grid.title)}. {' '.join(_escaped(note) for note in grid.notes)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    special |= {c: f"\\{c}" for c in "&%$#_{}"}
    return "".join(special.get(c, c) for c in text)
