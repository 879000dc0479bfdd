"""Total variation with non-negativity by ADMM (Boyd et al. 2011; Ramani and Fessler, IEEE TMI 2012 for CT).

    minimise  (1 / 2L) |A x - y|_W^2 + weight * sum over voxels of |grad x|   subject to  x >= 0

L is the largest eigenvalue of A'WA (by 8 power iterations, within some 2 % for a scanner), so that `weight` means the
same for any operator and dose; the gradient is in units of x per unit of length, so that it means the same on any grid.
With K x = (h grad x, x), h the smallest spacing:

    x <- CG on (A'WA / L + rho K'K) x = A'W y / L + rho K'(z - u), from the last x           Boyd, equation 3.5
    z <- prox of weight |.| and x >= 0 at v = over-relaxed K x + u                           equation 3.6
    u <- v - z                                                                               equation 3.7

CG is preconditioned by FFT, and x starts from the operator's pseudo-inverse (FDK for a cone beam).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from pdframe.core.linalg import cg, dot
from pdframe.core.memory import held_bytes, solve_bytes, work_bytes
from pdframe.core.operator import ForwardOperator, pseudoinverse
from pdframe.core.prior import per_item
from pdframe.core.problem import Problem
from pdframe.core.solver import Progress, Solver
from pdframe.hooks import Config
from pdframe_classic.circulant import data_transfer, filtered, gradient_transfer
from pdframe_classic.data_term import Weighting, largest_eigenvalue, weights_of
from pdframe_classic.gradient import gradient, gradient_adjoint


class ADMMTVConfig(Config):
    """Settings of `admm_tv`. Cost: 10 forward and 10 adjoint calls and a pseudo-inverse once, then at most `cg` forward
    and `cg` adjoint calls per step; no others."""

    weight: float = Field(
        5e-5,
        ge=0,
        description="Strength of the total variation, in units of x times length (for CT 1/mm times mm, no unit), "
        "after division of the data term by the largest eigenvalue of A'WA.",
    )
    steps: int = Field(60, ge=1, description="Most ADMM steps.")
    cg: int = Field(2, ge=1, description="Conjugate-gradient steps for x in each ADMM step, warm-started.")
    tolerance: float = Field(
        2e-3, ge=0, description="Stop when the relative primal and dual residuals are both below it; 0: never."
    )
    weighting: Weighting = Field(
        "none",
        description="Weight of each value of y: its inverse noise variance, or 1, which converges much faster.",
    )
    penalty: float = Field(
        0.005, gt=0, description="ADMM's rho at the start; balanced later, of no effect on the limit."
    )
    nonnegative: bool = Field(True, description="Constrain x to be at least 0.")

    def build(self) -> ADMMTV:
        return ADMMTV(self)


@dataclass(frozen=True)
class ADMMTVState:
    """x; split z and scaled dual u, (batch, channel, axis + 1, *spatial); `rho` (batch,).

    data_hessian_x: A'WA x / L, carried along so that no call of A is spent on it; back: A'W y / L.
    norm_squared: L, (batch,). transfer: of A'WA / L, on the half spectrum, for the preconditioner.
    primal, dual: relative residuals (batch,), which stop the iteration.
    """

    x: Tensor
    z: Tensor
    u: Tensor
    rho: Tensor
    data_hessian_x: Tensor
    back: Tensor
    norm_squared: Tensor
    transfer: Tensor
    primal: Tensor
    dual: Tensor
    step: int


@dataclass(frozen=True)
class ADMMTV(Solver[ADMMTVState]):
    """ADMM for total variation; see the head of this file for the algorithm."""

    settings: ADMMTVConfig

    OVER_RELAXATION = 1.6  # Boyd et al., section 3.4.3: 1.5 to 1.8
    BALANCE_EVERY, BALANCE_UNTIL = 5, 60  # rho must stop changing for ADMM to converge

    @property
    def total_steps(self) -> int:
        return self.settings.steps

    def init(self, problem: Problem, rng: torch.Generator) -> ADMMTVState:
        operator, y, spacing = problem.operator, problem.y, problem.operator.grid.spacing
        weights = weights_of(problem, self.settings.weighting)
        x = self._feasible(pseudoinverse(operator, y))

        norm_squared = largest_eigenvalue(operator, weights)
        scale = per_item(norm_squared, x).to(x)
        back = operator.adjoint(weights * y) / scale
        data_hessian_x = operator.adjoint(weights * operator.forward(x)) / scale
        transfer = data_transfer(operator, weights, x) / scale

        z = _split(x, spacing)
        rho = torch.full_like(norm_squared, self.settings.penalty)
        far = torch.full_like(norm_squared, torch.inf)
        return ADMMTVState(x, z, torch.zeros_like(z), rho, data_hessian_x, back, norm_squared, transfer, far, far, 0)

    def step(self, problem: Problem, state: ADMMTVState, rng: torch.Generator) -> ADMMTVState:
        spacing, weights = problem.operator.grid.spacing, weights_of(problem, self.settings.weighting)
        scale, rho = per_item(state.norm_squared, state.x).to(state.x), per_item(state.rho, state.x).to(state.x)
        x, z, u = state.x, state.z, state.u

        def hessian(p: Tensor) -> Tensor:
            data = problem.operator.adjoint(weights * problem.operator.forward(p)) / scale
            return data + rho * _split_normal(p, spacing)

        inverse = 1 / (state.transfer + rho * (1 + min(spacing) ** 2 * gradient_transfer(x, spacing)))

        # x: CG on the correction, so that A'WA x / L of the new x follows from its residual.
        right = state.back + rho * _split_adjoint(z - u, spacing)
        residual = right - state.data_hessian_x - rho * _split_normal(x, spacing)
        correction = cg(hessian, residual, iterations=self.settings.cg, precondition=lambda r: filtered(r, inverse))
        x = x + correction.x
        data_hessian_x = right - correction.residual - rho * _split_normal(x, spacing)

        # z and u, over-relaxed.
        kx = _split(x, spacing)
        v = (self.OVER_RELAXATION * kx).add_(z, alpha=1 - self.OVER_RELAXATION).add_(u)
        z_new = self._prox(v, self.settings.weight / min(spacing) / rho)
        u_new = v - z_new

        # Residuals relative to the size of what they compare (Boyd et al., section 3.3.1).
        primal = _norm(kx - z_new) / torch.maximum(_norm(kx), _norm(z_new)).clamp_min(1e-30)
        dual = _norm(_split_adjoint(z_new - z, spacing)) / _norm(_split_adjoint(u_new, spacing)).clamp_min(1e-30)
        factor = self._balance(state.step + 1, primal, dual)
        u_new = u_new / per_item(factor, u_new).to(u_new)
        return ADMMTVState(
            x, z_new, u_new, state.rho * factor, data_hessian_x, state.back, state.norm_squared,
            state.transfer, primal, dual, state.step + 1,
        )  # fmt: skip

    def view(self, state: ADMMTVState) -> Progress:
        x = self._feasible(state.x)
        primal, dual = float(state.primal.max()), float(state.dual.max())
        done = max(primal, dual) <= self.settings.tolerance
        return Progress(x, done, {"primal": primal, "dual": dual, "rho": float(state.rho.mean())})

    def _feasible(self, x: Tensor) -> Tensor:
        return x.clamp_min(0) if self.settings.nonnegative else x

    def _prox(self, v: Tensor, threshold: Tensor) -> Tensor:
        """Shrinks each voxel's gradient vector by `threshold` in length, and clips the last slot at 0."""
        square = v[:, :, 0] ** 2
        for axis in range(1, v.shape[2] - 1):
            square.addcmul_(v[:, :, axis], v[:, :, axis])
        keep = (1 - threshold / square.sqrt_().clamp_min_(1e-30)).clamp_min_(0)
        z = v * keep.unsqueeze(2)
        z[:, :, -1] = self._feasible(v[:, :, -1])
        return z

    def _balance(self, step: int, primal: Tensor, dual: Tensor) -> Tensor:
        """Factor on rho that keeps the relative residuals alike (Boyd et al., equation 3.13; Wohlberg 2017)."""
        if step % self.BALANCE_EVERY or step > self.BALANCE_UNTIL:
            return torch.ones_like(primal)
        return (primal / dual.clamp_min(1e-30)).sqrt().clamp(0.5, 2.0)


@solve_bytes.register
def _(solver: ADMMTV, operator: ForwardOperator, *, device: torch.device | str = "cpu") -> int:
    """Fullest at the residuals: ten fields like z, four of them for their sums of squares, and x's companions."""
    slots = len(operator.grid.shape) + 1
    return held_bytes(operator, (10 * slots + 11, 1), (6, 7)) + work_bytes(solver, operator, device=device)


# The gradient scaled by h is the gradient on a grid whose smallest spacing is 1.


def _split(x: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """K x = (h grad x, x), (batch, channel, axis + 1, *spatial)."""
    z = x.new_empty(*x.shape[:2], len(spacing) + 1, *x.shape[2:])
    gradient(x, _relative(spacing), out=z[:, :, :-1])
    z[:, :, -1] = x
    return z


def _split_adjoint(z: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """K' z."""
    return gradient_adjoint(z[:, :, :-1], _relative(spacing)).add_(z[:, :, -1])


def _split_normal(x: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """K'K x."""
    return gradient_adjoint(gradient(x, _relative(spacing)), _relative(spacing)).add_(x)


def _relative(spacing: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(s / min(spacing) for s in spacing)


def _norm(x: Tensor) -> Tensor:
    return dot(x, x).sqrt()
