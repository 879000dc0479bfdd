"""Decomposed diffusion sampling (DDS; Chung, Lee and Ye, ICLR 2024, arXiv 2303.05754) in variance-exploding form.

Notation: x_t = x0 + sigma_t z is the noisy volume (a VP sample divided by sqrt(abar), sigma = sqrt((1-abar)/abar)),
x0_hat = E[x0 | x_t] the denoiser's estimate, x0' the estimate after the data step.

    for sigma_t in a falling ladder:                                     EDM, equation 5
        x0_hat = D(x_t, sigma_t)                                         Tweedie
        x0'    = CG on (A'WA + gamma_t I) x = A'W y + gamma_t x0_hat, from x0_hat
        x_s    = x0' + sigma_s (sqrt(1 - eta^2) (x_t - x0_hat) / sigma_t + eta z)      DDIM
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pdframe.config import SolverPart
from pdframe.core.linalg import cgls
from pdframe.core.noise import NoNoise
from pdframe.core.operator import pseudoinverse
from pdframe.core.prior import Prior
from pdframe.core.problem import Problem
from pdframe.core.schedule import edm_sigmas
from pdframe.core.seeds import normal
from pdframe.core.solve import solve
from pdframe.core.solver import Progress, Solver
from pdframe.hooks import Config


class DDSConfig(Config):
    """Settings of `dds`. Noise levels are in units of the prior's standard deviation of one voxel, so that they carry
    over between priors and units; they are clipped to the range that the prior was made for."""

    steps: int = Field(30, ge=1, description="Noise levels on the way from sigma_max to 0.")
    sigma_max: float = Field(10.0, gt=0, description="First noise level, in prior deviations.")
    sigma_min: float = Field(0.02, gt=0, description="Last noise level above 0, in prior deviations.")
    rho: float = Field(7.0, gt=0, description="Curvature of the ladder (EDM): larger spends more steps at low noise.")
    eta: float = Field(0.85, ge=0, le=1, description="Share of fresh noise in each DDIM step; 0 is deterministic.")
    start: Literal["noise", "pseudoinverse"] | SolverPart = Field(
        "noise",
        description="Start from the prior's mean; or warm from the operator's pseudo-inverse of y (FDK for a cone "
        'beam), or from what another solver finds ({name = "admm_tv", weight = 5e-5}); plus noise of level sigma_max. '
        "A warm start is of use with sigma_max of 1 or less. What it costs is counted.",
    )
    cg: int = Field(10, ge=0, description="Most conjugate-gradient steps in one data step.")
    weighting: Literal["statistical", "none"] = Field(
        "statistical",
        description="Weight of each value of y in the data step: its inverse noise variance, or the same for all.",
    )
    proximal: float = Field(
        0.0,
        ge=0,
        description="Pull towards the denoised volume in the data step, as a multiple of its inverse variance "
        "1/sigma^2 + 1/deviation^2 (1: exact for a white Gaussian prior). 0 relies on stopping early.",
    )
    discrepancy: float = Field(
        1.0,
        ge=0,
        description="Stop a data step when the weighted mean squared residual is at most this multiple of its expected "
        "value under the noise model (Morozov's principle; 1 is the noise level). 0 never stops early.",
    )
    rounds: int = Field(1, ge=1, description="Rounds at each level, re-noised to the same level in between (K).")
    tilings: int = Field(1, ge=1, description="Denoiser calls averaged in each round, each with a fresh tiling (K).")
    nonnegative: bool = Field(True, description="Set negative voxels to 0 after each data step.")

    def build(self, prior: Prior) -> DDS:
        return DDS(prior, self)


@dataclass(frozen=True)
class DDSState:
    """x: the noisy volume at the level of the next step. x0: the estimate after the last data step.

    misfit: mean over y of its squared residual in units of the noise variance; 1 is the noise level.
    cg: iterations of the last data step.
    """

    x: Tensor
    x0: Tensor
    step: int
    sigma: float
    misfit: float
    cg: int


@dataclass(frozen=True)
class DDS(Solver[DDSState]):
    """DDS on the noise ladder of its settings; see the head of this file for the algorithm."""

    prior: Prior
    settings: DDSConfig

    @property
    def total_steps(self) -> int:
        return self.settings.steps

    def init(self, problem: Problem, rng: torch.Generator) -> DDSState:
        y, grid = problem.y, problem.operator.grid
        start = self.settings.start
        if start == "noise":
            x0 = y.new_full((*y.shape[:2], *grid.shape), self.prior.mean)
        elif start == "pseudoinverse":
            x0 = self._feasible(pseudoinverse(problem.operator, y))
        else:
            x0 = self._feasible(solve(problem, start.build(prior=self.prior), rng=rng).x)
        sigma = self.sigmas[0]
        return DDSState(x0 + sigma * normal(x0, rng), x0, 0, sigma, math.nan, 0)

    def step(self, problem: Problem, state: DDSState, rng: torch.Generator) -> DDSState:
        sigma, sigma_next = self.sigmas[state.step : state.step + 2]
        eta, rounds = self.settings.eta, self.settings.rounds
        x = state.x

        for k in range(rounds):
            x0_hat = self._denoised(x, sigma, rng)
            x0, misfit, cg = self._data_step(problem, x0_hat, sigma)

            # DDIM (Song et al. 2021, equation 12) with DDS's reading of eta: part old noise, part fresh.
            old_noise = (x - x0_hat) / sigma
            x_next = x0 + sigma_next * (math.sqrt(1 - eta**2) * old_noise + eta * normal(x, rng))

            # Back up to the same level (the paper's recurrent noising; RePaint) unless this was the last round.
            if k + 1 < rounds:
                x = x_next + math.sqrt(sigma**2 - sigma_next**2) * normal(x, rng)

        return DDSState(x_next, x0, state.step + 1, sigma, misfit, cg)

    def view(self, state: DDSState) -> Progress:
        stats = {"sigma": state.sigma, "misfit": state.misfit, "cg": float(state.cg)} if state.step else {}
        return Progress(state.x0, state.step == self.settings.steps, stats)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The ladder in the unit of x, ending in 0."""
        s, (lowest, highest) = self.settings, self.prior.sigma_range
        sigma_max = min(s.sigma_max * self.prior.deviation, highest)
        sigma_min = min(max(s.sigma_min * self.prior.deviation, lowest), sigma_max)
        return (*edm_sigmas(sigma_max, sigma_min, s.steps, s.rho), 0.0)

    def _denoised(self, x: Tensor, sigma: float, rng: torch.Generator) -> Tensor:
        """E[x0 | x], averaged over tilings."""
        level = x.new_full((x.shape[0],), sigma)
        total = self.prior.denoise(x, level, rng=rng)
        for _ in range(self.settings.tilings - 1):
            total = total + self.prior.denoise(x, level, rng=rng)
        return total / self.settings.tilings

    def _data_step(self, problem: Problem, x0_hat: Tensor, sigma: float) -> tuple[Tensor, float, int]:
        """argmin |y - A x|_W^2 + gamma |x - x0_hat|^2, by a few CG steps from x0_hat.

        W in units of the true inverse variance makes the operator's scale drop out. gamma = proximal / r^2 with
        1/r^2 = 1/sigma^2 + 1/deviation^2 the certainty of x0_hat: DiffPIR's rho_t at low noise, bounded at high
        noise as in PiGDM (Song et al., ICLR 2023, equation 8).
        """
        s, y, values = self.settings, problem.y, problem.y[0].numel()
        weights = problem.noise.inverse_variance(y)
        if s.weighting == "none":
            weights = (1 / (1 / weights).flatten(1).mean(1)).reshape(-1, *(1,) * (y.ndim - 1)).expand_as(y)
        noiseless = isinstance(problem.noise, NoNoise)  # nothing to weigh against: gamma and the noise level are 0
        gamma = 0.0 if noiseless else s.proximal * (1 / sigma**2 + 1 / self.prior.deviation**2)
        target = 0.0 if noiseless else s.discrepancy * values

        fit = cgls(problem.operator, y, iterations=s.cg, x0=x0_hat, weights=weights, damping=gamma, target=target)
        return self._feasible(fit.x), float(fit.misfit.mean()) / values, fit.iterations

    def _feasible(self, x: Tensor) -> Tensor:
        return x.clamp_min(0) if self.settings.nonnegative else x
