"""From rows (one method on one case) to lines (one method on one problem): intervals, paired differences, costs.

Rows are plain dicts as `pdframe.bench.rows.read_rows` gives them. A failed one is told with its reason; its case is
missing from its line's numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pdframe.bench.rows import FAILED
from pdframe.bench.statistics import Case, Interval, holm, interval, sign_flip_p

Row = Mapping[str, Any]

#: Currency -> its amount in a row's usage, in the unit that the name ends in.
CURRENCIES: Mapping[str, Callable[[Row], float]] = {
    "network_tflop": lambda usage: usage["network_flops"] / 1e12,
    "voxel_evaluations_m": lambda usage: usage["network_voxels"] / 1e6,
    "view_calls": lambda usage: usage["view_calls"],
    "seconds": lambda usage: usage["seconds"],
    "peak_gb": lambda usage: usage["peak_memory_bytes"] / 1e9,
}


@dataclass(frozen=True)
class Spread:
    """A cost over cases: mean, least and most."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Method less reference over the cases that both have; p by sign flips, p_holm over all lines of the summary."""

    interval: Interval
    worst: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class Line:
    """One method (and one way to make its estimate) on one problem.

    metrics: intervals by name; empty if every case failed. residual: of the data, 1 if as large as the noise.
    ended: status -> number of cases. failures: "status: reason" -> the cases ("scan, seed 0") that failed so.
    timing: False if its seconds are not to be compared: a row ran beside others, or one of the problem on another
    machine. trials: of tuning that its settings come from, 0 if they are as written, None if the rows do not say.
    priors: how many different ones its rows were made with. machines, versions: what they were made on and with.
    """

    problem: str
    method: str
    estimate: str
    samples: int
    metrics: Mapping[str, Interval]
    residual: Interval | None
    costs: Mapping[str, Spread]
    ended: Mapping[str, int]
    failures: Mapping[str, Sequence[str]]
    timing: bool
    trials: int | None = None
    priors: int = 1
    machines: frozenset[str] = frozenset()
    versions: frozenset[str] = frozenset()
    difference: Difference | None = None

    @property
    def failed(self) -> int:
        return sum(len(cases) for cases in self.failures.values())

    @property
    def label(self) -> str:
        return self.method if self.samples == 1 else f"{self.method}, {self.estimate}"


@dataclass(frozen=True)
class Summary:
    """All lines; `metric` is what differences to `reference` are taken in, `comparisons` how many p are corrected."""

    lines: tuple[Line, ...]
    reference: str
    metric: str
    split: str
    comparisons: int


def summarise(rows: Sequence[Row], *, reference: str = "", metric: str = "psnr_db") -> Summary:
    """Every method on every problem, in the order of the rows, each compared with `reference` (a method's label).

    The reference is taken at its single sample. Default: the first method. Raises ValueError if rows of two splits are
    mixed, if one case has two measurements, or if no row is of the reference.
    """
    _check(rows)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    reference = reference or methods[0]
    if reference not in methods:
        raise ValueError(f"no row is of the reference {reference!r}; methods: {', '.join(methods)}")
    lines = _on_one_machine([_line(*key, rows) for key in _keys(rows)])
    against = {line.problem: values(rows, line.problem, reference, metric) for line in lines}
    found = []
    for line in lines:
        own = values(rows, line.problem, line.method, metric, line.estimate)
        base = against[line.problem]
        shared = {case: own[case] - base[case] for case in own if case in base}
        itself = line.method == reference and line.samples == 1
        found.append(None if itself or not shared else shared)
    p_values = [sign_flip_p(shared) for shared in found if shared]
    corrected = iter(zip(p_values, holm(p_values), strict=True))
    compared = [
        replace(line, difference=Difference(interval(shared), _worst(shared, metric), *next(corrected)))
        if shared
        else line
        for line, shared in zip(lines, found, strict=True)
    ]
    return Summary(tuple(compared), reference, metric, rows[0]["split"], len(p_values))


def values(rows: Sequence[Row], problem: str, method: str, metric: str, estimate: str = "") -> dict[Case, float]:
    """The metric by (scan, seed); without `estimate`, of the single sample. Failed cases are absent."""
    return {
        (row["scan"], row["seed"]): float(row["metrics"][metric])
        for row in rows
        if (row["problem"], row["method"]) == (problem, method)
        and metric in row["metrics"]
        and (row["estimate"] == estimate if estimate else row["samples"] == 1)
    }


