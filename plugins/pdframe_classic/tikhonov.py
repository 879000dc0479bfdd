"""Tikhonov regularisation: the smoothest x that fits, by conjugate gradients.

    minimise  (1 / 2L) |A x - y|_W^2 + (weight / 2) |D x|^2        D = identity or gradient

L is the largest eigenvalue of A'WA, so that `weight` means the same for any operator and dose (as in `admm_tv`). One
linear system, (A'WA / L + weight D'D) x = A'W y / L, preconditioned by FFT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pdframe.core.linalg import cg
from pdframe.core.prior import per_item
from pdframe.core.problem import Problem
from pdframe.core.solver import Progress, Solver
from pdframe.hooks import Config
from pdframe_classic.circulant import data_transfer, filtered, gradient_transfer
from pdframe_classic.data_term import Weighting, largest_eigenvalue, weights_of
from pdframe_classic.gradient import gradient, gradient_adjoint


class TikhonovConfig(Config):
    """Settings of `tikhonov`. Cost: at most `iterations` forward and adjoint calls, and 9 of each at the start."""

    penalty: Literal["gradient", "identity"] = Field(
        "gradient", description="What is kept small: the slope of x, or x itself."
    )
    weight: float = Field(
        0.1,
        ge=0,
        description="Strength, after division of the data term by the largest eigenvalue of A'WA; a length squared "
        "for the gradient (for CT mm^2), a number for the identity.",
    )
    iterations: int = Field(100, ge=1, description="Most conjugate-gradient steps.")
    tolerance: float = Field(1e-4, ge=0, description="Stop when the residual of the system is so small, relatively.")
    weighting: Weighting = Field(
        "none", description="Weight of each value of y: its inverse noise variance, or 1, which converges faster."
    )
    nonnegative: bool = Field(True, description="Set negative voxels to 0 at the end.")

    def build(self) -> Tikhonov:
        return Tikhonov(self)


@dataclass(frozen=True)
class TikhonovState:
    x: Tensor
    iterations: int
    done: bool


@dataclass(frozen=True)
class Tikhonov(Solver[TikhonovState]):
    """The minimiser at the head of this file, in one step of the loop."""

    settings: TikhonovConfig

    @property
    def total_steps(self) -> int:
        return 1

    def init(self, problem: Problem, rng: torch.Generator) -> TikhonovState:
        return TikhonovState(problem.y.new_zeros(*problem.y.shape[:2], *problem.operator.grid.shape), 0, False)

    def step(self, problem: Problem, state: TikhonovState, rng: torch.Generator) -> TikhonovState:
        s, y, operator, spacing = self.settings, problem.y, problem.operator, problem.operator.grid.spacing
        weights = weights_of(problem, s.weighting)
        scale = per_item(largest_eigenvalue(operator, weights), state.x).to(y)

        def normal(x: Tensor) -> Tensor:
            return x if s.penalty == "identity" else gradient_adjoint(gradient(x, spacing), spacing)

        def hessian(x: Tensor) -> Tensor:
            return operator.adjoint(weights * operator.forward(x)) / scale + s.weight * normal(x)

        transfer = data_transfer(operator, weights, state.x) / scale
        smooth = gradient_transfer(state.x, spacing) if s.penalty == "gradient" else 1.0
        inverse = 1 / (transfer + s.weight * smooth + 1e-6)  # the transfer may vanish where the penalty does
        right = operator.adjoint(weights * y) / scale
        solved = cg(
            hessian, right, iterations=s.iterations, tolerance=s.tolerance, precondition=lambda r: filtered(r, inverse)
        )
        x = solved.x.clamp_min(0) if s.nonnegative else solved.x
        return TikhonovState(x, solved.iterations, True)

    def view(self, state: TikhonovState) -> Progress:
        return Progress(state.x, state.done, {"iterations": state.iterations} if state.done else {})
