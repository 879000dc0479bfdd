"""The one driver loop: budgets, callbacks, NaN guard, checkpoints and counting live here and nowhere else."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdframe.core import checkpoint as checkpoints
from pdframe.core.budget import Budget, Meter, Usage, counted_operator, counted_prior, overspent
from pdframe.core.checkpoint import Snapshot
from pdframe.core.memory import forget_own_peak
from pdframe.core.operator import ForwardOperator
from pdframe.core.prior import Prior, prior_on
from pdframe.core.problem import Problem
from pdframe.core.seeds import generator
from pdframe.core.solver import Progress, Solver


class Status(Enum):
    """Why a solve ended; the value is the sentence to show."""

    finished = "The solver reached its own stopping rule."
    step_limit = "Stopped at the step limit before the solver's own stopping rule; allow more steps."
    seconds = "Stopped: the budget of seconds is spent."
    network_voxels = "Stopped: the budget of network voxel-evaluations is spent."
    network_flops = "Stopped: the budget of network floating-point operations is spent."
    view_calls = "Stopped: the budget of operator view-calls is spent."
    peak_memory_bytes = "Stopped: the budget of memory is spent."
    nonfinite = "The volume holds NaN or inf; lower the step size or check the units of y."
    interrupted = "Interrupted from the keyboard; this is the state after the last whole step."


@dataclass(frozen=True)
class Solution:
    """The estimate x, why the solve ended, what it cost, and the numbers of each step."""

    x: Tensor
    status: Status
    usage: Usage
    trace: tuple[dict[str, float], ...]


@dataclass(frozen=True)
class Posterior:
    """Independent solutions of one problem, and the mean and standard deviation of their x, voxel by voxel.

    With one sample the deviation is NaN: unknown.
    """

    solutions: tuple[Solution, ...]
    mean: Tensor
    deviation: Tensor
    usage: Usage

    @property
    def samples(self) -> Tensor:
        """(sample, batch, channel, *spatial)."""
        return torch.stack([s.x for s in self.solutions])


OnStep = Callable[[int, Progress, Usage], None]


def solve(
    problem: Problem,
    solver: Solver,
    *,
    seed: int = 0,
    rng: torch.Generator | None = None,
    budget: Budget | None = None,
    on_step: OnStep | None = None,
    checkpoint: Path | str | None = None,
    checkpoint_every_s: float = 30.0,
) -> Solution:
    """Runs a solver on a problem until it is done, its budget is spent, or its volume is no longer finite.

    seed: keys the solver's random stream; `rng` replaces that stream.
    on_step: called with (steps done, Progress, Usage) after each step; its time is not charged to the solver.
    checkpoint: a file that is written at most every `checkpoint_every_s` seconds and whenever the solve stops early.
        If it exists, the solve goes on from it, to the same bits as without the break; ValueError if it belongs to
        another problem. It is removed when the solver finishes.

    Raises TypeError for a solver that is not a dataclass.

    Steps run without autograd; a solver that needs gradients enables them itself.
    """
    if not dataclasses.is_dataclass(solver):
        raise TypeError(
            f"a solver must be a dataclass with its prior among its fields, so that what it calls can be counted: "
            f"{type(solver).__name__} is none"
        )
    rng = generator(seed, "solve") if rng is None else rng
    path = None if checkpoint is None else Path(checkpoint)
    key = "" if path is None else _key(problem, solver, rng)
    loop = _Loop(problem, solver, rng, budget or Budget(), on_step)

    with torch.no_grad():
        if path is not None and path.exists():
            loop.resume(checkpoints.load(path, key, problem.y.device))
        else:
            loop.start()
        saved_at = time.monotonic()
        while (status := loop.advance()) is None:
            if path is not None and time.monotonic() - saved_at >= checkpoint_every_s:
                checkpoints.save(path, loop.snapshot, key)
                saved_at = time.monotonic()

    if path is not None and status is Status.finished:
        path.unlink(missing_ok=True)
    elif path is not None and status is not Status.nonfinite:
        checkpoints.save(path, loop.snapshot, key)
    return Solution(loop.progress.x, status, loop.snapshot.usage, loop.snapshot.trace)


def posterior(
    problem: Problem,
    solver: Solver,
    *,
    samples: int,
    seed: int = 0,
    budget: Budget | None = None,
    on_sample: Callable[[int, Solution], None] | None = None,
) -> Posterior:
    """Independent solves with streams keyed by (seed, "sample", i): sample i does not depend on how many are drawn.

    `budget` is that of each sample. `on_sample` is called with (samples done, Solution).
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1: got {samples}")
    solutions: list[Solution] = []
    for i in range(samples):
        solutions.append(solve(problem, solver, rng=generator(seed, "sample", i), budget=budget))
        if on_sample is not None:
            on_sample(i + 1, solutions[-1])
    stack = torch.stack([s.x for s in solutions])
    deviation = stack.std(0) if samples > 1 else torch.full_like(stack[0], torch.nan)
    usage = Usage()
    for solution in solutions:
        usage = usage.plus(solution.usage)
    return Posterior(tuple(solutions), stack.mean(0), deviation, usage)


