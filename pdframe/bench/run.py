"""The driver of a bench: which rows are missing, jobs to the executor, outcomes judged where the truth is, row folders.

The bench folder is the state. A row appears whole or not at all; a driver that was killed finds those that are there
and runs the rest. Metrics are computed here and nowhere else: a worker never has the truth.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import tomli_w
import torch

from pdframe import registry, runfolder
from pdframe.bench.calibration import calibrate
from pdframe.bench.case import FrozenCase, follower, freeze, frozen, open_case
from pdframe.bench.config import Bench, CasePlan, Split, bench_sha256, folder_of, lacking
from pdframe.bench.executor import Executor, Failure
from pdframe.bench.job import Job, Outcome
from pdframe.bench.lock import tuned
from pdframe.bench.rows import BENCH, FAILED, ROW, ROWS, TRIED_AGAIN
from pdframe.config import table_sha256
from pdframe.core.solve import Solution, Status
from pdframe.judge import Judge
from pdframe.lock import only_one
from pdframe.mistakes import ConfigError
from pdframe.part import Part, PartOf
from pdframe.report.progress import Progress, Silent, on_console, told
from pdframe.report.table import in_short

TOML = "bench.toml"


@dataclass(frozen=True)
class RowPlan:
    """One method on one case: a row that is to be there. `part` is the solver with the settings for this problem."""

    case: CasePlan
    part: Part
    samples: int = 1

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
        cases = {plan.case.id: plan.case for plan in plans}
        for i, case in enumerate(cases.values()):
            self.progress.say(f"freezing case {i + 1} of {len(cases)}: {case.id}") if not self._there(case) else None
            freeze(self.bench, case, self.folder)
        _sweep(self.folder / self.under)
        missing = {plan.id: plan for plan in plans if self._is_missing(plan)}
        if missing:
            self._run(missing)
        return len(missing)

    def _there(self, case: CasePlan) -> bool:
        return (self.folder / "cases" / case.id / "case.json").is_file()

    def _is_missing(self, plan: RowPlan) -> bool:
        row = runfolder.read_json(self.folder / self.under / plan.id / ROW)
        if row is None:
            return True
        if row["config_sha256"] != plan.sha256(self.bench):
            raise ConfigError(
                f"{self.folder / self.under / plan.id}: was run with other settings of {plan.part.label!r}; "
                "give the changed method another label, or choose another folder (--out)"
            )
        if row["y_sha256"] != frozen(plan.case, self.folder)["y_sha256"]:
            raise ConfigError(f"{self.folder / self.under / plan.id}: is of another measurement than the frozen case")
        again = row["status"] in TRIED_AGAIN or (self.retry and row["status"] in FAILED)
        return again or (self.timing and not row["timing"])

    def _run(self, missing: dict[str, RowPlan]) -> None:
        opened = functools.lru_cache(maxsize=4)(lambda case: open_case(self.bench, case, self.folder))
        judge = functools.lru_cache(maxsize=1)(lambda case: opened(case).judge(self.bench.device))
        unusable = {name: why for name, plan in missing.items() if (why := lacking(plan.part))}
        jobs = (
            (name, self._job(plan, opened(plan.case)).to_bytes())
            for name, plan in missing.items()
            if name not in unusable
        )
        self.progress.started("rows", len(missing))
        for name, why in unusable.items():
            self._finish(missing[name], Outcome("backend_missing", why), judge(missing[name].case), "")
        done = len(unusable)
        try:
            with closing(self.executor.run(jobs, self.bench.timeout_s)) as results:
                for name, found in results:
                    plan = missing[name]
                    outcome = _outcome(found)
                    self._finish(plan, outcome, judge(plan.case), opened(plan.case).y_sha256)
                    done += 1
                    self.progress.stepped(done, {})
        except BaseException:
            self.progress.ended(f"stopped with {done} of {len(missing)}; the same command goes on from here")
            raise
        self.progress.ended(f"{done} done")

    def _job(self, plan: RowPlan, case: FrozenCase) -> Job:
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
        )

    def _finish(self, plan: RowPlan, outcome: Outcome, judge: Judge, y_sha256: str) -> None:
        """Judges an outcome and writes its row."""
        solutions = _solutions(outcome, judge)
        row = {**self._head(plan, outcome), **_judged(outcome, solutions, judge)}
        home = self.folder / self.under / plan.id
        new, old = (home.with_name(f".{home.name}.{state}") for state in ("new", "old"))
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        if solutions:
            runfolder.save_solutions(new, solutions, judge.item)
        runfolder.write_json(new / ROW, row)
        if home.exists():
            os.replace(home, old)
        os.replace(new, home)
        shutil.rmtree(old, ignore_errors=True)
        short = in_short(row["rows"][-1]).split("\n")[0] if row["rows"] else row["reason"]
        spent = f" ({told(row['rows'][-1]['usage']['seconds'])})" if row["rows"] else ""
        self.progress.say(f"{plan.id}: {row['status']}{': ' + short if short else ''}{spent}")

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
            "reason": outcome.reason,
            "timing": self.executor.alone,
            "config": plan.config,
            "budget": self.bench.budget.model_dump(exclude_none=True),
            "timeout_s": self.bench.timeout_s,
            "memory_limit_gib": self.bench.memory_limit_gib,
            "command": f"{self.command} --only '{plan.id}'" if self.command else "",
            "machine": dict(outcome.machine),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }


@dataclass(frozen=True)
class BenchResult:
    """A bench folder, how many rows this call ran, and how many there are in all that it was asked for."""

    folder: Path
    ran: int
    rows: int


def run_bench(
    bench: Bench,
    *,
    out_dir: Path | None = None,
    variant: str = "",
    only: Sequence[str] = (),
    timing: bool = False,
    retry: bool = False,
    console: bool = False,
) -> BenchResult:
    """Runs the rows of the test split that are not there yet.

    out_dir: the bench folder; default runs/<name of the TOML>[-<variant>]. only: patterns; rows are run whose id
    (case/method) or whose method's label matches one. timing: one row at a time, and those again that ran beside
    others. retry: rows that failed again. ConfigError if the folder belongs to another bench, or if tuning has not
    ended; FolderBusy if another process works in it.
    """
    folder = out_dir or default_folder(bench, variant)
    progress = on_console() if console else Silent()
    with only_one(folder):
        progress.say(f"{bench.title or folder.name}\nbench folder {folder}")
        chosen = tuned(bench, folder)
        write_head(bench, folder)
        plans = [
            RowPlan(case, method.part(case.problem, chosen[method.label][case.problem]), method.samples)
            for case in bench.cases("test")
            for method in bench.method
        ]
        plans = [plan for plan in plans if not only or _is_asked_for(plan, only)]
        if not plans:
            raise ConfigError("no row is asked for: is there a scan of the test split, and does --only match one?")
        part = PartOf("executor").read({"name": "local", "workers": 1}) if timing else bench.executor
        registry.require(part.entry)
        command = (
            f"pdframe bench run {bench.source.name if bench.source else 'BENCH.toml'}{variant and ' --' + variant}"
        )
        ran = Driver(bench, folder, part.build(), timing=timing, retry=retry, command=command, progress=progress).run(
            plans
        )
        progress.say(f"{ran} rows run" if ran else f"all {len(plans)} rows were done before: nothing to do")
    return BenchResult(folder, ran, len(plans))


def default_folder(bench: Bench, variant: str = "") -> Path:
    """runs/<name of the TOML>, with the variant's name behind it."""
    stem = bench.source.stem if bench.source else "bench"
    return Path("runs") / (f"{stem}-{variant}" if variant else stem)


