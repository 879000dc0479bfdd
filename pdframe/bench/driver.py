"""Rows on their way: which are missing, jobs to the executor, outcomes judged where the truth is, row folders.

A row appears whole or not at all. Metrics are computed here and nowhere else: a worker never has the truth.
"""

from __future__ import annotations

import functools
import math
import shlex
import shutil
import traceback
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pdframe import runfolder
from pdframe.bench.calibration import calibrate
from pdframe.bench.case import FrozenCase, follower, freeze, frozen, is_frozen, open_case
from pdframe.bench.config import Bench, CasePlan, bench_sha256, folder_of, lacking
from pdframe.bench.executor import Executor, Failure
from pdframe.bench.job import Job, Outcome
from pdframe.bench.process import LOG
from pdframe.bench.rows import FAILED, ROW, ROWS, TRIED_AGAIN, sweep
from pdframe.config import table_sha256
from pdframe.core.memory import is_refused
from pdframe.core.solve import Solution, Status
from pdframe.hooks import BackendMissing
from pdframe.judge import Judge
from pdframe.mistakes import ConfigError
from pdframe.part import Part
from pdframe.report.progress import Progress, Silent, told
from pdframe.report.table import in_short


@dataclass(frozen=True)
class RowPlan:
    """One method on one case: a row that is to be there. `part` is the solver with the settings for this problem.

    trials: how many trials of tuning the settings come from; 0 if they are as written. untuned: why it must not run,
    where others were tuned and it was not.
    """

    case: CasePlan
    part: Part
    samples: int = 1
    trials: int = 0
    untuned: str = ""

    @property
    def id(self) -> str:
        """Its folder below `rows`."""
        return f"{self.case.id}/{runfolder.folder_names([self.part.label])[0]}"

    @property
    def config(self) -> dict[str, Any]:
        """The method's table, resolved."""
        return {**self.part.table(), "samples": self.samples}

    def sha256(self, bench: Bench) -> str:
        """Hash of the method's table; paths count relative to the bench's TOML."""
        return table_sha256({**self.part.table("python"), "samples": self.samples}, folder_of(bench))