class _Loop:
    """One running solve: the counted problem and solver, and the snapshot after the last whole step."""

    def __init__(
        self, problem: Problem, solver: Solver, rng: torch.Generator, budget: Budget, on_step: OnStep | None
    ) -> None:
        device = problem.y.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            forget_own_peak()
        self.budget, self.on_step = budget, on_step
        self.meter = Meter(device)
        self.solver = _counted_solver(solver, problem, self.meter)
        self.problem = dataclasses.replace(problem, operator=counted_operator(problem.operator, self.meter))
        self.rng = rng
        self.snapshot: Snapshot
        self.progress: Progress

    def start(self) -> None:
        with self.meter.clock("seconds"):
            state = self.solver.init(self.problem, self.rng)
        self._keep(0, state, ())

    def resume(self, snapshot: Snapshot) -> None:
        self.meter.usage = snapshot.usage
        self.rng.set_state(snapshot.rng_state)
        self._keep(snapshot.step, snapshot.state, snapshot.trace)

    def advance(self) -> Status | None:
        """One step, if there is one to take; the status if there is none."""
        if (status := self._ended()) is not None:
            return status
        step = self.snapshot.step + 1
        try:
            with self.meter.clock("seconds"):
                state = self.solver.step(self.problem, self.snapshot.state, self.rng)
        except KeyboardInterrupt:
            return Status.interrupted
        self._keep(step, state, self.snapshot.trace)
        row = {"step": step, "seconds": self.meter.usage.seconds, **self.progress.stats}
        self.snapshot = dataclasses.replace(self.snapshot, trace=(*self.snapshot.trace, row))
        if self.on_step is not None:
            self.on_step(step, self.progress, self.meter.usage)
        return None

    def _keep(self, step: int, state: Any, trace: tuple[dict[str, float], ...]) -> None:
        with self.meter.clock("seconds"):
            self.progress = self.solver.view(state)
        self.snapshot = Snapshot(step, state, self.rng.get_state(), self.meter.usage, trace)

    def _ended(self) -> Status | None:
        if not bool(self.progress.x.isfinite().all()):
            return Status.nonfinite
        if self.progress.done:
            return Status.finished
        step, leg = self.snapshot.step, self.progress.leg
        spent = overspent(self.budget, self.meter.usage, step)
        # A leg before the last may have ended early, and left the last one no more steps for it.
        main_is_over = leg is not None and not leg.name and leg.done >= leg.total
        if spent == "steps" or step >= self.solver.total_steps or main_is_over:
            return Status.step_limit
        return None if spent is None else Status[spent]


def _counted_solver(solver: Solver, problem: Problem, meter: Meter) -> Solver:
    """The solver with its prior brought to the grid, and every prior and operator among its fields on the meter; so too
    in each solver among its fields."""
    counted: dict[str, Any] = {}
    for f in dataclasses.fields(solver):
        value = getattr(solver, f.name)
        if isinstance(value, Prior):
            counted[f.name] = counted_prior(prior_on(value, problem.operator.grid), meter)
        elif isinstance(value, ForwardOperator):
            counted[f.name] = counted_operator(value, meter)
        elif isinstance(value, Solver):
            counted[f.name] = _counted_solver(value, problem, meter)
    return dataclasses.replace(solver, **counted) if counted else solver


def _key(problem: Problem, solver: Solver, rng: torch.Generator) -> str:
    """What a checkpoint must agree in with the solve that goes on from it."""
    operator = problem.operator
    shape = (operator.grid, tuple(operator.data_shape), operator.matched, operator.views)
    return checkpoints.fingerprint(operator, shape, problem.y, problem.noise, solver, rng.get_state())
