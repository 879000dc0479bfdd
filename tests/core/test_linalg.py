"""Conjugate gradients and power iteration against dense linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pdframe.core.grid import Grid
from pdframe.core.linalg import cg, cgls, power_iteration
from pdframe.core.operator import operator_norm, pseudoinverse
from pdframe.core.seeds import generator
from pdframe.testing.toys import MatrixOperator

GRID = Grid((2, 3, 4), (1.0, 1.0, 1.0))


def _matrix(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, GRID.size, generator=generator(seed, "matrix"), dtype=torch.float64)


def _operator(rows: int = 40) -> MatrixOperator:
    return MatrixOperator(_matrix(rows), GRID, (rows,))


def _data(batch: int = 1, rows: int = 40) -> torch.Tensor:
    return torch.randn(batch, 1, rows, generator=generator(1, "data"), dtype=torch.float64)


def test_cg_solves_a_dense_system():
    m = _matrix(GRID.size)
    h = m.T @ m + torch.eye(GRID.size, dtype=torch.float64)
    b = torch.randn(2, 1, *GRID.shape, generator=generator(2), dtype=torch.float64)
    x0 = torch.ones_like(b)
    want = np.linalg.solve(h.numpy(), b.reshape(2, -1).numpy().T).T
    for start in (None, x0):
        got = cg(lambda v: (v.flatten(1) @ h).reshape(v.shape), b, start, iterations=80)
        np.testing.assert_allclose(got.x.reshape(2, -1).numpy(), want, rtol=0, atol=1e-9)
        assert float(got.residual.abs().max()) < 1e-8


def test_cg_stops_at_its_tolerance():
    h = torch.diag(torch.linspace(1, 100, GRID.size, dtype=torch.float64))
    b = torch.ones(1, 1, *GRID.shape, dtype=torch.float64)
    loose = cg(lambda v: (v.flatten(1) @ h).reshape(v.shape), b, iterations=100, tolerance=0.1)
    tight = cg(lambda v: (v.flatten(1) @ h).reshape(v.shape), b, iterations=100, tolerance=1e-8)
    assert 0 < loose.iterations < tight.iterations < 100
    assert float(loose.residual.norm() / b.norm()) <= 0.1


@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_cgls_is_the_weighted_damped_least_squares_solution(damping: float):
    operator, y = _operator(), _data()
    w = torch.rand(y.shape, generator=generator(3), dtype=torch.float64) + 0.1
    x0 = torch.randn(1, 1, *GRID.shape, generator=generator(4), dtype=torch.float64)
    m, centre = operator.matrix, x0.flatten()
    h = m.T @ torch.diag(w.flatten()) @ m + damping * torch.eye(GRID.size, dtype=torch.float64)
    want = torch.linalg.solve(h, m.T @ (w * y).flatten() + damping * centre)
    fit = cgls(operator, y, iterations=80, x0=x0, weights=w, damping=damping)
    torch.testing.assert_close(fit.x.flatten(), want, rtol=0, atol=1e-9)
    torch.testing.assert_close(fit.misfit[0], (w * (y - operator.forward(fit.x)) ** 2).sum(), rtol=1e-9, atol=0)


def test_cgls_iterates_are_those_of_cg_on_the_normal_equations():
    operator, y = _operator(), _data()
    h = operator.matrix.T @ operator.matrix
    for iterations in (1, 3, 6):
        fit = cgls(operator, y, iterations=iterations)
        normal = cg(lambda v: (v.flatten(1) @ h).reshape(v.shape), operator.adjoint(y), iterations=iterations)
        torch.testing.assert_close(fit.x, normal.x, rtol=1e-9, atol=1e-12)


def test_cgls_stops_each_item_at_its_target_and_no_item_sees_its_batch():
    operator, y = _operator(), _data(batch=3)
    y = y * torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64).reshape(3, 1, 1)
    target = torch.tensor([20.0, 2000.0, 1e-30], dtype=torch.float64)
    together = cgls(operator, y, iterations=12, target=target)
    for i in range(3):
        alone = cgls(operator, y[i : i + 1], iterations=12, target=target[i : i + 1])
        torch.testing.assert_close(together.x[i], alone.x[0], rtol=0, atol=1e-12)
    assert bool((together.misfit[:2] <= target[:2]).all())
    met = cgls(operator, y, iterations=12, target=1e9)
    assert met.iterations == 0 and not met.x.any()


def test_float32_state_reaches_float32_accuracy():
    operator, y = _operator(), _data()
    want = cgls(operator, y, iterations=60).x
    got = cgls(operator, y.float(), iterations=60).x
    assert got.dtype == torch.float32
    assert float((got - want).norm() / want.norm()) < 1e-5


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_steps_after_the_solution_is_reached_do_no_harm(dtype: torch.dtype, bound: float):
    """There the gradient is rounding alone: a step that takes it to be conjugate goes too far, and diverges."""
    operator, y = _operator(), _data().to(dtype)
    want = torch.linalg.lstsq(operator.matrix, y.double().reshape(-1, 1)).solution.flatten()
    got = cgls(operator, y, iterations=1000).x.flatten()
    assert float((got - want).norm() / want.norm()) < bound


def test_power_iteration_finds_the_largest_singular_value():
    operator = MatrixOperator(_matrix(40).abs(), GRID, (40,))
    want = float(torch.linalg.matrix_norm(operator.matrix, 2))
    assert operator_norm(operator) == pytest.approx(want, rel=1e-4)
    w = torch.rand(2, 1, 40, generator=generator(5), dtype=torch.float64)
    got = power_iteration(operator, iterations=30, weights=w)
    for i in range(2):
        assert float(got[i]) == pytest.approx(
            float(torch.linalg.matrix_norm(w[i, 0].sqrt()[:, None] * operator.matrix, 2)), rel=1e-4
        )


def test_power_iteration_of_a_difference_and_of_a_zero_operator():
    difference = torch.eye(GRID.size, dtype=torch.float64) - torch.eye(GRID.size, dtype=torch.float64).roll(1, 1)
    operator = MatrixOperator(difference, GRID, (GRID.size,))
    assert operator_norm(operator) == pytest.approx(2.0, rel=0.02)
    assert operator_norm(MatrixOperator(0 * difference, GRID, (GRID.size,))) == 0.0


def test_the_default_pseudoinverse_inverts_a_well_posed_operator():
    operator = _operator(rows=200)
    x = torch.randn(1, 1, *GRID.shape, generator=generator(6), dtype=torch.float64)
    torch.testing.assert_close(pseudoinverse(operator, operator.forward(x)), x, rtol=0, atol=1e-4)