def write_head(bench: Bench, folder: Path) -> None:
    """bench.toml and bench.json, written only where they change. ConfigError if the folder holds another bench."""
    digest, earlier = bench_sha256(bench), runfolder.read_json(folder / BENCH) or {}
    if earlier.get("bench_sha256", digest) != digest:
        raise ConfigError(
            f"{folder} holds a bench with other problems, scans, seeds or budget: choose another folder (--out)"
        )
    splits: tuple[Split, ...] = ("test", "validation")
    head = {
        "bench_sha256": digest,
        "title": bench.title,
        "cases": [case.id for split in splits for case in bench.cases(split)],
        "methods": list(dict.fromkeys([*earlier.get("methods", ()), *(m.label for m in bench.method)])),
        "plugins": earlier.get("plugins") or {p.name: f"{p.distribution} {p.version}" for p in registry.plugins()},
    }
    if head != earlier:
        runfolder.write_json(folder / BENCH, head)
    text = tomli_w.dumps(bench.resolved())
    if not (folder / TOML).is_file() or (folder / TOML).read_text() != text:
        runfolder.write(folder / TOML, text)


def _is_asked_for(plan: RowPlan, only: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in only for name in (plan.id, plan.part.label))


def _outcome(found: bytes | Failure) -> Outcome:
    if isinstance(found, Failure):
        return Outcome(found.kind, found.reason)
    try:
        return Outcome.from_bytes(found)
    except ValueError:
        return Outcome("crashed", "the worker's outcome cannot be read")


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
    rows = [{"estimate": name, **estimate} for name, estimate in zip(names, estimates, strict=False)]
    quick, curve = follower(judge), []
    for point in outcome.points:
        spent = {key: getattr(point.usage, key) for key in ("seconds", "network_flops", "network_voxels", "view_calls")}
        curve.append({"step": point.step, **spent, **quick.metrics(point.x.to(judge.item.x))})
    calibration = None
    if len(solutions) > 1:
        body = judge.item.masks.get("body")
        samples = torch.stack([s.x for s in solutions])
        calibration = calibrate(samples, judge.item.x, body if body is not None and bool(body.any()) else None)
    return {"rows": rows, "curve": curve, "calibration": calibration}


def _sweep(rows: Path) -> None:
    """Puts right what a killed driver left: a row that was being replaced comes back, one half written goes."""
    for old in rows.glob("*/.*.old"):
        home = old.with_name(old.name[1 : -len(".old")])
        if not home.exists():
            os.replace(old, home)
        shutil.rmtree(old, ignore_errors=True)
    for new in rows.glob("*/.*.new"):
        shutil.rmtree(new)
