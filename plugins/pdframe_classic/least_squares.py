"""Weighted least squares, with optional Tikhonov damping: the reconstruction without a prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pdframe.core.linalg import cgls
from pdframe.core.problem import Problem
from pdframe.core.solver import Progress, Solver
from pdframe.hooks import Config


class CGLSConfig(Config):
    """Settings of `cgls`. Cost: `iterations` forward and `iterations` adjoint calls."""

    iterations: int = Field(20, ge=1, description="Conjugate-gradient steps; few of them regularise.")
    damping: float = Field(
        0.0,
        ge=0,
        description="Tikhonov: adds damping |x|^2 to the weighted squared residual, in its unit over x's squared.",
    )
    weighting: Literal["statistical", "none"] = Field(
        "statistical", description="Weight of each value of y: its inverse noise variance, or 1."
    )
    nonnegative: bool = Field(True, description="Set negative voxels to 0 at the end.")

    def build(self) -> CGLS:
        return CGLS(self)


@dataclass(frozen=True)
class CGLSState:
    x: Tensor
    misfit: float
    done: bool


@dataclass(frozen=True)
class CGLS(Solver[CGLSState]):
    """argmin |y - A x|_W^2 + damping |x|^2 by CGLS from zero, in one step of the loop."""

    settings: CGLSConfig

    @property
    def total_steps(self) -> int:
        return 1

    def init(self, problem: Problem, rng: torch.Generator) -> CGLSState:
        return CGLSState(problem.y.new_zeros(*problem.y.shape[:2], *problem.operator.grid.shape), torch.nan, False)

    def step(self, problem: Problem, state: CGLSState, rng: torch.Generator) -> CGLSState:
        s, y = self.settings, problem.y
        weights = problem.noise.inverse_variance(y) if s.weighting == "statistical" else None
        fit = cgls(problem.operator, y, iterations=s.iterations, weights=weights, damping=s.damping)
        x = fit.x.clamp_min(0) if s.nonnegative else fit.x
        return CGLSState(x, float(fit.misfit.mean()) / y[0].numel(), True)

    def view(self, state: CGLSState) -> Progress:
        return Progress(state.x, state.done, {"misfit": state.misfit} if state.done else {})
