"""The classical solvers against closed forms and an independent minimiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pdframe_classic.admm_tv import ADMMTVConfig
from pdframe_classic.circulant import filtered, gradient_transfer
from pdframe_classic.data_term import largest_eigenvalue
from pdframe_classic.direct import FBPConfig, FDKConfig
from pdframe_classic.gradient import gradient, gradient_adjoint, total_variation
from pdframe_classic.least_squares import CGLSConfig
from pdframe_classic.pdhg_tv import PDHGTVConfig

from pdframe.core.grid import Grid
from pdframe.core.noise import GaussianNoise, NoNoise, PhotonNoise
from pdframe.core.operator import ForwardOperator, direct_inverse
from pdframe.core.problem import Problem
from pdframe.core.seeds import generator
from pdframe.core.solve import Status, solve
from pdframe.testing.toys import MatrixOperator

GRID = Grid((3, 5, 4), (2.0, 1.0, 0.5))


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed, "classic"), dtype=torch.float64)


def _problem(noise=None, rows: int = 30) -> Problem:
    matrix = _draw(rows, GRID.size, seed=1).abs() / GRID.size
    operator = MatrixOperator(matrix, GRID, (rows,))
    x = torch.zeros(1, 1, *GRID.shape, dtype=torch.float64)
    x[..., 1:, 1:4, :2] = 2.0
    y = operator.forward(x) + 0.01 * _draw(1, 1, rows, seed=2)
    return Problem(operator, y, noise or NoNoise())


# Finite differences


@pytest.mark.parametrize("grid", [GRID, Grid((7,), (0.3,)), Grid((1, 6), (1.0, 2.0))])
def test_gradient_adjoint_is_the_transpose(grid: Grid):
    x, z = _draw(2, 1, *grid.shape), _draw(2, 1, len(grid.shape), *grid.shape, seed=1)
    forward = (gradient(x, grid.spacing) * z).sum()
    torch.testing.assert_close(forward, (x * gradient_adjoint(z, grid.spacing)).sum(), rtol=1e-12, atol=1e-12)


def test_the_gradient_of_a_ramp_is_its_slope_and_its_variation_the_known_sum():
    x = torch.arange(5, dtype=torch.float64).reshape(1, 1, 1, 5, 1).expand(1, 1, *GRID.shape) * 3.0
    g = gradient(x, GRID.spacing)
    assert g[:, :, 1, :, :-1].unique().tolist() == [3.0] and not g[:, :, [0, 2]].any()
    assert float(total_variation(x, GRID.spacing)) == pytest.approx(3.0 * 4 * 12)


def test_the_laplacian_by_fft_is_right_away_from_the_border():
    x = torch.zeros(1, 1, 8, 9, 10, dtype=torch.float64)
    x[0, 0, 4, 4, 5] = 1.0
    want = gradient_adjoint(gradient(x, GRID.spacing), GRID.spacing)
    torch.testing.assert_close(filtered(x, gradient_transfer(x, GRID.spacing)), want, rtol=0, atol=1e-12)


# Total variation


TV = {
    "admm_tv": lambda **settings: ADMMTVConfig(**settings).build(),
    "pdhg_tv": lambda **settings: PDHGTVConfig(**settings).build(),
}


@pytest.mark.parametrize("tv", TV)
def test_tv_denoising_of_a_step_in_one_dimension_is_the_known_one(tv: str):
    """With A = I (L = 1) each side of the step moves towards the other by weight / (spacing * its length)."""
    grid = Grid((10,), (0.5,), unit="1")
    operator = MatrixOperator(torch.eye(10, dtype=torch.float64), grid, (10,))
    y = torch.tensor([1.0] * 4 + [3.0] * 6, dtype=torch.float64).reshape(1, 1, 10)
    solver = TV[tv](weight=0.2, steps=2000, tolerance=1e-10)
    got = solve(Problem(operator, y), solver)
    want = torch.tensor([1.0 + 0.4 / 4] * 4 + [3.0 - 0.4 / 6] * 6, dtype=torch.float64)
    assert got.status is Status.finished
    torch.testing.assert_close(got.x.flatten(), want, rtol=0, atol=1e-6)


def _objective(problem: Problem, weights: torch.Tensor, weight: float, x: torch.Tensor) -> float:
    scale = largest_eigenvalue(problem.operator, weights)
    data = (weights * (problem.operator.forward(x) - problem.y) ** 2).sum() / (2 * scale)
    return float(data + weight * total_variation(x, problem.operator.grid.spacing))


def _primal_dual(problem: Problem, weights: torch.Tensor, weight: float, iterations: int = 12000) -> torch.Tensor:
    """The same minimiser by Chambolle and Pock's algorithm 1 on dense NumPy matrices: no code shared."""
    grid, n = problem.operator.grid, problem.operator.grid.size
    norm = float(largest_eigenvalue(problem.operator, weights)) ** 0.5
    root = weights.flatten().sqrt().numpy() / norm
    a, b = root[:, None] * problem.operator.matrix.numpy(), root * problem.y.flatten().numpy()
    index = np.arange(n).reshape(grid.shape)
    rows = np.zeros((len(grid.shape), n, n))
    for axis, h in enumerate(grid.spacing):
        here = np.take(index, range(grid.shape[axis] - 1), axis).ravel()
        there = np.take(index, range(1, grid.shape[axis]), axis).ravel()
        rows[axis, here, there], rows[axis, here, here] = 1 / h, -1 / h
    d = rows.reshape(-1, n)
    k = np.concatenate([a, d])
    # The dual is of the size of `weight` and x of size 1: steps in that ratio converge much faster.
    dual_step = 0.99 / np.linalg.norm(k, 2) * weight**0.5
    step = 0.99 / np.linalg.norm(k, 2) / weight**0.5
    x, bar = np.zeros(n), np.zeros(n)
    p, q = np.zeros(len(a)), np.zeros((len(grid.shape), n))
    for _ in range(iterations):
        p = (p + dual_step * (a @ bar - b)) / (1 + dual_step)
        q = q + dual_step * (d @ bar).reshape(q.shape)
        q = q / np.maximum(np.linalg.norm(q, axis=0) / weight, 1)
        new = np.maximum(x - step * (a.T @ p + d.T @ q.ravel()), 0)
        x, bar = new, 2 * new - x
    return torch.from_numpy(x).reshape(1, 1, *grid.shape)