def failed(row: Row) -> bool:
    """Whether a row holds a reason instead of a result."""
    return row["status"] in FAILED


def _check(rows: Sequence[Row]) -> None:
    if not rows:
        raise ValueError("there are no rows yet: run the bench first")
    if len(splits := {row["split"] for row in rows}) > 1:
        raise ValueError(f"rows of the splits {', '.join(sorted(splits))} do not belong in one table")
    measured: dict[Any, str] = {}
    for row in rows:
        case = (row["problem"], row["scan"], row["seed"])
        if measured.setdefault(case, row["y_sha256"]) != row["y_sha256"]:
            raise ValueError(f"case {case} has two different measurements: its rows cannot be compared")


def _keys(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """(problem, method, estimate) of every line; a method without any estimate has one line all the same."""
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    whole = dict.fromkeys((r["problem"], r["method"], r["estimate"]) for r in rows if not failed(r))
    none_left = {(r["problem"], r["method"]) for r in rows} - {key[:2] for key in whole}
    keys = [*whole, *((*key, "") for key in none_left)]
    return sorted(keys, key=lambda key: (problems.index(key[0]), methods.index(key[1])))


def _line(problem: str, method: str, estimate: str, rows: Sequence[Row]) -> Line:
    own = [row for row in rows if (row["problem"], row["method"]) == (problem, method)]
    mine = [row for row in own if row["estimate"] == estimate and not failed(row)]
    lost = {(row["scan"], row["seed"]): row for row in own if failed(row)}
    names = dict.fromkeys(name for row in mine for name in row["metrics"])
    residuals = {(row["scan"], row["seed"]): row["residual"] for row in mine if row["residual"] is not None}
    return Line(
        problem=problem,
        method=method,
        estimate=estimate,
        samples=mine[0]["samples"] if mine else 1,
        metrics={name: interval(values(mine, problem, method, name, estimate)) for name in names},
        residual=interval(residuals) if residuals else None,
        costs={name: _spread([amount(row["usage"]) for row in mine]) for name, amount in CURRENCIES.items() if mine},
        ended=Counter(row["status"] for row in (*mine, *lost.values())),
        failures=_failures(lost),
        timing=all(row["timing"] for row in mine),
        trials=max((row["trials"] for row in own if row.get("trials") is not None), default=None),
        priors=len({row.get("prior_sha256") for row in mine}),
        machines=frozenset(map(machine_of, mine)),
        versions=frozenset(_versions(row) for row in mine if "plugins" in (row.get("machine") or {})),
    )


def _on_one_machine(lines: Sequence[Line]) -> list[Line]:
    """The lines, without timing on problems whose rows ran on several machines."""
    machines: dict[str, frozenset[str]] = {}
    for line in lines:
        machines[line.problem] = machines.get(line.problem, frozenset()) | line.machines
    return [replace(line, timing=line.timing and len(machines[line.problem]) <= 1) for line in lines]


def machine_of(row: Row) -> str:
    """What of a machine a row's seconds depend on."""
    told = row.get("machine") or {}
    device = told.get("device", "cpu" if told.get("devices") == ["cpu"] else None)
    return repr([device, *(told.get(key) for key in ("cpu", "cores", "torch_threads", "devices", "onednn_limit"))])


def _versions(row: Row) -> str:
    """What of the software a row's result depends on."""
    told = row.get("machine") or {}
    return repr([told.get(key) for key in ("pdframe", "torch", "plugins")])


def _failures(lost: Mapping[Case, Row]) -> dict[str, list[str]]:
    told: dict[str, list[str]] = {}
    for (scan, seed), row in lost.items():
        status, reason = row["status"].replace("_", " "), " ".join((row.get("reason") or "").split())
        told.setdefault(f"{status}: {reason}" if reason else status, []).append(f"{scan}, seed {seed}")
    return told


def _spread(amounts: Sequence[float]) -> Spread:
    return Spread(sum(amounts) / len(amounts), min(amounts), max(amounts))


def _worst(shared: Mapping[Case, float], metric: str) -> float:
    return max(shared.values()) if smaller_is_better(metric) else min(shared.values())


def smaller_is_better(metric: str) -> bool:
    """Errors, by their name; anything else is a score."""
    return any(word in metric.split("_") for word in ("rmse", "mae", "mse", "nmse", "crps", "error", "lpips"))
