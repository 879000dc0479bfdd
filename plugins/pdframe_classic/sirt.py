"""Simultaneous iterative reconstruction (SIRT; Gregor and Benson, IEEE Trans. Med. Imaging 27, 2008).

    x <- max(x + relaxation C A' R (y - A x), 0)            R = 1 / row sums of A, C = 1 / column sums

A gradient step on |A x - y|_R^2 in the metric of 1 / C. The eigenvalues of C A'RA lie between 0 and 1, so that any
relaxation between 0 and 2 converges, without a norm to estimate. Stopping early regularises.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import Tensor

from pdframe.core.linalg import dot
from pdframe.core.memory import held_bytes, solve_bytes, work_bytes
from pdframe.core.operator import ForwardOperator
from pdframe.core.prior import per_item
from pdframe.core.problem import Problem
from pdframe.core.solver import Progress, Solver
from pdframe.hooks import Config
from pdframe_classic.data_term import expected_misfit, reciprocal, row_sums


class SIRTConfig(Config):
    """Settings of `sirt`. Cost: one forward and one adjoint call a step; 2 forward and 1 adjoint at the start."""

    steps: int = Field(100, ge=1, description="Most iterations; few of them regularise.")
    relaxation: float = Field(1.0, gt=0, lt=2, description="Length of a step; larger is faster, up to 2.")
    discrepancy: float = Field(
        0.0,
        ge=0,
        description="Stop when the mean squared residual, each in units of its noise variance, is at most this (1 is "
        "the noise level; Morozov). 0, or a problem without noise model: never.",
    )
    nonnegative: bool = Field(True, description="Set negative voxels to 0 in each step.")

    def build(self) -> SIRT:
        return SIRT(self)


@dataclass(frozen=True)
class SIRTState:
    """x; the inverse row sums R and column sums C.

    misfit (batch,): mean squared residual of the x before the last step. done: every item fits as well as was asked.
    """

    x: Tensor
    rows: Tensor
    columns: Tensor
    misfit: Tensor
    done: bool
    step: int


@dataclass(frozen=True)
class SIRT(Solver[SIRTState]):
    """SIRT from zero; see the head of this file for the algorithm. For operators without negative weights."""

    settings: SIRTConfig

    @property
    def total_steps(self) -> int:
        return self.settings.steps

    def init(self, problem: Problem, rng: torch.Generator) -> SIRTState:
        y, operator = problem.y, problem.operator
        rows = row_sums(operator, y)
        columns = operator.adjoint(torch.ones_like(rows))
        x = y.new_zeros(*y.shape[:2], *operator.grid.shape)
        return SIRTState(x, reciprocal(rows), reciprocal(columns), dot(y, y), False, 0)

    def step(self, problem: Problem, state: SIRTState, rng: torch.Generator) -> SIRTState:
        s, y, operator = self.settings, problem.y, problem.operator

        residual = y - operator.forward(state.x)
        trust = problem.noise.inverse_variance(y)
        misfit = dot(trust * residual, residual)
        going = misfit > s.discrepancy * expected_misfit(problem, trust)
        misfit = misfit / y[0].numel()
        if not bool(going.any()):
            return replace(state, misfit=misfit, done=True, step=state.step + 1)

        update = state.columns * operator.adjoint(state.rows * residual)
        x = state.x + s.relaxation * per_item(going, update).to(update) * update
        x = x.clamp_min(0) if s.nonnegative else x
        return replace(state, x=x, misfit=misfit, step=state.step + 1)

    def view(self, state: SIRTState) -> Progress:
        done = state.done or state.step == self.settings.steps
        return Progress(state.x, done, {"misfit": float(state.misfit.mean())})


@solve_bytes.register
def _(solver: SIRT, operator: ForwardOperator, *, device: torch.device | str = "cpu") -> int:
    """No directions as in conjugate gradients: fullest at the misfit."""
    return held_bytes(operator, (5, 1), (2, 7)) + work_bytes(solver, operator, device=device)
