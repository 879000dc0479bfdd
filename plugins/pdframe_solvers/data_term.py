"""|y - A x|_W^2 as the diffusion solvers see it, in units of the variance of y, and the steps that lower it.

With W the inverse variance of y about A x, noise and model error together, the operator's scale drops out of every
weight against a prior, and the value at the truth is known: the number of data. The model error is there since no scan
is what an operator makes of voxels: without it, data of little or no noise are fitted by what is no part of the volume.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from pdframe.core.linalg import dot, power_iteration
from pdframe.core.noise import NoNoise
from pdframe.core.operator import ForwardOperator, prox
from pdframe.core.prior import per_item
from pdframe.core.problem import Problem

Weighting = Annotated[
    Literal["statistical", "none"],
    Field(description="Weight of each value of y in the data step: its inverse noise variance, or the same for all."),
]
Discrepancy = Annotated[
    float,
    Field(
        ge=0,
        description="Stop a data step when the weighted mean squared residual is at most this multiple of its expected "
        "value under the noise model (Morozov's principle; 1 is the noise level). 0 never stops early.",
    ),
]
ModelError = Annotated[
    float,
    Field(
        ge=0,
        description="Standard deviation of what the operator gets wrong (voxels for tissue, spectrum, scatter), as a "
        "share of the rms of y; its square is added to the variance of the noise. 0: the operator is exact.",
    ),
]
Nonnegative = Annotated[bool, Field(description="Set negative voxels to 0 after each data step.")]

#: What voxels alone make of a chest is 0.4 % at 2.75 mm and 0.9 % at 4 mm; too much costs less than too little.
MODEL_ERROR = 0.01

#: For the norm of W^(1/2) A: within some 2 % for a scanner, from below. 8 forward and 7 adjoint calls.
POWER_ITERATIONS = 8


class Fit(NamedTuple):
    """x; mean over y of its squared residual in units of the variance (1 is the noise level); CG iterations."""

    x: Tensor
    misfit: float
    iterations: int


@dataclass(frozen=True)
class DataTerm:
    """The data term of one problem. `weights` is the diagonal of W, like y.

    noiseless: there is no noise or model error to weigh against; W is 1, and every pull towards a prior in a data step
    is 0.
    """

    operator: ForwardOperator
    y: Tensor
    weights: Tensor
    noiseless: bool

    @property
    def values(self) -> int:
        """Number of data of one item: what |y - A x|_W^2 is at the truth, on average."""
        return self.y[0].numel()

    @property
    def floor(self) -> int:
        """The value below which a fit fits noise."""
        return 0 if self.noiseless else self.values

    def closest(
        self, centre: Tensor, gamma: float, *, cg: int, discrepancy: float = 0.0, start: Tensor | None = None
    ) -> Fit:
        """argmin |y - A x|_W^2 + gamma |x - centre|^2, by at most `cg` CG steps from `start` (or the centre).

        Without noise the closest x with A x = y instead, from the centre, as far as `cg` steps go.
        """
        if self.noiseless:
            gamma, start = 0.0, None
        fit = prox(
            self.operator, self.y, centre=centre, damping=gamma, iterations=cg, x0=start,
            weights=self.weights, target=discrepancy * self.floor,
        )  # fmt: skip
        return Fit(fit.x, float(fit.misfit.mean()) / self.values, fit.iterations)

    def slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of |y - A x|_W^2 / 2, like x, and |y - A x|_W^2 itself, (batch,). One forward, one adjoint call."""
        residual = self.operator.forward(x) - self.y
        weighed = self.weights * residual
        return self.operator.adjoint(weighed), dot(weighed, residual)

    def curvature(self) -> Tensor:
        """Largest eigenvalue of A'WA, (batch,)."""
        return power_iteration(self.operator, iterations=POWER_ITERATIONS, weights=self.weights) ** 2


def data_term(problem: Problem, weighting: Weighting, model_error: float) -> DataTerm:
    """With statistical weights, or with their harmonic mean for all values: the inverse of the mean variance."""
    y = problem.y
    noiseless = isinstance(problem.noise, NoNoise) and not model_error
    if noiseless:
        return DataTerm(problem.operator, y, torch.ones_like(y), noiseless)
    power = y.square().flatten(1).mean(1)
    power = torch.where(power > 0, power, 1.0)  # of an empty scan any weight is right, but 1/0
    noise = torch.zeros_like(y) if isinstance(problem.noise, NoNoise) else 1 / problem.noise.inverse_variance(y)
    variance = noise + per_item(model_error**2 * power, y)
    if weighting == "none":
        variance = per_item(variance.flatten(1).mean(1), y).expand_as(y)
    return DataTerm(problem.operator, y, 1 / variance, noiseless)