@dataclass(frozen=True)
class Driver:
    """What rows are run with.

    under: folder of the rows in the bench folder. timing: run rows again that did not have the machine to themselves.
    retry: run rows again that failed. command: what a row says it can be repeated by; its id is appended.
    """

    bench: Bench
    folder: Path
    executor: Executor
    under: str = ROWS
    timing: bool = False
    retry: bool = False
    command: str = ""
    progress: Progress = field(default_factory=Silent)

    def run(self, plans: Sequence[RowPlan]) -> int:
        """Runs the rows that are not there yet and returns how many they were. Cases are frozen first."""
        self.check(plans)
        freeze_cases(self.bench, list({plan.case.id: plan.case for plan in plans}.values()), self.folder, self.progress)
        sweep(self.folder / self.under)
        missing = {plan.id: plan for plan in plans if self._is_missing(plan)}
        if missing:
            self._run(missing)
        return len(missing)

    def check(self, plans: Sequence[RowPlan]) -> None:
        """ConfigError if a row is there that was run with other settings."""
        for plan in plans:
            row = runfolder.read_json(self.folder / self.under / plan.id / ROW)
            if row is not None and row["config_sha256"] != plan.sha256(self.bench):
                raise ConfigError(
                    f"{self.folder / self.under / plan.id}: was run with other settings of {plan.part.label!r}; "
                    "give the changed method another label, or choose another folder (--out)"
                )

    def _is_missing(self, plan: RowPlan) -> bool:
        row = runfolder.read_json(self.folder / self.under / plan.id / ROW)
        if row is None:
            return True
        if row["y_sha256"] != frozen(plan.case, self.folder)["y_sha256"]:
            raise ConfigError(f"{self.folder / self.under / plan.id}: is of another measurement than the frozen case")
        again = row["status"] in TRIED_AGAIN or (self.retry and row["status"] in FAILED)
        return again or (self.timing and not row["timing"])

    def _run(self, missing: dict[str, RowPlan]) -> None:
        opened = functools.lru_cache(maxsize=4)(lambda case: open_case(self.bench, case, self.folder))
        judge = functools.lru_cache(maxsize=1)(lambda case: opened(case).judge(self.bench.device))
        unusable = {name: found for name, plan in missing.items() if (found := _unusable(plan)) is not None}
        jobs = (
            (name, self.job(plan, opened(plan.case)).to_bytes())
            for name, plan in missing.items()
            if name not in unusable
        )
        self.progress.started("rows", len(missing))
        for name, outcome in unusable.items():
            self._finish(missing[name], outcome, judge(missing[name].case), "")
        done = len(unusable)
        try:
            with closing(self.executor.run(jobs, self.bench.timeout_s)) as results:
                for name, found in results:
                    plan = missing[name]
                    outcome = _outcome(found)
                    self._finish(plan, outcome, judge(plan.case), opened(plan.case).y_sha256)
                    done += 1
                    self.progress.stepped(done)
        except BaseException:
            self.progress.ended(f"stopped with {done} of {len(missing)}; the same command goes on from here")
            raise
        self.progress.ended(f"{done} done")

    def job(self, plan: RowPlan, case: FrozenCase) -> Job:
        """What a worker is told of a row: nothing of `case.item` but its grid."""
        limit = self.bench.memory_limit_gib
        return Job(
            y=case.y,
            y_sha256=case.y_sha256,
            grid=case.item.grid,
            operator=case.base.operator.table(),
            noise=case.base.noise.table() if case.base.noise else None,
            solver=plan.part.table(),
            seed=plan.case.seed,
            budget=self.bench.budget.model_dump(exclude_none=True),
            samples=plan.samples,
            device=self.bench.device,
            curve_points=self.bench.curve_points,
            memory_limit_bytes=None if limit is None else int(limit * 2**30),
            timed=self.executor.alone,
        )

    def _finish(self, plan: RowPlan, outcome: Outcome, judge: Judge, y_sha256: str) -> None:
        """Judges an outcome and writes its row."""
        home = self.folder / self.under / plan.id
        solutions: list[Solution] = []
        try:
            solutions = _solutions(outcome, judge)
            judged = _judged(outcome, solutions, judge)
        except Exception as error:  # a metric, or estimates on the way that have another shape: the other rows go on
            if is_refused(error) or isinstance(error, OSError | BackendMissing):
                raise  # that is ours, not the method's
            outcome = _beyond_judgement(outcome, error)
            judged = _judged(outcome, [], judge)
        row = {**self._head(plan, outcome), **judged}
        if outcome.status == "lost":
            before = runfolder.read_json(home / ROW) or {}
            row["tries"] = before.get("tries", 0) + 1
        new = home.with_name(f".{home.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        if solutions:
            runfolder.save_solutions(new, solutions, judge.item)
        if outcome.details:
            runfolder.write(new / LOG, outcome.details)
        runfolder.write_json(new / ROW, row)
        runfolder.put_in_place(new, home)
        short = in_short(row["rows"][-1]).split("\n")[0] if row["rows"] else row["reason"]
        spent = f" ({told(row['rows'][-1]['usage']['seconds'])})" if row["rows"] else ""
        self.progress.say(f"{plan.id}: {row['status']}{': ' + short if short else ''}{spent}")

    def _doubt(self, outcome: Outcome) -> str:
        """What its reason adds where it may be the other rows' doing."""
        shared = not self.executor.alone and self.bench.memory_limit_gib is None
        memory = shared and outcome.status == "out_of_memory"
        return "; rows beside it may have taken it: `--retry` tries again" if memory else ""

    def _head(self, plan: RowPlan, outcome: Outcome) -> dict[str, Any]:
        case = plan.case
        return {
            "case": case.id,
            "problem": case.problem,
            "scan": case.scan,
            "split": case.split,
            "seed": case.seed,
            "method": plan.part.label,
            "y_sha256": frozen(case, self.folder)["y_sha256"],
            "bench_sha256": bench_sha256(self.bench),
            "config_sha256": plan.sha256(self.bench),
            "prior_sha256": outcome.prior_sha256,
            "status": outcome.status,
            "reason": outcome.reason + self._doubt(outcome),
            "solver_seconds": sum(u.seconds for u in outcome.usage) if outcome.usage else None,
            "timing": self.executor.alone,
            "config": plan.config,
            "trials": plan.trials,
            "budget": self.bench.budget.model_dump(exclude_none=True),
            "timeout_s": self.bench.timeout_s,
            "memory_limit_gib": self.bench.memory_limit_gib,
            "command": f"{self.command} --only {shlex.quote(plan.id)}" if self.command else "",
            "machine": dict(outcome.machine),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def freeze_cases(bench: Bench, cases: Sequence[CasePlan], folder: Path, progress: Progress) -> None:
    """Every one of these cases, written if it is not there."""
    for i, case in enumerate(cases):
        if not is_frozen(case, folder):
            progress.say(f"freezing case {i + 1} of {len(cases)}: {case.id}")
        freeze(bench, case, folder)


def _unusable(plan: RowPlan) -> Outcome | None:
    """The outcome of a method that is not run at all."""
    if plan.untuned:
        return Outcome("untuned", plan.untuned)
    return Outcome("backend_missing", why) if (why := lacking(plan.part)) else None


def _outcome(found: bytes | Failure) -> Outcome:
    if isinstance(found, Failure):
        return Outcome(found.kind, found.reason, details=found.details)
    try:
        return Outcome.from_bytes(found)
    except ValueError:
        return Outcome("crashed", "the worker's outcome cannot be read")


def _beyond_judgement(outcome: Outcome, error: Exception) -> Outcome:
    reason = f"its result could not be judged: {type(error).__name__}: {' '.join(str(error).split())}"[:300]
    details = "".join(traceback.format_exception(error))
    return replace(outcome, status="crashed", reason=reason, samples=None, points=(), details=details)


def _solutions(outcome: Outcome, judge: Judge) -> list[Solution]:
    """None of a row that failed."""
    if outcome.status in FAILED or outcome.samples is None:
        return []
    x = outcome.samples.to(judge.item.x)
    parts = zip(x, outcome.usage, outcome.traces, strict=True)
    return [Solution(volume, Status[outcome.status], usage, trace) for volume, usage, trace in parts]


def _judged(outcome: Outcome, solutions: Sequence[Solution], judge: Judge) -> dict[str, Any]:
    """Rows, curve and calibration; empty of a failure."""
    if not solutions:
        return {"rows": [], "curve": [], "calibration": None}
    estimates = judge.estimates(solutions)
    names = ["sample", f"mean of {len(solutions)}"]
    rows = [
        {"estimate": name, **estimate, "metrics": _finite(estimate["metrics"])}
        for name, estimate in zip(names, estimates, strict=False)
    ]
    quick, curve = follower(judge), []
    for point in outcome.points:
        spent = {key: getattr(point.usage, key) for key in ("seconds", "network_flops", "network_voxels", "view_calls")}
        curve.append({"step": point.step, **spent, **_finite(quick.metrics(point.x.to(judge.item.x)))})
    calibration = None
    if len(solutions) > 1:
        body = judge.item.masks.get("body")
        samples = torch.stack([s.x for s in solutions])
        calibration = calibrate(samples, judge.item.x, body if body is not None and bool(body.any()) else None)
    return {"rows": rows, "curve": curve, "calibration": calibration}


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those that have a value: the PSNR of an exact answer has none, and no mean could be taken with it."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
