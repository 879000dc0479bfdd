"""Tikhonov regularisation: the smoothest x that fits, by conjugate gradients.

    minimise  (1 / 2L) |A x - y|_W^2 + (weight / 2) |D x|^2        D = identity or gradient

L is the largest eigenvalue of A'WA, so that `weight` means the same for any operator and dose (as in `admm_tv`). One
linear system, (A'WA / L + weight D'D) x = A'W y / L, preconditioned by FFT.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pdframe.core.linalg import CGState, cg_start, cg_step
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
    """Where CG is, the weights of the data, L for each item, and the preconditioner's transfer function."""

    cg: CGState
    weights: Tensor
    scale: Tensor
    precondition: Tensor


@dataclass(frozen=True)
class Tikhonov(Solver[TikhonovState]):
    """The minimiser at the head of this file."""

    settings: TikhonovConfig

    @property
    def total_steps(self) -> int:
        return self.settings.iterations

    def init(self, problem: Problem, rng: torch.Generator) -> TikhonovState:
        s, y, operator = self.settings, problem.y, problem.operator
        weights = weights_of(problem, s.weighting)
        right = operator.adjoint(weights * y)
        scale = per_item(largest_eigenvalue(operator, weights), right).to(y)
        transfer = data_transfer(operator, weights, right) / scale
        smooth = gradient_transfer(right, operator.grid.spacing) if s.penalty == "gradient" else 1.0
        precondition = 1 / (transfer + s.weight * smooth + 1e-6)  # the transfer may vanish where the penalty does
        start = cg_start(torch.zeros_like, right / scale, tolerance=s.tolerance)
        return TikhonovState(start, weights, scale, precondition)

    def step(self, problem: Problem, state: TikhonovState, rng: torch.Generator) -> TikhonovState:
        s, operator, spacing = self.settings, problem.operator, problem.operator.grid.spacing

        def normal(x: Tensor) -> Tensor:
            return x if s.penalty == "identity" else gradient_adjoint(gradient(x, spacing), spacing)

        def hessian(x: Tensor) -> Tensor:
            return operator.adjoint(state.weights * operator.forward(x)) / state.scale + s.weight * normal(x)

        after = cg_step(hessian, state.cg, precondition=lambda r: filtered(r, state.precondition))
        return replace(state, cg=after)

    def view(self, state: TikhonovState) -> Progress:
        x = state.cg.x.clamp_min(0) if self.settings.nonnegative else state.cg.x
        return Progress(x, state.cg.iterations == self.settings.iterations or not bool(state.cg.active.any()))
