"""Regularisation by denoising diffusion (RED-diff; Mardani et al., ICLR 2024, arXiv 2305.04391, algorithm 1) in
variance-exploding form: one volume mu, improved by Adam, while the prior looks at it through falling levels of noise.

    for sigma_t in a falling ladder:
        x_t  = mu + sigma_t z
        grad = A'W (A mu - y) / |W^(1/2) A|^2 + lambda (mu - D(x_t, sigma_t))
        mu   = Adam step along grad                                     Kingma and Ba 2015, algorithm 1

The paper's regulariser is lambda_t (eps_hat - eps)' mu with eps_hat - eps = (mu - D(x_t)) / sigma_t and, as it
recommends, lambda_t = lambda sigma_t, the inverse of the signal-to-noise ratio: sigma_t cancels. Its operators have
norm 1; here A is divided by its own, so that lambda means the same for any operator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from pdframe.core.prior import Prior, per_item
from pdframe.core.problem import Problem
from pdframe.core.seeds import normal
from pdframe.core.solver import Progress, Solver
from pdframe_solvers.data_term import MODEL_ERROR, ModelError, Weighting, data_term
from pdframe_solvers.ladder import LadderConfig, SigmaMax, SigmaMin, Steps, noise_levels
from pdframe_solvers.start import Start, WarmSolver, started


class REDDiffConfig(LadderConfig):
    """Settings of `red_diff`. `strength`, `beta1` and `beta2` are the paper's; it takes 1000 steps with a rate of 0.1
    on images in [-1, 1]. Noise levels and `rate` are in units of the prior's standard deviation of one voxel."""

    steps: Steps = 100
    sigma_max: SigmaMax = 10.0
    sigma_min: SigmaMin = 0.02
    start: Start = "pseudoinverse"
    strength: float = Field(0.25, ge=0, description="The paper's lambda: weight of the prior's pull.")
    rate: float = Field(0.1, gt=0, description="Adam's step, in prior deviations.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam's memory of the gradient.")
    beta2: float = Field(0.99, ge=0, lt=1, description="Adam's memory of its square.")
    weighting: Weighting = "none"
    model_error: ModelError = MODEL_ERROR
    nonnegative: bool = Field(True, description="Set negative voxels to 0 after each step.")

    def build(self, prior: Prior) -> Solver:
        return started(REDDiff(prior, self))


@dataclass(frozen=True)
class REDDiffState:
    """mu: the volume. first, second: Adam's moments. norm_squared: of W^(1/2) A, (batch,).

    misfit: of mu before the last step, in units of the variance, mean over y.
    """

    mu: Tensor
    first: Tensor
    second: Tensor
    norm_squared: Tensor
    step: int
    sigma: float
    misfit: float


@dataclass(frozen=True)
class REDDiff(WarmSolver[REDDiffState]):
    """RED-diff on the noise ladder of its settings; see the head of this file for the algorithm."""

    prior: Prior
    settings: REDDiffConfig

    @property
    def total_steps(self) -> int:
        return self.settings.steps

    def begin(self, problem: Problem, x0: Tensor, rng: torch.Generator) -> REDDiffState:
        zero, data = torch.zeros_like(x0), data_term(problem, self.settings.weighting, self.settings.model_error)
        return REDDiffState(x0, zero, zero, data.curvature(), 0, math.nan, math.nan)

    def step(self, problem: Problem, state: REDDiffState, rng: torch.Generator) -> REDDiffState:
        s, mu, k = self.settings, state.mu, state.step + 1
        sigma = noise_levels(s, self.prior)[state.step]

        x = mu + sigma * normal(mu, rng)
        x0_hat = self.prior.denoise(x, x.new_full((len(x),), sigma), rng=rng)

        # In prior deviations, so that Adam's guard against division by 0 means the same in any unit.
        data = data_term(problem, s.weighting, s.model_error)
        slope, square = data.slope(mu)
        slope = slope / per_item(state.norm_squared, slope).to(slope) + s.strength * (mu - x0_hat)
        slope = slope / self.prior.deviation

        first = s.beta1 * state.first + (1 - s.beta1) * slope
        second = s.beta2 * state.second + (1 - s.beta2) * slope**2
        direction = first / (1 - s.beta1**k) / ((second / (1 - s.beta2**k)).sqrt() + 1e-8)
        mu = mu - s.rate * self.prior.deviation * direction
        mu = mu.clamp_min(0) if s.nonnegative else mu
        misfit = float(square.mean()) / data.values
        return REDDiffState(mu, first, second, state.norm_squared, k, sigma, misfit)

    def view(self, state: REDDiffState) -> Progress:
        stats = {"sigma": state.sigma, "misfit": state.misfit} if state.step else {}
        return Progress(state.mu, state.step == self.settings.steps, stats)
