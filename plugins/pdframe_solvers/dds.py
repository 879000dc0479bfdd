"""Decomposed diffusion sampling (DDS; Chung, Lee and Ye, ICLR 2024, arXiv 2303.05754) in variance-exploding form.

Notation: x_t = x0 + sigma_t z is the noisy volume (a VP sample divided by sqrt(abar), sigma = sqrt((1-abar)/abar)),
x0_hat = E[x0 | x_t] the denoiser's estimate, x0' the estimate after the data step.

    for sigma_t in a falling ladder:                                     EDM, equation 5
        x0_hat = D(x_t, sigma_t)                                         Tweedie
        x0'    = CG on (A'WA + gamma_t I) x = A'W y + gamma_t x0_hat, from x0_hat
        x_s    = x0' + sigma_s (sqrt(1 - eta^2) (x_t - x0_hat) / sigma_t + eta tau z)  DDIM, tau = 1
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from pdframe.core.prior import Prior, denoised
from pdframe.core.problem import Problem
from pdframe.core.seeds import normal
from pdframe.core.solver import Progress, Solver
from pdframe_solvers.data_term import MODEL_ERROR, Discrepancy, Fit, ModelError, Nonnegative, Weighting, data_term
from pdframe_solvers.ladder import LadderConfig, SigmaMax, SigmaMin, Steps, noise_levels
from pdframe_solvers.start import Start, WarmSolver, started


class DDSConfig(LadderConfig):
    """Settings of `dds`. The defaults are for one good volume, chosen on a chest CT from few views. For samples of the
    posterior set `temperature = 1`; the paper takes 50 steps from noise at eta 0.85, 5 CG steps and no proximal weight.
    Noise levels are in units of the prior's standard deviation of one voxel, so that they carry over between priors and
    units; they are clipped to the range that the prior was made for."""

    steps: Steps = 16
    sigma_max: SigmaMax = 4.0
    sigma_min: SigmaMin = 0.05
    eta: float = Field(1.0, ge=0, le=1, description="Share of fresh noise in each DDIM step; 0 is deterministic.")
    temperature: float = Field(
        0.3,
        ge=0,
        le=1,
        description="tau: scale of every fresh noise. 1 samples the posterior; below 1 the estimate leans to its mean "
        "and gains in PSNR what it loses in texture.",
    )
    start: Start = "pseudoinverse"
    cg: int = Field(30, ge=0, description="Most conjugate-gradient steps in one data step.")
    weighting: Weighting = "none"
    model_error: ModelError = MODEL_ERROR
    proximal: float = Field(
        1.0,
        ge=0,
        description="Pull towards the denoised volume in the data step, as a multiple of its inverse variance "
        "1/sigma^2 + 1/deviation^2 (1: exact for a white Gaussian prior). 0 relies on stopping early.",
    )
    discrepancy: Discrepancy = 0.0
    rounds: int = Field(1, ge=1, description="Rounds at each level, re-noised to the same level in between (K).")
    tilings: int = Field(1, ge=1, description="Denoiser calls averaged in each round, each with a fresh tiling (K).")
    last_tilings: int = Field(
        2,
        ge=1,
        description="At least so many at the last level, whose seams between patches no later level washes out.",
    )
    nonnegative: Nonnegative = True

    def build(self, prior: Prior) -> Solver:
        return started(DDS(prior, self))


@dataclass(frozen=True)
class DDSState:
    """x: the noisy volume at the level of the next step. x0: the estimate after the last data step.

    misfit: mean over y of its squared residual in units of the variance; 1 is the noise level.
    cg: iterations of the last data step.
    """

    x: Tensor
    x0: Tensor
    step: int
    sigma: float
    misfit: float
    cg: int


@dataclass(frozen=True)
class DDS(WarmSolver[DDSState]):
    """DDS on the noise ladder of its settings; see the head of this file for the algorithm."""

    prior: Prior
    settings: DDSConfig

    @property
    def total_steps(self) -> int:
        return self.settings.steps

    def begin(self, problem: Problem, x0: Tensor, rng: torch.Generator) -> DDSState:
        s, sigma = self.settings, self.sigmas[0]
        return DDSState(x0 + s.temperature * sigma * normal(x0, rng), x0, 0, sigma, math.nan, 0)

    def step(self, problem: Problem, state: DDSState, rng: torch.Generator) -> DDSState:
        sigma, sigma_next = self.sigmas[state.step : state.step + 2]
        eta, tau, rounds = self.settings.eta, self.settings.temperature, self.settings.rounds
        x = state.x

        last = state.step + 1 == self.settings.steps
        tilings = max(self.settings.tilings, self.settings.last_tilings if last else 1)
        for k in range(rounds):
            x0_hat = denoised(self.prior, x, sigma, tilings=tilings, rng=rng)
            x0, misfit, cg = self._data_step(problem, x0_hat, sigma)

            # DDIM (Song et al. 2021, equation 12) with DDS's reading of eta: part old noise, part fresh.
            old_noise = (x - x0_hat) / sigma
            x_next = x0 + sigma_next * (math.sqrt(1 - eta**2) * old_noise + eta * tau * normal(x, rng))

            # Back up to the same level (the paper's recurrent noising; RePaint) unless this was the last round.
            if k + 1 < rounds:
                x = x_next + tau * math.sqrt(sigma**2 - sigma_next**2) * normal(x, rng)

        return DDSState(x_next, x0, state.step + 1, sigma, misfit, cg)

    def view(self, state: DDSState) -> Progress:
        stats = {"sigma": state.sigma, "misfit": state.misfit, "cg": float(state.cg)} if state.step else {}
        return Progress(state.x0, state.step == self.settings.steps, stats)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The ladder in the unit of x, ending in 0."""
        return noise_levels(self.settings, self.prior)

    def _data_step(self, problem: Problem, x0_hat: Tensor, sigma: float) -> Fit:
        """argmin |y - A x|_W^2 + gamma |x - x0_hat|^2, by a few CG steps from x0_hat.

        gamma = proximal / r^2 with 1/r^2 = 1/sigma^2 + 1/deviation^2 the certainty of x0_hat: DiffPIR's rho_t at low
        noise, bounded at high noise as in PiGDM (Song et al., ICLR 2023, equation 8).
        """
        s = self.settings
        gamma = s.proximal * (1 / sigma**2 + 1 / self.prior.deviation**2)
        fit = data_term(problem, s.weighting, s.model_error).closest(x0_hat, gamma, cg=s.cg, discrepancy=s.discrepancy)
        return fit._replace(x=self._feasible(fit.x))

    def _feasible(self, x: Tensor) -> Tensor:
        return x.clamp_min(0) if self.settings.nonnegative else x
