"""Plug-and-play ADMM (Venkatakrishnan, Bouman and Wohlberg 2013) with any prior, its level annealed as in DPIR (Zhang
et al., IEEE TPAMI 2022, arXiv 2008.13751). In the scaled form of Boyd et al. 2011, section 3.1.1:

    x <- argmin |y - A x|_W^2 + rho |x - (z - u)|^2, by CG from the last x                 equation 3.5
    z <- D(x + u, sigma), the prior's denoiser in the place of its proximal map            equation 3.6
    u <- u + x - z                                                                         equation 3.7
    stop when the primal residual |x - z| and the dual residual rho |z - z_last| are small     section 3.3.1

The denoiser at level sigma stands for a prior of weight 1 / sigma^2, so rho = lambda / sigma^2. sigma falls down a
ladder for the first `anneal` steps and then stays: from there on it is ADMM proper, and for a denoiser that is a
proximal map it converges. As rho grows the scaled u = (dual variable) / rho is rescaled (section 3.4.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from pdframe.core.linalg import dot
from pdframe.core.prior import Prior
from pdframe.core.problem import Problem
from pdframe.core.solver import Progress, Solver
from pdframe_solvers.data_term import MODEL_ERROR, ModelError, Weighting, data_term
from pdframe_solvers.ladder import LadderConfig, falling_levels
from pdframe_solvers.start import Start, WarmSolver, started


class ADMMConfig(LadderConfig):
    """Settings of `admm`. Levels are in units of the prior's standard deviation of one voxel, so that they carry over
    between priors and units."""

    steps: int = Field(40, ge=1, description="Most ADMM steps.")
    anneal: int = Field(20, ge=1, description="Steps in which the denoiser's level falls from sigma_max to sigma_min.")
    sigma_max: float = Field(1.0, gt=0, description="First level of the denoiser, in prior deviations.")
    sigma_min: float = Field(0.1, gt=0, description="Last level of the denoiser, in prior deviations.")
    start: Start = "pseudoinverse"
    strength: float = Field(1.0, gt=0, description="lambda: ADMM's penalty times sigma^2. 1 is exact for MAP.")
    cg: int = Field(10, ge=1, description="Conjugate-gradient steps for x in each step, warm-started.")
    weighting: Weighting = "statistical"
    model_error: ModelError = MODEL_ERROR
    tolerance: float = Field(
        1e-3, ge=0, description="Stop when the relative primal and dual residuals are both below it; 0: never."
    )
    nonnegative: bool = Field(True, description="Set negative voxels of z to 0.")

    def build(self, prior: Prior) -> Solver:
        return started(ADMM(prior, self))


@dataclass(frozen=True)
class ADMMState:
    """x, its denoised copy z, and the scaled dual u; primal, dual: relative residuals (batch,), which end the solve.

    misfit: of x, mean over y of its squared residual in units of the variance.
    """

    x: Tensor
    z: Tensor
    u: Tensor
    primal: Tensor
    dual: Tensor
    step: int
    sigma: float
    misfit: float


@dataclass(frozen=True)
class ADMM(WarmSolver[ADMMState]):
    """Plug-and-play ADMM; see the head of this file for the algorithm."""

    prior: Prior
    settings: ADMMConfig

    @property
    def total_steps(self) -> int:
        return self.settings.steps

    def begin(self, problem: Problem, x0: Tensor, rng: torch.Generator) -> ADMMState:
        far = torch.full((len(x0),), torch.inf, dtype=torch.float64)
        return ADMMState(x0, x0, torch.zeros_like(x0), far, far, 0, self.levels[0], math.nan)

    def step(self, problem: Problem, state: ADMMState, rng: torch.Generator) -> ADMMState:
        s, sigma = self.settings, self.levels[min(state.step, self.settings.anneal - 1)]
        rho = s.strength / sigma**2
        u = state.u * (sigma / state.sigma) ** 2

        data = data_term(problem, s.weighting, s.model_error)
        x, misfit, _ = data.closest(state.z - u, rho, cg=s.cg, start=state.x)

        z = self.prior.denoise(x + u, x.new_full((len(x),), sigma), rng=rng)
        z = z.clamp_min(0) if s.nonnegative else z
        u = u + x - z

        # Relative to the size of what they compare (Boyd et al., section 3.3.1). The dual variable is rho u.
        primal = _norm(x - z) / torch.maximum(_norm(x), _norm(z)).clamp_min(1e-30)
        dual = _norm(z - state.z) / _norm(u).clamp_min(1e-30)
        return ADMMState(x, z, u, primal, dual, state.step + 1, sigma, misfit)

    def view(self, state: ADMMState) -> Progress:
        s, primal, dual = self.settings, float(state.primal.max()), float(state.dual.max())
        settled = state.step > s.anneal and max(primal, dual) <= s.tolerance
        stats = {"sigma": state.sigma, "misfit": state.misfit, "primal": primal, "dual": dual} if state.step else {}
        return Progress(state.z, settled, stats)

    @property
    def levels(self) -> tuple[float, ...]:
        """The denoiser's level in each of the first `anneal` steps, in the unit of x."""
        return falling_levels(self.settings, self.prior, self.settings.anneal)


def _norm(x: Tensor) -> Tensor:
    return dot(x, x).sqrt()
