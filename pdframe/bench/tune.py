"""Tuning with equal effort: every method gets the same number of trials, or the same seconds, on the validation split.

The first trial of a method is the method as the bench writes it; one without `search` has none. Each round tries one
more for every method and problem; its rows lie in tuning/rows, what came of them in tuning/log.jsonl. A tuning that was
killed repeats no finished row. When the last search has ended, tuning/lock.json closes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic_core import PydanticCustomError

from pdframe import registry, runfolder
from pdframe.bench.case import missing_scans
from pdframe.bench.config import Bench, Method, Range, Tuning
from pdframe.bench.driver import Driver, RowPlan
from pdframe.bench.lock import LOG, TUNING, read_lock, refuse_after_test, rules_sha256, tuned, write_lock
from pdframe.bench.rows import FAILED, ROW, ROWS
from pdframe.bench.run import alone, default_folder, write_head
from pdframe.bench.search import Trial, propose
from pdframe.bench.statistics import patient_mean
from pdframe.mistakes import ConfigError
from pdframe.report.progress import Silent, on_console

UNDER = f"{TUNING}/{ROWS}"

Line = Mapping[str, Any]


@dataclass(frozen=True)
class TuneResult:
    """The bench folder, how many rows of the validation split this call ran, and the lock."""

    folder: Path
    ran: int
    lock: Mapping[str, Any]


@dataclass(frozen=True)
class Candidate:
    """Settings to be tried for one method on one problem; `number` counts its trials from 0, the defaults."""

    method: Method
    problem: str
    number: int
    settings: Mapping[str, Any]

    def plans(self, bench: Bench) -> list[RowPlan]:
        """Its rows: all validation cases of the problem."""
        part = self.method.part(self.problem, self.settings)
        part = replace(part, label=f"{self.method.label}, trial {self.number}")
        cases = [case for case in bench.cases("validation") if case.problem == self.problem]
        samples = (bench.tuning and bench.tuning.samples) or self.method.samples
        return [RowPlan(case, part, samples) for case in cases]


def tune_bench(bench: Bench, *, out_dir: Path | None = None, variant: str = "", console: bool = False) -> TuneResult:
    """Tunes every method on every problem, or goes on with it, or finds it done.

    out_dir: the bench folder; default runs/<name of the TOML>[-<variant>]. ConfigError if the bench has no [tuning]
    table or no validation scan, if a search space is wrong, or if the test split was opened before; BackendMissing if
    Optuna is asked for and missing; RuntimeError if workers were lost (the same command goes on).
    """
    folder = out_dir or default_folder(bench, variant)
    progress = on_console() if console else Silent()
    rules = _checked(bench)
    with runfolder.held(folder, "bench"):
        lock = read_lock(bench, folder)
        if lock is not None:
            tuned(bench, folder)
            progress.say(f"{folder} was tuned before and is locked: nothing to do")
            return TuneResult(folder, 0, lock)
        refuse_after_test(folder)
        log = _read_log(bench, folder)
        write_head(bench, folder)
        for note in missing_scans(bench, folder):
            progress.say(note)
        # Seconds are equal effort only where nothing else takes them.
        part = alone(bench.executor) if rules.seconds else bench.executor
        registry.require(part.entry)
        driver = Driver(bench, folder, part.build(), under=UNDER, progress=progress)
        ran = 0
        while candidates := _round(bench, rules, log):
            progress.say(f"round {max(c.number for c in candidates)}: {len(candidates)} searches are open")
            ran += driver.run([plan for c in candidates for plan in c.plans(bench)])
            log += [_line(bench, rules, folder, c) for c in candidates]
            runfolder.write(folder / TUNING / LOG, "".join(json.dumps(line) + "\n" for line in log))
        if not log:  # no method has anything to search
            runfolder.write(folder / TUNING / LOG, "")
        lock = write_lock(bench, folder, _chosen(bench, rules, log))
        progress.say(f"tuning has ended after {len(log)} trials and is locked; the test split may be opened")
    return TuneResult(folder, ran, lock)


def _checked(bench: Bench) -> Tuning:
    """The rules, after every end of every search space was seen to be a setting of its method."""
    if bench.tuning is None:
        raise ConfigError("the bench has no [tuning] table: there is nothing to tune")
    if not bench.cases("validation"):
        raise ConfigError('no [[scan]] has split = "validation": there is nothing to tune on')
    for method in bench.method:
        for key, choices in method.search.items():
            for problem in bench.problem:
                _check_key(
                    method, key, (choices.low, choices.high) if isinstance(choices, Range) else choices, problem.label
                )
    return bench.tuning


def _check_key(method: Method, key: str, values: Sequence[Any], problem: str) -> None:
    place = f"method {method.label!r}, search.{key}"
    if key in method.settings_for.get(problem, {}):
        raise ConfigError(f"{place}: is set by [method.for] on problem {problem!r}, so that no trial could change it")
    for value in values:
        try:
            method.part(problem, {key: value})
        except (PydanticCustomError, ValueError) as error:
            raise ConfigError(f"{place}: {value!r} is no setting of solver {method.solver.name!r}: {error}") from None


def _round(bench: Bench, rules: Tuning, log: Sequence[Line]) -> list[Candidate]:
    """The next trial of every search that has not ended."""
    problems = [problem.label for problem in bench.problem if not problem.tuned_as]
    pairs = [(method, problem) for problem in problems for method in bench.method if method.search]
    return [found for method, problem in pairs if (found := _next(rules, method, problem, log)) is not None]


def _next(rules: Tuning, method: Method, problem: str, log: Sequence[Line]) -> Candidate | None:
    before = _of(log, method, problem)
    if before and (_effort_is_spent(rules, before) or _missing_parts(before[-1])):
        return None
    sign = 1.0 if rules.goal == "highest" else -1.0
    trials = [Trial(line["settings"], None if line["score"] is None else sign * line["score"]) for line in before]
    key = (rules.seed, problem, method.label)
    settings = propose(method.search, trials, key=key, sampler=rules.sampler)
    return None if settings is None else Candidate(method, problem, len(before), settings)


def _effort_is_spent(rules: Tuning, before: Sequence[Line]) -> bool:
    if rules.seconds is not None:
        return sum(line["seconds"] for line in before) >= rules.seconds
    return len(before) >= (rules.trials or 1)


def _missing_parts(line: Line) -> list[Mapping[str, Any]]:
    """Its cases that a library was missing for."""
    return [case for case in line["cases"] if case["status"] == "backend_missing"]


def _line(bench: Bench, rules: Tuning, folder: Path, candidate: Candidate) -> dict[str, Any]:
    """What came of a trial: its score is the mean over scans (of means over seeds), None if any case failed."""
    rows = [json.loads((folder / UNDER / plan.id / ROW).read_text()) for plan in candidate.plans(bench)]
    cases = [_case(rules, bench.timeout_s, row) for row in rows]
    if lost := [row for row in rows if row["status"] == "lost" and row.get("tries", 1) < 2]:
        raise RuntimeError(
            f"a worker was lost: {lost[0]['reason']}; the same command goes on from here, and counts the trial as "
            "failed if it is lost again"
        )
    values = {(case["scan"], case["seed"]): case["value"] for case in cases}
    return {
        "problem": candidate.problem,
        "method": candidate.method.label,
        "trial": candidate.number,
        "settings": dict(candidate.settings),
        "metric": rules.metric,
        "score": None if None in values.values() else patient_mean(values),
        "seconds": sum(case["seconds"] for case in cases),
        "cases": cases,
        "rules_sha256": rules_sha256(bench, candidate.method),
    }


def _case(rules: Tuning, timeout_s: float, row: Mapping[str, Any]) -> dict[str, Any]:
    """One case of a trial, judged by the method's main estimate: the mean where it draws several samples.

    A failed case counts what it spent or, where that is not known, its whole time limit: none gains by failing.
    """
    told = {"scan": row["scan"], "seed": row["seed"], "status": row["status"], "reason": row["reason"]}
    if row["status"] in FAILED or not row["rows"]:
        return {**told, "value": None, "seconds": timeout_s if row["solver_seconds"] is None else row["solver_seconds"]}
    main = row["rows"][-1]
    if rules.metric not in main["metrics"]:
        raise ConfigError(
            f"tuning.metric = {rules.metric!r} is not measured, or not finite; there are {', '.join(main['metrics'])}"
        )
    return {**told, "value": main["metrics"][rules.metric], "seconds": main["usage"]["seconds"]}


def _chosen(bench: Bench, rules: Tuning, log: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """The best trial of every method and problem; the earliest of equals; the method as it is written where every
    trial failed or there was nothing to try."""
    best = max if rules.goal == "highest" else min
    chosen: dict[str, dict[str, Any]] = {}
    for method in bench.method:
        for problem in bench.problem:
            lines = _of(log, method, problem.tuned_on)
            scored = [line for line in lines if line["score"] is not None]
            first = lines[0] if lines else {"settings": {}, "trial": None, "score": None}
            found = best(scored, key=lambda line: line["score"]) if scored else first
            chosen.setdefault(method.label, {})[problem.label] = {
                "settings": found["settings"],
                "trial": found["trial"],
                "score": found["score"],
                "default_score": first["score"],
                "trials": len(lines),
                "cannot_run": next((c["reason"] for line in lines for c in _missing_parts(line)), ""),
                "failed": len(lines) - len(scored),
                "seconds": sum(line["seconds"] for line in lines),
            }
    return chosen


def _of(log: Sequence[Line], method: Method, problem: str) -> list[Line]:
    return [line for line in log if (line["method"], line["problem"]) == (method.label, problem)]


def _read_log(bench: Bench, folder: Path) -> list[dict[str, Any]]:
    """The trials so far. ConfigError if they were made by other rules."""
    path = folder / TUNING / LOG
    log = [json.loads(text) for text in path.read_text().splitlines()] if path.is_file() else []
    rules = {method.label: rules_sha256(bench, method) for method in bench.method}
    for line in log:
        if rules.get(line["method"]) != line["rules_sha256"]:
            raise ConfigError(
                f"{path}: method {line['method']!r} or the [tuning] table is not what tuning began with: "
                "put it back, or choose another folder (--out)"
            )
    return log
