"""Small problems whose posterior is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from pdframe.core.grid import Grid
from pdframe.core.noise import GaussianNoise
from pdframe.core.operator import ForwardOperator
from pdframe.core.prior import Prior, score
from pdframe.core.problem import Problem
from pdframe.core.seeds import generator, normal
from pdframe.core.solver import Progress, Solver


@dataclass(frozen=True, eq=False)
class MatrixOperator(ForwardOperator):
    """A dense matrix (values of y, voxels of x) as an operator; it is cast to the dtype and device of its input."""

    matrix: Tensor
    grid: Grid
    data_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        want = (prod(self.data_shape), self.grid.size)
        if tuple(self.matrix.shape) != want:
            raise ValueError(f"the matrix must have shape {want} (data, voxels): got {tuple(self.matrix.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(2) @ self.matrix.to(x).T).unflatten(2, self.data_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        return (y.flatten(2) @ self.matrix.to(y)).unflatten(2, self.grid.shape)


@dataclass(frozen=True, eq=False)
class GaussianPrior(Prior):
    """x0 ~ N(mean, C): its denoiser is the affine map m + C (C + sigma^2 I)^-1 (x - m), exactly.

    mean: of every voxel. covariance: C, (voxels, voxels), the same for each batch item and channel.
    """

    mean: float
    covariance: Tensor
    deviation: float = field(init=False)
    sigma_range: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        deviation = float(self.covariance.diagonal().mean().sqrt())
        object.__setattr__(self, "deviation", deviation)
        object.__setattr__(self, "sigma_range", (1e-4 * deviation, 1e4 * deviation))

    def denoise(self, x: Tensor, sigma: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        values, vectors = torch.linalg.eigh(self.covariance.to(x))
        variance = sigma.to(x).reshape(-1, 1, 1) ** 2
        coefficients = (x - self.mean).flatten(2) @ vectors
        return self.mean + (coefficients * (values / (values + variance)) @ vectors.T).reshape(x.shape)


@dataclass(frozen=True)
class GaussianToy:
    """A linear problem with Gaussian prior and noise, one draw of truth and data, and its exact posterior."""

    problem: Problem
    prior: GaussianPrior
    truth: Tensor
    posterior_mean: Tensor
    posterior_covariance: Tensor


def smooth_covariance(grid: Grid, deviation: float, length: float) -> Tensor:
    """Squared-exponential covariance (voxels, voxels) with correlation `length` in the grid's unit, float64."""
    axes = [torch.arange(n, dtype=torch.float64) * s for n, s in zip(grid.shape, grid.spacing, strict=True)]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
    nugget = 1e-6 * torch.eye(len(places), dtype=torch.float64)
    return deviation**2 * (torch.exp(-(torch.cdist(places, places) ** 2) / (2 * length**2)) + nugget)


def gaussian_toy(
    *, shape: tuple[int, ...] = (4, 4, 4), rows: int = 24, noise: float = 0.05, seed: int = 0
) -> GaussianToy:
    """Fewer measurements than voxels, non-negative random weights, a smooth Gaussian prior; all in float64."""
    rng = generator(seed, "gaussian toy")
    grid = Grid(shape, (1.0,) * len(shape), unit="1")
    matrix = torch.rand(rows, grid.size, generator=rng, dtype=torch.float64) / grid.size**0.5
    operator = MatrixOperator(matrix, grid, (rows,))
    prior = GaussianPrior(1.0, smooth_covariance(grid, 0.5, 1.5))

    root = torch.linalg.cholesky(prior.covariance)
    truth = prior.mean + root @ torch.randn(grid.size, generator=rng, dtype=torch.float64)
    y = matrix @ truth + noise * torch.randn(rows, generator=rng, dtype=torch.float64)

    # Posterior of a linear Gaussian model (Bishop 2006, equations 2.116 and 2.117).
    covariance = torch.linalg.inv(torch.linalg.inv(prior.covariance) + matrix.T @ matrix / noise**2)
    mean = prior.mean + covariance @ matrix.T @ (y - matrix @ torch.full_like(truth, prior.mean)) / noise**2
    problem = Problem(operator, y.reshape(1, 1, rows), GaussianNoise(noise))
    like = (1, 1, *shape)
    return GaussianToy(problem, prior, truth.reshape(like), mean.reshape(like), covariance)


@dataclass(frozen=True)
class LangevinState:
    x: Tensor
    step: int


@dataclass(frozen=True)
class Langevin(Solver[LangevinState]):
    """Unadjusted Langevin steps on the posterior at one noise level: the smallest solver that uses all of its inputs.

    x <- x + step_size (A'W (y - A x) + score(x, sigma)) + sqrt(2 step_size) z
    """

    prior: Prior
    sigma: float
    step_size: float
    steps: int = 10

    @property
    def total_steps(self) -> int:
        return self.steps

    def init(self, problem: Problem, rng: torch.Generator) -> LangevinState:
        x = problem.y.new_full((*problem.y.shape[:2], *problem.operator.grid.shape), self.prior.mean)
        return LangevinState(x + self.sigma * normal(x, rng), 0)

    def step(self, problem: Problem, state: LangevinState, rng: torch.Generator) -> LangevinState:
        x, operator = state.x, problem.operator
        level = x.new_full((x.shape[0],), self.sigma)
        weights = problem.noise.inverse_variance(problem.y)
        slope = operator.adjoint(weights * (problem.y - operator.forward(x))) + score(self.prior, x, level, rng=rng)
        x = x + self.step_size * slope + (2 * self.step_size) ** 0.5 * normal(x, rng)
        return LangevinState(x, state.step + 1)

    def view(self, state: LangevinState) -> Progress:
        return Progress(state.x, state.step == self.steps, {"mean": float(state.x.mean())})
