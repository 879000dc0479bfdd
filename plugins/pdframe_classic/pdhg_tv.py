"""Total variation with non-negativity by the primal-dual hybrid gradient method (Chambolle and Pock, J. Math. Imaging
Vis. 40, 2011), with the diagonal steps of Pock and Chambolle (ICCV 2011). The objective is that of `admm_tv`:

    minimise  (1 / 2L) |A x - y|_W^2 + weight * sum over voxels of |grad x|   subject to  x >= 0

With B = sqrt(W / L) A, b = sqrt(W / L) y, the saddle point in x, p (like y) and q (like grad x, |q| <= weight):

    x' <- max(x - tau (B'p + grad' q), 0)                                       Chambolle and Pock, algorithm 1
    p  <- (p + sigma_p (B (2 x' - x) - b)) / (1 + sigma_p)                      theta = 1, x before the duals
    q  <- (q + sigma_q grad (2 x' - x)) projected on |q| <= weight, voxel by voxel

    tau = ratio / (column sums of B and |grad|),  sigma = 1 / (ratio * row sums)     Pock and Chambolle, equation 10

`ratio` weighs primal against dual steps. No linear system is solved: one forward and one adjoint call a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from pdframe.core.linalg import dot
from pdframe.core.memory import held_bytes, solve_bytes, work_bytes
from pdframe.core.operator import ForwardOperator, pseudoinverse
from pdframe.core.prior import per_item
from pdframe.core.problem import Problem
from pdframe.core.solver import Progress, Solver
from pdframe.hooks import Config
from pdframe_classic.data_term import Weighting, largest_eigenvalue, reciprocal, row_sums, weights_of
from pdframe_classic.gradient import gradient, gradient_adjoint


class PDHGTVConfig(Config):
    """Settings of `pdhg_tv`. Cost: one forward and one adjoint call a step; 11 and 8 at the start, and a
    pseudo-inverse."""

    weight: float = Field(
        5e-5,
        ge=0,
        description="Strength of the total variation, in units of x times length (for CT 1/mm times mm, no unit), "
        "after division of the data term by the largest eigenvalue of A'WA: as in `admm_tv`.",
    )
    steps: int = Field(300, ge=1, description="Most steps.")
    tolerance: float = Field(
        2e-3, ge=0, description="Stop when the relative primal and dual residuals are both below it; 0: never."
    )
    weighting: Weighting = Field(
        "none",
        description="Weight of each value of y: its inverse noise variance, or 1, which converges much faster.",
    )
    nonnegative: bool = Field(True, description="Constrain x to be at least 0.")

    def build(self) -> PDHGTV:
        return PDHGTV(self)


@dataclass(frozen=True)
class PDHGTVState:
    """x, duals p and q. Carried along, so as to be computed once: B x, grad x (slope) and B'p + grad' q (back).

    root: sqrt(W / L). tau, sigma_p: steps at ratio 1. ratio, primal, dual: (batch,), the last two relative residuals.
    """

    x: Tensor
    p: Tensor
    q: Tensor
    projected: Tensor
    slope: Tensor
    back: Tensor
    root: Tensor
    tau: Tensor
    sigma_p: Tensor
    ratio: Tensor
    primal: Tensor
    dual: Tensor
    step: int


@dataclass(frozen=True)
class PDHGTV(Solver[PDHGTVState]):
    """PDHG for total variation; see the head of this file. For operators without negative weights."""

    settings: PDHGTVConfig

    # How far x has to go, as a part of its length. Of 0.01 ... 1, 0.03 and 0.1 were fastest (chest, 16 views, weights
    # 5e-5 and 5e-4), and five times faster than a ratio adapted on the way (Goldstein et al., NeurIPS 2015).
    WAY = 0.06

    @property
    def total_steps(self) -> int:
        return self.settings.steps

    def init(self, problem: Problem, rng: torch.Generator) -> PDHGTVState:
        operator, y, spacing = problem.operator, problem.y, problem.operator.grid.spacing
        weights = weights_of(problem, self.settings.weighting)
        x = self._feasible(pseudoinverse(operator, y))
        scale = largest_eigenvalue(operator, weights)
        root = (weights / per_item(scale, y).to(y)).sqrt()

        rows = root * row_sums(operator, y)
        sigma_p = reciprocal(rows, of_empty=1.0)  # a ray that misses the volume may take any step
        tau = 1 / (operator.adjoint(root) + sum(2 / h for h in spacing))
        p, q = torch.zeros_like(y), x.new_zeros(*x.shape[:2], len(spacing), *x.shape[2:])
        ratio = self._ratio(x, tau, min(spacing) / 2)
        far = torch.full_like(ratio, torch.inf)
        projected, slope, back = root * operator.forward(x), gradient(x, spacing), torch.zeros_like(x)
        return PDHGTVState(x, p, q, projected, slope, back, root, tau, sigma_p, ratio, far, far, 0)

    def step(self, problem: Problem, state: PDHGTVState, rng: torch.Generator) -> PDHGTVState:
        operator, root, spacing = problem.operator, state.root, problem.operator.grid.spacing
        ratio_x, ratio_p = (per_item(state.ratio, t).to(t) for t in (state.x, state.p))
        ratio_q = ratio_x.unsqueeze(2)
        tau, sigma_p, sigma_q = ratio_x * state.tau, state.sigma_p / ratio_p, min(spacing) / 2 / ratio_q

        x = self._feasible(state.x - tau * state.back)
        projected, slope = root * operator.forward(x), gradient(x, spacing)
        p = state.p + sigma_p * (2 * projected - state.projected - root * problem.y)
        p = p / (1 + sigma_p)
        q = self._project(state.q + sigma_q * (2 * slope - state.slope))
        from_p, from_q = operator.adjoint(root * p), gradient_adjoint(q, spacing)
        back = from_p + from_q

        # What the optimality conditions lack, in the metric of the steps.
        lack_x = (state.x - x) / tau - state.back + back
        lack_p = (state.p - p) / sigma_p + projected - state.projected
        lack_q = (state.q - q) / sigma_q + slope - state.slope
        size_x = torch.maximum(_norm(from_p, tau), _norm(from_q, tau))
        size_y = _norm(projected, sigma_p) + _norm(slope, sigma_q)
        primal = _norm(lack_x, tau) / size_x.clamp_min(1e-30)
        dual = (_norm(lack_p, sigma_p) + _norm(lack_q, sigma_q)) / size_y.clamp_min(1e-30)
        return PDHGTVState(
            x, p, q, projected, slope, back, root, state.tau, state.sigma_p, state.ratio, primal, dual, state.step + 1
        )  # fmt: skip

    def view(self, state: PDHGTVState) -> Progress:
        primal, dual = float(state.primal.max()), float(state.dual.max())
        done = max(primal, dual) <= self.settings.tolerance
        return Progress(state.x, done, {"primal": primal, "dual": dual})

    def _feasible(self, x: Tensor) -> Tensor:
        return x.clamp_min(0) if self.settings.nonnegative else x

    def _project(self, q: Tensor) -> Tensor:
        """Onto vectors of length `weight` at most, voxel by voxel."""
        length = q.norm(dim=2, keepdim=True)
        return q * (self.settings.weight / length.clamp_min(1e-30)).clamp_max(1)

    def _ratio(self, x: Tensor, tau: Tensor, sigma_q: float) -> Tensor:
        """How far x has to go over how far q may, in the metric of the steps: what minimises the bound of the error."""
        far_x = self.WAY * dot(x / tau, x).sqrt()
        far_q = self.settings.weight * (x[0].numel() / sigma_q) ** 0.5
        return torch.where(far_x > 0, far_x / far_q, 1.0) if far_q > 0 else torch.ones_like(far_x)


@solve_bytes.register
def _(solver: PDHGTV, operator: ForwardOperator, *, device: torch.device | str = "cpu") -> int:
    """Fullest at the residuals: of q, or of p where there are more data than voxels."""
    axes = len(operator.grid.shape)
    return held_bytes(operator, (9 * axes + 9, 8), (5 * axes + 9, 12)) + work_bytes(solver, operator, device=device)


def _norm(v: Tensor, metric: Tensor) -> Tensor:
    return dot(metric * v, v).sqrt()
