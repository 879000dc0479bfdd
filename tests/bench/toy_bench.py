"""A bench of toys: its table, and what of its rows can be compared to the bit."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: A third party's distribution, laid out as pip would install it.
SITE = Path(__file__).with_name("site")
#: One problem, one phantom, two seeds, a fair method in two lengths.
TABLE: dict[str, Any] = {
    "title": "toys",
    "seeds": [0, 1],
    "base": {
        "operator": {"name": "toy_matrix", "views": 4},
        "noise": {"name": "gaussian", "deviation": 0.01},
        "metrics": {"name": "ct"},
    },
    "scan": [{"label": "head", "dataset": {"name": "phantom", "shape": [6, 8, 10], "spacing_mm": [40.0, 30.0, 24.0]}}],
    "method": [
        {"name": "toy_descent", "label": "Descent"},
        {"name": "toy_descent", "label": "Short", "steps": 2},
    ],
    "executor": {"name": "local", "workers": 1, "threads": 1},
    "device": "cpu",
}


def lasting(row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a row does not depend on the time that it took, or on when and where it ran."""
    slow = {"seconds", "network_seconds", "operator_seconds", "peak_memory_bytes"}
    rows = [
        {**e, "usage": {k: v for k, v in e["usage"].items() if k not in slow}} if "usage" in e else e
        for e in row.get("rows", [])
    ]
    curve = [{k: v for k, v in point.items() if k not in slow} for point in row["curve"]]
    kept = {k: v for k, v in row.items() if k not in ("machine", "date", "solver_seconds", "command")}
    return {**kept, "rows": rows, "curve": curve}


def outside(*sites: Path) -> dict[str, str]:
    """The environment of a process that finds `sites` and the toys, and keeps its folders where this one does."""
    paths = [*map(str, sites), str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TMPDIR": tempfile.gettempdir()}
