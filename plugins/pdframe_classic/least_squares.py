"""Weighted least squares, with optional Tikhonov damping: the reconstruction without a prior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from pdframe.core.linalg import cgls
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
class CGLSState:
    x: Tensor
    misfit: float
    iterations: int
    done: bool


@dataclass(frozen=True)
class CGLS(Solver[CGLSState]):
    """argmin |y - A x|_W^2 + damping |x|^2 by CGLS from zero, in one step of the loop."""

    settings: CGLSConfig

    @property
    def total_steps(self) -> int:
        return 1

    def init(self, problem: Problem, rng: torch.Generator) -> CGLSState:
        return CGLSState(problem.y.new_zeros(*problem.y.shape[:2], *problem.operator.grid.shape), torch.nan, 0, False)

    def step(self, problem: Problem, state: CGLSState, rng: torch.Generator) -> CGLSState:
        s, y = self.settings, problem.y
        weights = weights_of(problem, s.weighting)
        target = s.discrepancy * expected_misfit(problem, weights)
        fit = cgls(problem.operator, y, iterations=s.iterations, weights=weights, damping=s.damping, target=target)
        x = fit.x.clamp_min(0) if s.nonnegative else fit.x
        return CGLSState(x, float(fit.misfit.mean()) / y[0].numel(), fit.iterations, True)

    def view(self, state: CGLSState) -> Progress:
        stats = {"misfit": state.misfit, "iterations": state.iterations} if state.done else {}
        return Progress(state.x, state.done, stats)