@pytest.mark.parametrize("weighting", ["none", "statistical"])
@pytest.mark.parametrize(
    ("tv", "weight", "tolerance"), [("admm_tv", 1e-4, 1e-5), ("admm_tv", 1e-2, 1e-5), ("pdhg_tv", 1e-2, 2e-5)]
)
def test_tv_reaches_the_minimiser(tv: str, weight: float, tolerance: float, weighting: str):
    problem = _problem(PhotonNoise(1000.0, 5.0))
    weights = torch.ones_like(problem.y)
    if weighting == "statistical":
        weights = problem.noise.inverse_variance(problem.y)
    got = solve(problem, TV[tv](weight=weight, weighting=weighting, steps=3000, tolerance=tolerance))
    best = _primal_dual(problem, weights, weight)
    want = _objective(problem, weights, weight, best)
    assert _objective(problem, weights, weight, got.x) == pytest.approx(want, rel=1e-4)
    assert float(got.x.min()) >= 0 and got.status is Status.finished
    assert float((got.x - best).norm() / best.norm()) < 0.02


def test_admm_tv_costs_what_it_says():
    usage = solve(_problem(), ADMMTVConfig(steps=7, cg=3, tolerance=0).build()).usage
    inverse = 20  # the default pseudo-inverse: 20 steps of CGLS
    assert usage.forward_calls == inverse + 10 + 21
    assert usage.adjoint_calls == inverse + 10 + 21


def test_pdhg_tv_costs_what_it_says():
    usage = solve(_problem(), PDHGTVConfig(steps=7, tolerance=0).build()).usage
    inverse = 20  # the default pseudo-inverse: 20 steps of CGLS
    assert usage.forward_calls == inverse + 11 + 7
    assert usage.adjoint_calls == inverse + 8 + 7


