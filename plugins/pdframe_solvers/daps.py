"""Decoupled annealing posterior sampling (DAPS; Zhang et al., CVPR 2025, arXiv 2407.01521, algorithm 1).

    for sigma_t in a falling ladder:
        x0_hat = where the probability-flow ODE from (x_t, sigma_t) ends, by a few Euler steps     EDM, equation 1
        x0     ~ N(x; x0_hat, r_t^2 I) p(y | x), up to a constant                                  equation 7
        x_s    = x0 + sigma_s z                                                                    proposition 1

The paper draws x0 by Langevin steps, x <- x + h (A'W (y - A x) + (x0_hat - x) / r^2) + sqrt(2 h) z, equation 9. For a
linear A that law is Gaussian and can be drawn at once: the minimiser of |y + n - A x|_W^2 + |x - x0_hat - r z|^2 / r^2
with n of the noise's law (Papandreou and Yuille, NeurIPS 2010), by conjugate gradients. Both forms are here.

r_t^2 = 1 / (1 / sigma_t^2 + 1 / d^2) with d the prior's deviation. The paper takes r_t = sigma_t, the same at low
noise; unbounded at high noise it puts more noise where the data are silent than the next level is told of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pdframe.core.prior import Prior, per_item
from pdframe.core.problem import Problem
from pdframe.core.schedule import edm_sigmas
from pdframe.core.seeds import normal
from pdframe.core.solver import Progress, Solver
from pdframe_solvers.data_term import MODEL_ERROR, DataTerm, Fit, ModelError, Weighting, data_term
from pdframe_solvers.ladder import LadderConfig, SigmaMax, SigmaMin, Steps, noise_levels
from pdframe_solvers.start import Start, WarmSolver, started


class DAPSConfig(LadderConfig):
    """Settings of `daps`. The paper takes 200 levels, 5 ODE steps and 100 Langevin steps. Noise levels are in units of
    the prior's standard deviation of one voxel."""

    steps: Steps = 20
    sigma_max: SigmaMax = 10.0
    sigma_min: SigmaMin = 0.02
    start: Start = "noise"
    ode: int = Field(3, ge=1, description="Denoiser calls on the way from one level to the clean estimate.")
    draw: Literal["exact", "langevin"] = Field(
        "exact", description="Draw x0 by conjugate gradients on a perturbed problem, or by Langevin steps."
    )
    cg: int = Field(20, ge=0, description="Most conjugate-gradient steps of an exact draw.")
    langevin: int = Field(100, ge=1, description="Langevin steps of a draw; each is a forward and an adjoint call.")
    rate: float = Field(0.5, gt=0, lt=2, description="Langevin step, over its stability limit of 2.")
    weighting: Weighting = "statistical"
    model_error: ModelError = MODEL_ERROR
    nonnegative: bool = Field(True, description="Set negative voxels of each draw to 0.")

    def build(self, prior: Prior) -> Solver:
        return started(DAPS(prior, self))


@dataclass(frozen=True)
class DAPSState:
    """x: the noisy volume at the level of the next step. x0: the last draw. norm_squared: of W^(1/2) A, (batch,).

    misfit: of the last draw before clipping, in units of the variance, mean over y.
    """

    x: Tensor
    x0: Tensor
    norm_squared: Tensor
    step: int
    sigma: float
    misfit: float


@dataclass(frozen=True)
class DAPS(WarmSolver[DAPSState]):
    """DAPS on the noise ladder of its settings; see the head of this file for the algorithm."""

    prior: Prior
    settings: DAPSConfig

    @property
    def total_steps(self) -> int:
        return self.settings.steps

    def begin(self, problem: Problem, x0: Tensor, rng: torch.Generator) -> DAPSState:
        s, sigma = self.settings, noise_levels(self.settings, self.prior)[0]
        data = data_term(problem, s.weighting, s.model_error)
        if s.draw == "langevin" and data.noiseless:
            raise ValueError('Langevin draws need a noise model or a model_error above 0; or set draw = "exact"')
        norm_squared = data.curvature() if s.draw == "langevin" else x0.new_zeros(len(x0))
        return DAPSState(x0 + sigma * normal(x0, rng), x0, norm_squared, 0, sigma, math.nan)

    def step(self, problem: Problem, state: DAPSState, rng: torch.Generator) -> DAPSState:
        s = self.settings
        sigma, sigma_next = noise_levels(s, self.prior)[state.step : state.step + 2]
        data = data_term(problem, s.weighting, s.model_error)
        variance = 1 / (1 / sigma**2 + 1 / self.prior.deviation**2)

        x0_hat = self._flow(state.x, sigma, rng)
        if s.draw == "exact":
            x0, misfit, _ = self._exact(data, x0_hat, variance, rng)
        else:
            x0, misfit, _ = self._langevin(data, x0_hat, variance, state.norm_squared, rng)
        x0 = x0.clamp_min(0) if s.nonnegative else x0
        x_next = x0 + sigma_next * normal(x0, rng) if sigma_next else x0
        return DAPSState(x_next, x0, state.norm_squared, state.step + 1, sigma, misfit)

    def view(self, state: DAPSState) -> Progress:
        stats = {"sigma": state.sigma, "misfit": state.misfit} if state.step else {}
        return Progress(state.x0, state.step == self.settings.steps, stats)

    def _flow(self, x: Tensor, sigma: float, rng: torch.Generator) -> Tensor:
        """The end of dx / dsigma = (x - D(x, sigma)) / sigma, by Euler steps on a ladder of its own."""
        s, bottom = (
            self.settings,
            min(max(self.settings.sigma_min * self.prior.deviation, self.prior.sigma_range[0]), sigma),
        )
        levels = (*edm_sigmas(sigma, bottom, s.ode, s.rho), 0.0)
        for level, below in zip(levels, levels[1:], strict=False):
            clean = self.prior.denoise(x, x.new_full((len(x),), level), rng=rng)
            x = clean + below / level * (x - clean)
        return x

    def _exact(self, data: DataTerm, x0_hat: Tensor, variance: float, rng: torch.Generator) -> Fit:
        """One draw of N(x0_hat, variance I) p(y | x): a draw of each factor, reconciled."""
        centre = x0_hat + math.sqrt(variance) * normal(x0_hat, rng)
        if not data.noiseless:
            data = replace(data, y=data.y + data.weights.rsqrt() * normal(data.y, rng))
        return data.closest(centre, 1 / variance, cg=self.settings.cg)

    def _langevin(
        self, data: DataTerm, x0_hat: Tensor, variance: float, norm_squared: Tensor, rng: torch.Generator
    ) -> Fit:
        """Unadjusted Langevin steps from x0_hat, as long as `rate` times the inverse of the largest curvature."""
        h = per_item(self.settings.rate / (norm_squared + 1 / variance), x0_hat).to(x0_hat)
        x = x0_hat
        for _ in range(self.settings.langevin):
            slope, square = data.slope(x)
            x = x - h * (slope + (x - x0_hat) / variance) + (2 * h).sqrt() * normal(x, rng)
        return Fit(x, float(square.mean()) / data.values, 0)
