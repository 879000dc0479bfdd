"""Diffusion posterior sampling (DPS; Chung et al., ICLR 2023, arXiv 2209.14687, algorithm 1) in variance-exploding
form: x_t = x0 + sigma_t z is a VP sample divided by sqrt(abar_t).

    for sigma_t in a falling ladder:
        x0_hat = D(x_t, sigma_t)                                                           Tweedie, equation 10
        x_s    = x0_hat + q (x_t - x0_hat) + sigma_s sqrt(1 - q) z,  q = (sigma_s / sigma_t)^2     ancestral step
        f      = |y - A x0_hat|_W,   g = the gradient of f in x_t, through x0_hat
        x_s    = x_s - zeta (f - f*) / max(g'Pg, j^2 / 10) P g                             guidance

The paper's guidance is zeta g with a zeta tuned for each task, since a step of fixed length is too long or too short
as soon as the operator, the noise or the number of views changes. Here its length is Polyak's (1969): how far f lies
above its value at the truth, f* = sqrt(number of data), over the square of g. So the operator's scale drops out, and at
the noise level the pull ends. Lengths are taken in the metric P = 1 / (A'WA 1), voxel by voxel: rays through air are
measured best by far, and without it the step would be theirs. For an A without negative weights, A'WA is at most 1 in
that metric (Erdogan and Fessler 1999), so that f decreases. The floor under g'Pg keeps the step finite where data and
model disagree by more than the noise and g fades before f reaches f*; j = d^2 / (d^2 + sigma^2) is the slope of the
denoiser of a white prior of deviation d. A floor of j^2 would be plain gradient descent, too slow for fine detail.

The gradient through the prior is a vector-Jacobian product, J' A'W (A x0_hat - y) / f; `jacobian = "identity"` leaves J
out (as in SDS and MPGD): no back-propagation, a third of the cost, and j = 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pdframe.core.linalg import dot
from pdframe.core.memory import held_bytes, solve_bytes, work_bytes
from pdframe.core.operator import ForwardOperator
from pdframe.core.prior import Prior, per_item
from pdframe.core.problem import Problem
from pdframe.core.seeds import normal
from pdframe.core.solver import Progress, Solver
from pdframe_solvers.data_term import MODEL_ERROR, ModelError, Weighting, data_term
from pdframe_solvers.ladder import LadderConfig, SigmaMax, SigmaMin, Steps, noise_levels
from pdframe_solvers.start import Start, WarmSolver, started


class DPSConfig(LadderConfig):
    """Settings of `dps`. Noise levels are in units of the prior's standard deviation of one voxel. Per step one forward
    and one adjoint call, and with `jacobian = "exact"` three times the network operations of one `denoise`."""

    steps: Steps = 100
    sigma_max: SigmaMax = 10.0
    sigma_min: SigmaMin = 0.02
    start: Start = "noise"
    zeta: float = Field(1.0, ge=0, description="Length of the guidance step, as a multiple of Polyak's.")
    jacobian: Literal["exact", "identity"] = Field(
        "exact", description="Gradient through the prior, or with its Jacobian taken for the identity."
    )
    weighting: Weighting = "statistical"
    model_error: ModelError = MODEL_ERROR
    nonnegative: bool = Field(True, description="Set negative voxels of the estimate to 0.")

    def build(self, prior: Prior) -> Solver:
        return started(DPS(prior, self))


@dataclass(frozen=True)
class DPSState:
    """x: the noisy volume at the level of the next step. x0: the last denoised one, at the end x.

    metric: P, like x; 0 where no ray passes. misfit: of the last x0_hat, in units of the variance, mean over y.
    """

    x: Tensor
    x0: Tensor
    metric: Tensor
    step: int
    sigma: float
    misfit: float


@dataclass(frozen=True)
class DPS(WarmSolver[DPSState]):
    """DPS on the noise ladder of its settings; see the head of this file for the algorithm."""

    prior: Prior
    settings: DPSConfig

    FLOOR = 0.1

    @property
    def total_steps(self) -> int:
        return self.settings.steps

    def begin(self, problem: Problem, x0: Tensor, rng: torch.Generator) -> DPSState:
        s, sigma = self.settings, noise_levels(self.settings, self.prior)[0]
        data = data_term(problem, s.weighting, s.model_error)
        sums = data.operator.adjoint(data.weights * data.operator.forward(torch.ones_like(x0)))
        seen = sums > 1e-6 * per_item(sums.flatten(1).amax(1), sums)
        metric = torch.where(seen, 1 / torch.where(seen, sums, 1.0), 0.0)
        return DPSState(x0 + sigma * normal(x0, rng), x0, metric, 0, sigma, math.nan)

    def step(self, problem: Problem, state: DPSState, rng: torch.Generator) -> DPSState:
        s, x, deviation = self.settings, state.x, self.prior.deviation
        sigma, sigma_next = noise_levels(s, self.prior)[state.step : state.step + 2]
        data = data_term(problem, s.weighting, s.model_error)

        # Tweedie, and the gradient of f.
        with torch.set_grad_enabled(s.jacobian == "exact"):
            seen = x.detach().requires_grad_(s.jacobian == "exact")
            tracked = self.prior.denoise(seen, x.new_full((len(x),), sigma), rng=rng)
        x0_hat = tracked.detach()
        slope, f_squared = data.slope(x0_hat)
        f = f_squared.sqrt()
        g = slope / per_item(f.clamp_min(1e-30), slope).to(slope)
        j = 1.0
        if s.jacobian == "exact":
            (g,) = torch.autograd.grad(tracked, seen, g)
            j = 1 / (1 + (sigma / deviation) ** 2)

        # Ancestral step, and guidance.
        q = (sigma_next / sigma) ** 2
        x_next = x0_hat + q * (x - x0_hat) + sigma_next * math.sqrt(1 - q) * normal(x, rng)
        square = dot(g, state.metric * g).clamp_min(self.FLOOR * j**2)
        length = s.zeta * (f - math.sqrt(data.floor)).clamp_min(0) / square
        x_next = x_next - per_item(length, g).to(g) * state.metric * g

        x0 = x_next if sigma_next == 0 else x0_hat
        misfit = float(f_squared.mean()) / data.values
        return DPSState(x_next, x0, state.metric, state.step + 1, sigma, misfit)

    def view(self, state: DPSState) -> Progress:
        stats = {"sigma": state.sigma, "misfit": state.misfit} if state.step else {}
        x0 = state.x0.clamp_min(0) if self.settings.nonnegative else state.x0
        return Progress(x0, state.step == self.settings.steps, stats)


@solve_bytes.register
def _(solver: DPS, operator: ForwardOperator, *, device: torch.device | str = "cpu") -> int:
    """With the prior's gradient, if it is taken."""
    through = solver.settings.jacobian == "exact"
    return held_bytes(operator, (12, 1), (6, 6)) + work_bytes(solver, operator, device=device, gradient=through)
