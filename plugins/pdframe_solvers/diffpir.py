"""Denoising diffusion for plug-and-play restoration (DiffPIR; Zhu et al., CVPR workshops 2023, arXiv 2305.08995,
algorithm 1) in variance-exploding form: x_t = x0 + sigma_t z is a VP sample divided by sqrt(abar_t).

    for sigma_t in a falling ladder:
        x0_hat = D(x_t, sigma_t)                                                           equation 12a
        x0'    = argmin |y - A x|_W^2 + rho_t |x - x0_hat|^2,  rho_t = lambda / sigma_t^2      equation 12b
        eps'   = (x_t - x0') / sigma_t                                                     the noise, seen from x0'
        x_s    = x0' + sigma_s (sqrt(1 - zeta) eps' + sqrt(zeta) z)                        equation 15

W is the inverse variance of y, so rho_t is the paper's lambda sigma_n^2 / sigma_t^2. Unlike in `dds` the noise that is
kept is what x0' leaves of x_t, and the pull towards x0_hat weakens without bound as the noise grows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from pdframe.core.prior import Prior
from pdframe.core.problem import Problem
from pdframe.core.seeds import normal
from pdframe.core.solver import Progress, Solver
from pdframe_solvers.data_term import MODEL_ERROR, Discrepancy, ModelError, Nonnegative, Weighting, data_term
from pdframe_solvers.ladder import LadderConfig, SigmaMax, SigmaMin, Steps, noise_levels
from pdframe_solvers.start import Start, WarmSolver, started


class DiffPIRConfig(LadderConfig):
    """Settings of `diffpir`. `steps`, `strength` and `zeta` are the paper's (`zeta` that of its deblurring; it tunes it
    by task, up to 1). Noise levels are in units of the prior's standard deviation of one voxel."""

    steps: Steps = 100
    sigma_max: SigmaMax = 10.0
    sigma_min: SigmaMin = 0.02
    start: Start = "noise"
    strength: float = Field(
        1.0, ge=0, description="The paper's lambda: pull towards the denoised volume, in 1/sigma^2."
    )
    zeta: float = Field(
        0.1, ge=0, le=1, description="Share of fresh noise, in variance, in the step to the next level."
    )
    cg: int = Field(10, ge=0, description="Most conjugate-gradient steps in one data step.")
    weighting: Weighting = "statistical"
    model_error: ModelError = MODEL_ERROR
    discrepancy: Discrepancy = 1.0
    nonnegative: Nonnegative = True

    def build(self, prior: Prior) -> Solver:
        return started(DiffPIR(prior, self))


@dataclass(frozen=True)
class DiffPIRState:
    """x: the noisy volume at the level of the next step. x0: the estimate after the last data step.

    misfit: mean over y of its squared residual in units of the variance; 1 is the noise level.
    """

    x: Tensor
    x0: Tensor
    step: int
    sigma: float
    misfit: float
    cg: int


@dataclass(frozen=True)
class DiffPIR(WarmSolver[DiffPIRState]):
    """DiffPIR on the noise ladder of its settings; see the head of this file for the algorithm."""

    prior: Prior
    settings: DiffPIRConfig

    @property
    def total_steps(self) -> int:
        return self.settings.steps

    def begin(self, problem: Problem, x0: Tensor, rng: torch.Generator) -> DiffPIRState:
        sigma = noise_levels(self.settings, self.prior)[0]
        return DiffPIRState(x0 + sigma * normal(x0, rng), x0, 0, sigma, math.nan, 0)

    def step(self, problem: Problem, state: DiffPIRState, rng: torch.Generator) -> DiffPIRState:
        s, x = self.settings, state.x
        sigma, sigma_next = noise_levels(s, self.prior)[state.step : state.step + 2]

        x0_hat = self.prior.denoise(x, x.new_full((len(x),), sigma), rng=rng)

        data = data_term(problem, s.weighting, s.model_error)
        x0, misfit, cg = data.closest(x0_hat, s.strength / sigma**2, cg=s.cg, discrepancy=s.discrepancy)
        x0 = x0.clamp_min(0) if s.nonnegative else x0

        noise = (x - x0) / sigma
        x_next = x0 + sigma_next * (math.sqrt(1 - s.zeta) * noise + math.sqrt(s.zeta) * normal(x, rng))
        return DiffPIRState(x_next, x0, state.step + 1, sigma, misfit, cg)

    def view(self, state: DiffPIRState) -> Progress:
        stats = {"sigma": state.sigma, "misfit": state.misfit, "cg": float(state.cg)} if state.step else {}
        return Progress(state.x0, state.step == self.settings.steps, stats)
