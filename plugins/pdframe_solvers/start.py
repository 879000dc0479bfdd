"""Where a solver starts: at the prior's mean, at the operator's pseudo-inverse, or where another solver ends."""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from pdframe.config import SolverPart
from pdframe.core.memory import solve_bytes
from pdframe.core.operator import ForwardOperator, pseudoinverse
from pdframe.core.prior import Prior
from pdframe.core.problem import Problem
from pdframe.core.solver import Leg, Progress, Solver

State = TypeVar("State")

Start = Annotated[
    Literal["noise", "pseudoinverse"] | SolverPart,
    Field(
        description="Start from the prior's mean; or warm from the operator's pseudo-inverse of y (FDK for a cone "
        'beam), or from what another solver finds ({name = "admm_tv", weight = 5e-5}). Where the solver has noise '
        "levels, noise of the first is added: at a sigma_max of more than about 4 little of a warm start is left. What "
        "it costs is counted."
    ),
]


class Startable(Protocol):
    """Settings with a start among them."""

    start: Start
    nonnegative: bool


class WarmSolver(Solver[State]):
    """A solver that can begin at any volume, and so where another one ends."""

    prior: Prior
    settings: Startable

    @abc.abstractmethod
    def begin(self, problem: Problem, x0: Tensor, rng: torch.Generator) -> State:
        """The state before the first step. x0: a volume without noise, (batch, channel, *grid.shape)."""

    def init(self, problem: Problem, rng: torch.Generator) -> State:
        y = problem.y
        if not isinstance(self.settings.start, str):
            raise ValueError("a solver that starts from another comes from the `build` of its settings, both in one")
        if self.settings.start == "pseudoinverse":
            return self.begin_at(problem, pseudoinverse(problem.operator, y), rng)
        return self.begin(problem, y.new_full((*y.shape[:2], *problem.operator.grid.shape), self.prior.mean), rng)

    def begin_at(self, problem: Problem, x0: Tensor, rng: torch.Generator) -> State:
        """`begin` at a volume that was reconstructed: clipped at 0 if x is to be nonnegative."""
        return self.begin(problem, x0.clamp_min(0) if self.settings.nonnegative else x0, rng)


def started(solver: WarmSolver) -> Solver:
    """The solver as its settings ask for it: alone, or after the one that it starts from."""
    start = solver.settings.start
    return solver if isinstance(start, str) else Relay(start.build(prior=solver.prior), solver)


@dataclass(frozen=True)
class RelayState:
    """state: of the solver that runs. steps: that it has taken. handed_over: it is the second."""

    state: Any
    steps: int
    handed_over: bool


@dataclass(frozen=True)
class Relay(Solver[RelayState]):
    """Two solvers in one solve: the first until it is done or has taken its steps, the second from there."""

    first: Solver
    second: WarmSolver

    @property
    def total_steps(self) -> int:
        return self.first.total_steps + self.second.total_steps

    def init(self, problem: Problem, rng: torch.Generator) -> RelayState:
        return self._passed_on(problem, RelayState(self.first.init(problem, rng), 0, False), rng)

    def step(self, problem: Problem, state: RelayState, rng: torch.Generator) -> RelayState:
        solver = self.second if state.handed_over else self.first
        after = replace(state, state=solver.step(problem, state.state, rng), steps=state.steps + 1)
        return after if after.handed_over else self._passed_on(problem, after, rng)

    def view(self, state: RelayState) -> Progress:
        solver, name = (self.second, "") if state.handed_over else (self.first, "start")
        seen = solver.view(state.state)
        return replace(seen, done=state.handed_over and seen.done, leg=Leg(name, state.steps, solver.total_steps))

    def _passed_on(self, problem: Problem, state: RelayState, rng: torch.Generator) -> RelayState:
        seen = self.first.view(state.state)
        if not seen.done and state.steps < self.first.total_steps:
            return state
        return RelayState(self.second.begin_at(problem, seen.x, rng), 0, True)


@solve_bytes.register
def _(solver: Relay, operator: ForwardOperator, *, device: torch.device | str = "cpu") -> int:
    """The larger of its two: the first is gone when the second runs."""
    return max(solve_bytes(part, operator, device=device) for part in (solver.first, solver.second))
