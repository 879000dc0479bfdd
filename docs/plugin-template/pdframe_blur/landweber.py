"""`landweber`: projected gradient descent on the weighted least squares (Landweber, Am. J. Math. 73, 1951).

x <- max(0, x + relaxation / L  A'W (y - A x)),   L = |A|^2 max W  at least the largest eigenvalue of A'WA
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from pdframe import Config, Problem, Progress, Solver, operator_norm


class LandweberConfig(Config):
    """Settings of `landweber`. Cost: one forward and one adjoint call a step."""

    steps: int = Field(20, ge=1, description="Iterations; few of them regularise.")
    relaxation: float = Field(1.0, gt=0, lt=2, description="Step length, in units of 1 / L.")

    def build(self) -> Landweber:
        return Landweber(self)


@dataclass(frozen=True)
class LandweberState:
    """misfit: mean squared residual of the step, in units of the noise variance."""

    x: Tensor
    largest: Tensor
    misfit: float
    step: int


@dataclass(frozen=True)
class Landweber(Solver[LandweberState]):
    settings: LandweberConfig

    @property
    def total_steps(self) -> int:
        return self.settings.steps

    def init(self, problem: Problem, rng: torch.Generator) -> LandweberState:
        y, weights = problem.y, problem.noise.inverse_variance(problem.y)
        x = y.new_zeros(*y.shape[:2], *problem.operator.grid.shape)
        heaviest = weights.flatten(1).amax(1).reshape(-1, *(1,) * (x.ndim - 1))
        largest = heaviest * operator_norm(problem.operator, device=y.device) ** 2
        return LandweberState(x, largest, float("nan"), 0)

    def step(self, problem: Problem, state: LandweberState, rng: torch.Generator) -> LandweberState:
        weights = problem.noise.inverse_variance(problem.y)
        residual = problem.y - problem.operator.forward(state.x)
        descent = problem.operator.adjoint(weights * residual)

        x = (state.x + self.settings.relaxation / state.largest * descent).clamp_min(0)
        return LandweberState(x, state.largest, float((weights * residual**2).mean()), state.step + 1)

    def view(self, state: LandweberState) -> Progress:
        stats = {"misfit": state.misfit} if state.step else {}
        return Progress(state.x, state.step == self.settings.steps, stats)
