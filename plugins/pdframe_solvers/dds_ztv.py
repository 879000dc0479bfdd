"""DDS with total variation along z (Chung, Lee and Ye, ICLR 2024, arXiv 2303.05754; DiffusionMBIR, Chung et al., CVPR
2023): for priors that know one slice at a time. The prior speaks within slices, TV across them.

With D the difference along z, L the largest eigenvalue of A'WA, and d, u kept from one noise level to the next:

    for sigma_t in a falling ladder:
        x0_hat = D(x_t, sigma_t)                                                           Tweedie
        x0'    = CG on (A'WA / L + rho D'D) x = A'W y / L + rho D'(d - u), from x0_hat         ADMM, one sweep
        d      = soft(D x0' + u, lambda / rho)
        u      = u + D x0' - d
        x_s    = x0' + sigma_s (sqrt(1 - eta^2) (x_t - x0_hat) / sigma_t + eta tau z)      DDIM, tau = 1

The prior enters the data step as the place where CG starts, as in noiseless DDS: few steps keep x0' near x0_hat.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from pdframe.core.linalg import cg
from pdframe.core.prior import Prior, per_item
from pdframe.core.problem import Problem
from pdframe.core.seeds import normal
from pdframe.core.solver import Progress, Solver
from pdframe_solvers.data_term import MODEL_ERROR, ModelError, Nonnegative, Weighting, data_term
from pdframe_solvers.ladder import LadderConfig, SigmaMax, SigmaMin, Steps, noise_levels
from pdframe_solvers.start import Start, WarmSolver, started


class DDSZTVConfig(LadderConfig):
    """Settings of `dds_ztv`. `steps`, `eta` and `cg` are those of the paper's scripts, `penalty` and `threshold` theirs
    after division by the norm of their operator. Noise levels are in units of the prior's standard deviation."""

    steps: Steps = 50
    sigma_max: SigmaMax = 10.0
    sigma_min: SigmaMin = 0.02
    eta: float = Field(0.85, ge=0, le=1, description="Share of fresh noise in each DDIM step; 0 is deterministic.")
    temperature: float = Field(
        1.0, ge=0, le=1, description="tau: scale of every fresh noise, as in `dds`. The paper's is 1."
    )
    start: Start = "noise"
    cg: int = Field(5, ge=1, description="Conjugate-gradient steps in one data step.")
    penalty: float = Field(0.005, gt=0, description="ADMM's rho, after division of the data term by L.")
    threshold: float = Field(
        0.016,
        ge=0,
        description="lambda / rho: differences between slices up to it are taken for noise, in prior deviations.",
    )
    weighting: Weighting = "none"
    model_error: ModelError = MODEL_ERROR
    nonnegative: Nonnegative = True

    def build(self, prior: Prior) -> Solver:
        return started(DDSZTV(prior, self))


@dataclass(frozen=True)
class DDSZTVState:
    """x: the noisy volume at the level of the next step. x0: the estimate after the last data step.

    d, u: split differences and scaled dual, one slice fewer than x. back: A'W y / L. norm_squared: L, (batch,).
    """

    x: Tensor
    x0: Tensor
    d: Tensor
    u: Tensor
    back: Tensor
    norm_squared: Tensor
    step: int
    sigma: float


@dataclass(frozen=True)
class DDSZTV(WarmSolver[DDSZTVState]):
    """DDS with one ADMM sweep for TV along the first axis; see the head of this file for the algorithm."""

    prior: Prior
    settings: DDSZTVConfig

    @property
    def total_steps(self) -> int:
        return self.settings.steps

    def begin(self, problem: Problem, x0: Tensor, rng: torch.Generator) -> DDSZTVState:
        s, sigma = self.settings, noise_levels(self.settings, self.prior)[0]
        data = data_term(problem, s.weighting, s.model_error)
        norm_squared, zero = data.curvature(), torch.zeros_like(_difference(x0))
        back = problem.operator.adjoint(data.weights * data.y) / per_item(norm_squared, x0).to(x0)
        return DDSZTVState(x0 + s.temperature * sigma * normal(x0, rng), x0, zero, zero, back, norm_squared, 0, sigma)

    def step(self, problem: Problem, state: DDSZTVState, rng: torch.Generator) -> DDSZTVState:
        s, x, operator = self.settings, state.x, problem.operator
        sigma, sigma_next = noise_levels(s, self.prior)[state.step : state.step + 2]
        weights, scale = data_term(problem, s.weighting, s.model_error).weights, per_item(state.norm_squared, x).to(x)

        x0_hat = self.prior.denoise(x, x.new_full((len(x),), sigma), rng=rng)

        # One ADMM sweep; d and u stay for the next level ("variable sharing" of DiffusionMBIR).
        def hessian(p: Tensor) -> Tensor:
            return operator.adjoint(weights * operator.forward(p)) / scale + s.penalty * _transposed(_difference(p))

        right = state.back + s.penalty * _transposed(state.d - state.u)
        x0 = cg(hessian, right, x0_hat, iterations=s.cg).x
        v = _difference(x0) + state.u
        d = v.sign() * (v.abs() - s.threshold * self.prior.deviation).clamp_min(0)
        u = v - d
        x0 = x0.clamp_min(0) if s.nonnegative else x0

        noise = math.sqrt(1 - s.eta**2) * (x - x0_hat) / sigma + s.eta * s.temperature * normal(x, rng)
        x_next = x0 + sigma_next * noise
        return DDSZTVState(x_next, x0, d, u, state.back, state.norm_squared, state.step + 1, sigma)

    def view(self, state: DDSZTVState) -> Progress:
        return Progress(state.x0, state.step == self.settings.steps, {"sigma": state.sigma} if state.step else {})


def _difference(x: Tensor) -> Tensor:
    """D x: each slice from the next. DDS's own code wraps around, which ties the head to the feet."""
    return x[:, :, 1:] - x[:, :, :-1]


def _transposed(d: Tensor) -> Tensor:
    """D' d."""
    zero = d.new_zeros(*d.shape[:2], 1, *d.shape[3:])
    return torch.cat([zero, d], 2) - torch.cat([d, zero], 2)
