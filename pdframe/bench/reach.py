"""What it costs to be as good as another: the first point of a curve of quality that reaches a target."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pdframe.bench.statistics import Case, Interval, interval
from pdframe.bench.summary import Row, failed, machine_of, smaller_is_better

Curve = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Reach:
    """How a method reached the target on one problem.

    reached of cases: where its curve got there at all. amount: what that took, over those cases, None without any.
    speedup: geometric mean of (the reference's amount to its own best) / (the method's amount) over the cases where
    both are known; above 1 the method is cheaper. None if the target is a plain number.
    timing: False if a row ran beside others, or on another machine: then seconds are not to be compared.
    """

    problem: str
    method: str
    reached: int
    cases: int
    amount: Interval | None
    speedup: Interval | None
    timing: bool


def amount_to_reach(curve: Curve, target: float, currency: str = "seconds", metric: str = "psnr_db") -> float | None:
    """The currency spent at the first snapshot that is as good as `target`; None if there is none.

    Nothing is interpolated: the amount was enough, and the truth may lie back as far as the snapshot before.
    """
    for point in curve:
        value = point.get(metric)
        if value is not None and (value <= target if smaller_is_better(metric) else value >= target):
            return float(point[currency])
    return None


def reach(
    rows: Sequence[Row], target: str | float, *, currency: str = "seconds", metric: str = "psnr_db"
) -> list[Reach]:
    """Every method of every problem against one target.

    target: a number, or the label of a method: then its best value on each case. currency: "seconds", "network_flops",
    "view_calls" or "step", as the curves have them. A case without a curve counts as not reached.
    """
    single = [row for row in rows if row["samples"] == 1 or failed(row)]
    methods = list(dict.fromkeys(row["method"] for row in single))
    if isinstance(target, str) and target not in methods:
        raise ValueError(f"no row is of the method {target!r}; methods: {', '.join(methods)}")
    problems = list(dict.fromkeys(row["problem"] for row in single))
    return [
        _reach([row for row in single if row["problem"] == problem], problem, method, target, (currency, metric))
        for problem in problems
        for method in methods
    ]


def _reach(rows: Sequence[Row], problem: str, method: str, target: str | float, unit: tuple[str, str]) -> Reach:
    own = _curves(rows, method)
    others = _curves(rows, target) if isinstance(target, str) else {}
    goals = {case: _best(curve, unit[1]) for case, curve in others.items()}
    took, ratio = {}, {}
    for case, curve in own.items():
        goal = goals.get(case) if isinstance(target, str) else target
        spent = None if goal is None else amount_to_reach(curve, goal, *unit)
        if spent is None:
            continue
        took[case] = spent
        reference = amount_to_reach(others[case], goal, *unit) if case in others else None
        if reference and spent:
            ratio[case] = math.log(reference / spent)
    compared = [row for row in rows if row["method"] in (method, target) and not failed(row)]
    timing = all(row["timing"] for row in compared) and len({machine_of(row) for row in compared}) <= 1
    amount = interval(took) if took else None
    return Reach(problem, method, len(took), len(own), amount, _exp(interval(ratio)) if ratio else None, timing)


def _curves(rows: Sequence[Row], method: str) -> dict[Case, Curve]:
    return {(row["scan"], row["seed"]): row.get("curve") or () for row in rows if row["method"] == method}


def _best(curve: Curve, metric: str) -> float | None:
    best = min if smaller_is_better(metric) else max
    return best((point[metric] for point in curve if point.get(metric) is not None), default=None)


def _exp(log: Interval) -> Interval:
    low, high = (None if edge is None else math.exp(edge) for edge in (log.low, log.high))
    return Interval(math.exp(log.mean), low, high, log.patients, log.seeds, log.cases)
