"""What the tests of the bench share: a third party's toys, installed, and a bench of them."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pdframe import registry
from pdframe.bench.config import Bench, load_bench

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


@pytest.fixture(scope="module")
def toys() -> Iterator[None]:
    """The distribution in tests/bench/site, installed for one file."""
    before = set(sys.modules)
    sys.path.insert(0, str(SITE))
    registry.refresh()
    yield
    sys.path.remove(str(SITE))
    for name in set(sys.modules) - before:
        if name.startswith("bench_toys"):
            del sys.modules[name]
    registry.refresh()


@pytest.fixture
def streams() -> Iterator[None]:
    """Puts the global random streams back after a test that moves them."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    yield
    random.setstate(kept[0])
    np.random.set_state(kept[1])  # noqa: NPY002
    torch.set_rng_state(kept[2])


@pytest.fixture(scope="module")
def make_bench(toys: None) -> Callable[..., Bench]:
    """make_bench(seeds=[0], ...): the bench of `TABLE` with some of its keys set otherwise."""

    def make(*overrides: str, **changes: Any) -> Bench:
        return load_bench({**TABLE, **changes}, overrides)

    return make


def lasting(row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a row does not depend on the time that it took, or on when and where it ran."""
    slow = {"seconds", "network_seconds", "operator_seconds", "peak_memory_bytes"}
    rows = [
        {**e, "usage": {k: v for k, v in e["usage"].items() if k not in slow}} if "usage" in e else e
        for e in row.get("rows", [])
    ]
    curve = [{k: v for k, v in point.items() if k not in slow} for point in row["curve"]]
    kept = {k: v for k, v in row.items() if k not in ("machine", "date")}
    return {**kept, "rows": rows, "curve": curve}