@pytest.mark.parametrize("tv", TV)
def test_each_item_of_a_batch_is_solved_as_if_alone(tv: str):
    one = _problem()
    y = torch.cat([one.y, 3 * one.y.flip(2)])
    solver = TV[tv](steps=20, tolerance=0)
    together = solve(dataclasses.replace(one, y=y), solver).x
    for i in range(2):
        alone = solve(dataclasses.replace(one, y=y[i : i + 1]), solver).x
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-8)


@pytest.mark.parametrize("tv", TV)
def test_the_weight_means_the_same_for_any_scale_of_operator_and_dose(tv: str):
    problem = _problem()
    scaled = MatrixOperator(50.0 * problem.operator.matrix, GRID, problem.operator.data_shape)
    solver = TV[tv](weight=1e-3, steps=200, tolerance=0)
    got = solve(Problem(scaled, 50.0 * problem.y), solver).x
    torch.testing.assert_close(got, solve(problem, solver).x, rtol=0, atol=1e-8)
    weighed = TV[tv](weight=1e-3, steps=200, tolerance=0, weighting="statistical")
    low, high = (solve(dataclasses.replace(problem, noise=GaussianNoise(d)), weighed).x for d in (0.03, 0.3))
    torch.testing.assert_close(low, high, rtol=0, atol=1e-8)
    torch.testing.assert_close(low, got, rtol=0, atol=1e-8)


# Least squares and direct inversion


def test_cgls_with_damping_is_tikhonov():
    problem = _problem(PhotonNoise(1000.0, 5.0))
    a, w = problem.operator.matrix, problem.noise.inverse_variance(problem.y).flatten()
    want = torch.linalg.solve(
        a.T @ torch.diag(w) @ a + 0.5 * torch.eye(GRID.size, dtype=a.dtype), a.T @ (w * problem.y.flatten())
    )
    got = solve(problem, CGLSConfig(iterations=100, damping=0.5, nonnegative=False).build())
    torch.testing.assert_close(got.x.flatten(), want, rtol=0, atol=1e-8)
    assert got.usage.forward_calls <= 100
    assert float(solve(problem, CGLSConfig(iterations=5).build()).x.min()) >= 0


@dataclasses.dataclass(frozen=True)
class Invertible(ForwardOperator):
    """Scaling by 4, with a direct inverse, as a scanner of 2 views with rows and columns."""

    grid: Grid
    data_shape: tuple[int, ...]
    views: int = 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 4 * x.reshape(*x.shape[:2], *self.data_shape)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return 4 * y.reshape(*y.shape[:2], *self.grid.shape)


@direct_inverse.register
def _(operator: Invertible) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda y: y.reshape(*y.shape[:2], *operator.grid.shape) / 4


def test_fdk_is_the_operators_pseudoinverse_at_the_price_of_one_adjoint():
    operator = Invertible(Grid((2, 3, 4), (1.0, 1.0, 1.0)), (2, 3, 4))
    x = _draw(1, 1, 2, 3, 4)
    problem = Problem(operator, operator.forward(x))
    signed = solve(problem, FDKConfig(nonnegative=False).build())
    torch.testing.assert_close(signed.x, x)
    assert (signed.usage.forward_calls, signed.usage.adjoint_calls, signed.usage.view_calls) == (0, 1, 2)
    torch.testing.assert_close(solve(problem, FDKConfig().build()).x, x.clamp_min(0))
    assert signed.status is Status.finished and len(signed.trace) == 1


def test_fbp_refuses_a_cone_and_takes_one_row():
    cone = Invertible(Grid((2, 3, 4), (1.0, 1.0, 1.0)), (2, 3, 4))
    with pytest.raises(ValueError, match="use fdk"):
        FBPConfig().build(operator=cone)
    fan = Invertible(Grid((2, 1, 12), (1.0, 1.0, 1.0)), (2, 1, 12))
    x = _draw(1, 1, 2, 1, 12).abs()
    torch.testing.assert_close(solve(Problem(fan, fan.forward(x)), FBPConfig().build(operator=fan)).x, x)
