"""What every solver must do."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pdframe.core.budget import Budget, Usage
from pdframe.core.checkpoint import fingerprint
from pdframe.core.problem import Problem
from pdframe.core.seeds import generator
from pdframe.core.solve import Solution, Status, solve
from pdframe.core.solver import Progress, Solver
from pdframe.testing.checks import Check, leaves_global_randomness, relative_gap, require, run_checks


def check_solver(solver: Solver, problem: Problem) -> list[Check]:
    """Runs every claim below: about ten solves, so choose a small problem and few steps."""
    return run_checks(CLAIMS, _Subject(solver, problem))


@dataclass(frozen=True)
class _Subject:
    solver: Solver
    problem: Problem

    def solve(self, **options: object) -> Solution:
        return solve(self.problem, self.solver, **options)


class _Killed(Exception):
    """Stands for a `kill -9` between two steps."""


def it_ends_with_a_finite_volume_on_the_grid(s: _Subject) -> str:
    for batch in (1, 2):
        y = s.problem.y[:1].expand(batch, *s.problem.y.shape[1:]).clone()
        x = solve(replace(s.problem, y=y), s.solver).x
        want = (batch, y.shape[1], *s.problem.operator.grid.shape)
        require(tuple(x.shape) == want, f"x must have shape {want}: got {tuple(x.shape)}")
        require(x.dtype == y.dtype and x.device == y.device, f"x must be {y.dtype} on {y.device}: got {x.dtype}")
        require(x.isfinite().all(), "x holds NaN or inf")
    return str(want)


def its_status_is_honest(s: _Subject) -> str:
    seen: list[bool] = []
    solution = s.solve(on_step=lambda k, progress, usage: seen.append(progress.done))
    require(solution.status in (Status.finished, Status.step_limit), f"status {solution.status.name}")
    require(len(seen) == len(solution.trace) <= s.solver.total_steps, f"{len(seen)} steps of {s.solver.total_steps}")
    require(not any(seen[:-1]), "the solver said done and went on")
    require(seen and seen[-1] == (solution.status is Status.finished), "the last step and the status disagree")
    return f"{solution.status.name} after {len(seen)} steps"


def it_gets_closer_to_the_data_than_zero_is(s: _Subject) -> str:
    y, weights = s.problem.y, s.problem.noise.inverse_variance(s.problem.y)
    residual = y - s.problem.operator.forward(s.solve().x)
    ratio = float((weights * residual**2).double().sum() / (weights * y**2).double().sum())
    require(ratio < 1, f"the weighted squared residual is {ratio:.2g} times that of x = 0")
    return f"{ratio:.2g} of the weighted squared data left"


def the_same_seed_gives_the_same_bits(s: _Subject) -> str:
    first, again = s.solve(seed=3), s.solve(seed=3)
    close = relative_gap(first.x, again.x) < 1e-4
    same = torch.equal(first.x, again.x) if s.problem.y.device.type == "cpu" else close
    require(same, "two solves with one seed differ")
    return "two solves"


def a_killed_solve_resumes_to_the_same_bits(s: _Subject) -> str:
    straight = s.solve(seed=4)
    steps = len(straight.trace)
    if steps < 2:
        return "one step: nothing to resume"

    def kill(step: int, progress: Progress, usage: Usage) -> None:
        if step == steps // 2 + 1:
            raise _Killed

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "solve.safetensors"
        try:
            s.solve(seed=4, checkpoint=path, checkpoint_every_s=0.0, on_step=kill)
        except _Killed:
            pass
        require(path.exists(), "no checkpoint was written")
        resumed = s.solve(seed=4, checkpoint=path)
    close = relative_gap(resumed.x, straight.x) < 1e-4
    same = torch.equal(resumed.x, straight.x) if s.problem.y.device.type == "cpu" else close
    require(same, "the resumed x differs: does the state hold all that `step` needs?")
    for got, want in zip(resumed.trace, straight.trace, strict=True):
        keys = [k for k in want if k != "seconds" and want[k] == want[k]]
        require(all(got[k] == want[k] for k in keys) or not close, "the resumed trace differs")
    require(resumed.usage.view_calls == straight.usage.view_calls, "the resumed usage differs")
    return f"killed after {steps // 2} of {steps} steps"


def the_state_is_not_changed_in_place(s: _Subject) -> str:
    """Called without the loop: on the problem itself and on a copy of the first state."""
    rng, problem = generator(5), s.problem
    with torch.no_grad():
        state = s.solver.init(problem, rng)
        for _ in range(min(2, s.solver.total_steps)):
            before = fingerprint(state)
            following = s.solver.step(problem, state, rng)
            require(fingerprint(state) == before, "`step` changed the state that it was given")
            s.solver.view(following)
            state = following
    return "init and two steps"


def the_problem_is_left_as_it_was(s: _Subject) -> str:
    before = fingerprint(s.problem.y, s.problem.noise)
    s.solve()
    require(fingerprint(s.problem.y, s.problem.noise) == before, "the solver changed the measurement")
    return "measurement and noise"


def it_stops_at_its_budget(s: _Subject) -> str:
    full = s.solve()
    if len(full.trace) < 2:
        return "one step: nothing to stop"
    part = s.solve(budget=Budget(steps=1))
    require(len(part.trace) == 1 and part.status is Status.step_limit, f"took {len(part.trace)} steps of 1")
    require(part.x.isfinite().all(), "the x of an early stop is not finite")
    return "after one step"


def global_randomness_is_left_alone(s: _Subject) -> str:
    require(leaves_global_randomness(lambda: s.solve()), "the solver moved a global stream")
    return "torch, numpy, random"


CLAIMS = (
    it_ends_with_a_finite_volume_on_the_grid,
    its_status_is_honest,
    it_gets_closer_to_the_data_than_zero_is,
    the_same_seed_gives_the_same_bits,
    a_killed_solve_resumes_to_the_same_bits,
    the_state_is_not_changed_in_place,
    the_problem_is_left_as_it_was,
    it_stops_at_its_budget,
    global_randomness_is_left_alone,
)
