"""What a worker does with its job: build, guard, solve, and answer whatever happens.

There is no truth here, no dataset and no path of the bench: a method sees the measurement, the operator and settings.
Whoever asks for a dataset all the same gets none, and the row fails, even if the error is swallowed.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from pdframe import machine, registry, runfolder, solutions
from pdframe.bench.guard import Guard
from pdframe.bench.job import Job, Outcome, Point
from pdframe.core.budget import Budget, Usage
from pdframe.core.checkpoint import fingerprint
from pdframe.core.memory import is_refused, own_bytes
from pdframe.core.noise import NoNoise
from pdframe.core.problem import Dataset, Problem
from pdframe.core.solve import Solution, Status
from pdframe.core.solver import Leg, Progress
from pdframe.hooks import BackendMissing
from pdframe.part import PartOf


def answer(job: Job, folder: Path) -> Outcome:
    """The outcome of a job, whatever it does in Python; `folder` keeps what a second attempt can go on from."""
    facts: dict[str, Any] = {**machine.facts(), "load_at_start": _load()}
    with _without_datasets() as asked:
        outcome = _attempted(job, folder, facts)
    if not asked:
        return outcome
    offence = f"asked for a dataset ({', '.join(dict.fromkeys(asked))}), which may hold the truth"
    return Outcome("unfair", f"{offence}; {outcome.reason}" if outcome.status == "unfair" else offence, machine=facts)


def _attempted(job: Job, folder: Path, facts: dict[str, Any]) -> Outcome:
    try:
        with _memory_limit(job):
            return _solved(job, folder, facts)
    except BackendMissing as error:
        return Outcome("backend_missing", _one_line(error), machine=facts)
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: no plugin of ours is asked to end this
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({Path(place.filename).name}:{place.lineno})"
        kind = "out_of_memory" if is_refused(error) else "crashed"
        return Outcome(kind, _one_line(error) + where, machine=facts, details=traceback.format_exc())


def _solved(job: Job, folder: Path, facts: dict[str, Any]) -> Outcome:
    device = machine.chosen(job.device)
    facts |= {"device": str(device), "plugins": registry.versions()}
    operator = PartOf("operator").read(job.operator).build(grid=job.grid)
    noise = PartOf("noise").read(job.noise).build() if job.noise else NoNoise()
    problem = Problem(operator, job.y.to(device), noise)
    guard = Guard(problem)
    with ExitStack() as watched:
        watched.enter_context(guard.watch_calls(operator, ("forward", "adjoint")))
        part = PartOf("solver").read(job.solver)
        context = {"grid": job.grid, "operator": operator}
        prior = part.prior.build(**context) if part.prior else None
        if prior is not None:
            watched.enter_context(guard.watch_calls(prior, ("denoise",)))
        solver = part.build(**context, prior=prior)
        made_with = [fingerprint(solver), facts["plugins"], torch.__version__, torch.get_num_threads()]
        forget_other_attempts(folder, json.dumps(made_with))
        guard.watch_randomness()
        keep = _Keeper(folder, job.curve_points, solver.total_steps)
        found = solutions.draw(
            problem,
            solver,
            folder,
            job.y_sha256,
            count=job.samples,
            seed=job.seed,
            budget=Budget(**job.budget),
            on_step=keep,
        )
    shape = (*problem.y.shape[:2], *job.grid.shape)
    if wrong := next((tuple(s.x.shape) for s in found if tuple(s.x.shape) != shape), None):
        return Outcome("crashed", f"its volume has shape {wrong}, the grid asks for {shape}", machine=facts)
    usage = Usage()
    for solution in found:
        usage = usage.plus(solution.usage)
    if offence := guard.offence(usage):
        return Outcome("unfair", offence, machine=facts)
    sha256 = fingerprint(prior) if prior is not None else ""
    return _outcome(found, keep.points(found[0]), prior_sha256=sha256, machine=facts)


@contextmanager
def _without_datasets() -> Iterator[list[str]]:
    """Until the block ends no dataset is made, whatever way it is asked for; yields the classes that were."""
    asked: list[str] = []
    ended = False

    def made(kind: type[Dataset], *_: Any, **__: Any) -> Dataset:
        if not ended:
            asked.append(kind.__name__)
            raise PermissionError(f"{kind.__name__} is refused: a row is solved without the truth, which it may hold")
        return object.__new__(kind)

    # It stays there when the block has ended, and lets everything through: Python cannot take `__new__` back.
    Dataset.__new__ = made  # type: ignore[method-assign, assignment]
    try:
        yield asked
    finally:
        ended = True


def forget_other_attempts(folder: Path, made_with: str) -> None:
    """Removes what a killed attempt at this job left, if anything that it was made with is another now."""
    mark = folder / "made_with"
    if not mark.is_file() or mark.read_text() != made_with:
        for pattern in ("checkpoint_*", "solution_*", "point_*"):
            for left in folder.glob(pattern):
                left.unlink()
        runfolder.write(mark, made_with)


def _outcome(found: list[Solution], points: tuple[Point, ...], **more: Any) -> Outcome:
    failed = next((s for s in found if s.status is Status.nonfinite), None)
    status = (failed or found[0]).status
    samples = None if failed else torch.stack([s.x for s in found])
    usage, traces = tuple(s.usage for s in found), tuple(s.trace for s in found)
    return Outcome(status.name, status.value, samples, usage, traces, () if failed else points, **more)


class _Keeper:
    """Keeps the first sample's estimate after some steps, in files, so that an attempt that goes on has them all."""

    def __init__(self, folder: Path, count: int, total: int) -> None:
        self.folder, self.count, self.total = folder, count, total

    def __call__(self, sample: int, step: int, progress: Progress, usage: Usage) -> None:
        leg = progress.leg or Leg("", step, self.total)
        # 0: where a leg before this one ended, whose last step is told as the beginning of this.
        if sample == 0 and self.count and (leg.done == 0 or leg.done in curve_steps(self.count, leg.total)):
            point = Outcome("", "", points=(Point(step, usage, progress.x),))
            runfolder.write(self.folder / f"point_{step}.safetensors", point.to_bytes())

    def points(self, first: Solution) -> tuple[Point, ...]:
        """Those kept, and the estimate that the solve ended with."""
        if not self.count:
            return ()
        paths = self.folder.glob("point_*.safetensors")
        kept = sorted((Outcome.from_bytes(p.read_bytes()).points[0] for p in paths), key=lambda point: point.step)
        end = Point(len(first.trace), first.usage, first.x)
        return (*(point for point in kept if point.step < end.step), end)


def curve_steps(count: int, total: int) -> frozenset[int]:
    """About `count` of the steps 1..total: half of them evenly spaced, half in a geometric row, where much happens."""
    if count < 1 or total < 1:
        return frozenset()
    half = max(1, count // 2)
    even = {max(1, round(total * (i + 1) / half)) for i in range(half)}
    return frozenset(even | {max(1, round(total ** ((i + 1) / half))) for i in range(half)})


@contextmanager
def _memory_limit(job: Job) -> Iterator[None]:
    """So much private memory beyond what is taken now: on a GPU of its own, on Linux of the process."""
    limit = job.memory_limit_bytes
    if limit is not None and machine.chosen(job.device).type == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
    elif limit is not None and sys.platform == "linux":
        import resource

        taken = own_bytes("VmData") or 0
        before = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (taken + limit, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, before)
        return
    yield


def _load() -> float | None:
    """Processes that were running or waiting on this machine in the last minute, on average."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")[:300]
