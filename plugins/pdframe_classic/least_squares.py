"""Weighted least squares, with optional Tikhonov damping: the reconstruction without a prior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from pdframe.core.linalg import CGLSState, cgls_start, cgls_step
from pdframe.core.memory import held_bytes, solve_bytes, work_bytes
from pdframe.core.operator import ForwardOperator
from pdframe.core.problem import Problem
from pdframe.core.solver import Progress, Solver
from pdframe.hooks import Config
from pdframe_classic.data_term import Weighting, expected_misfit, weights_of


class CGLSConfig(Config):
    """Settings of `cgls`. Cost: at most `iterations` forward and adjoint calls."""

    iterations: int = Field(20, ge=1, description="Conjugate-gradient steps; few of them regularise.")
    damping: float = Field(
        0.0,
        ge=0,
        description="Tikhonov: adds damping |x|^2 to the weighted squared residual, in its unit over x's squared.",
    )
    discrepancy: float = Field(
        0.0,
        ge=0,
        description="Stop when the weighted squared residual is at most this multiple of what the noise model expects "
        "of it (1 is the noise level; Morozov). 0, or a problem without noise model: never.",
    )
    weighting: Weighting = Field(
        "statistical", description="Weight of each value of y: its inverse noise variance, or 1."
    )
    nonnegative: bool = Field(True, description="Set negative voxels to 0 at the end.")

    def build(self) -> CGLS:
        return CGLS(self)


@dataclass(frozen=True)
class CGLS(Solver[CGLSState]):
    """argmin |y - A x|_W^2 + damping |x|^2 by CGLS from zero."""

    settings: CGLSConfig

    @property
    def total_steps(self) -> int:
        return self.settings.iterations

    def init(self, problem: Problem, rng: torch.Generator) -> CGLSState:
        weights, target = self._weights_and_target(problem)
        return cgls_start(problem.operator, problem.y, weights=weights, target=target)

    def step(self, problem: Problem, state: CGLSState, rng: torch.Generator) -> CGLSState:
        weights, target = self._weights_and_target(problem)
        return cgls_step(problem.operator, state, weights=weights, damping=self.settings.damping, target=target)

    def view(self, state: CGLSState) -> Progress:
        x = state.x.clamp_min(0) if self.settings.nonnegative else state.x
        done = state.iterations == self.settings.iterations or not bool(state.active.any())
        return Progress(x, done, {"misfit": float(state.misfit.mean()) / state.residual[0].numel()})

    def _weights_and_target(self, problem: Problem) -> tuple[Tensor, Tensor]:
        weights = weights_of(problem, self.settings.weighting)
        return weights, self.settings.discrepancy * expected_misfit(problem, weights)


@solve_bytes.register
def _(solver: CGLS, operator: ForwardOperator, *, device: torch.device | str = "cpu") -> int:
    """x, its direction and slope; the residual and what a step makes of it."""
    return held_bytes(operator, (8, 1), (6, 8)) + work_bytes(solver, operator, device=device)
