"""What follows from the operator contract: gradients of any order, norm, pseudo-inverse, a bad adjoint seen."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pdframe.core.grid import Grid
from pdframe.core.operator import (
    ForwardOperator,
    adjoint_mismatch,
    apply,
    apply_adjoint,
    operator_norm,
    prox,
    pseudoinverse,
)


@dataclass(frozen=True)
class Matrix(ForwardOperator):
    """y = M x on a flat grid, with an adjoint that is off by `error` in relative terms."""

    matrix: Tensor
    error: float = 0.0

    @property
    def grid(self) -> Grid:
        return Grid((self.matrix.shape[1],), (1.0,))

    @property
    def data_shape(self) -> tuple[int, ...]:
        return (self.matrix.shape[0],)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.to(x).T

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ (self.matrix.to(y) * (1 + self.error * torch.sign(self.matrix.to(y))))


def matrix(rows: int = 9, columns: int = 6) -> Matrix:
    return Matrix(torch.randn(rows, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def test_gradient_is_the_adjoint() -> None:
    operator = matrix()
    x = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    y = torch.randn(2, 3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((apply(operator, x) * y).sum(), x)
    assert torch.equal(gradient, operator.adjoint(y))


@pytest.mark.parametrize(("function", "size"), [(apply, 6), (apply_adjoint, 9)])
def test_gradients_of_first_and_second_order(function, size: int) -> None:
    operator = matrix()
    x = torch.randn(1, 2, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: function(operator, v).sin(), (x,))
    assert torch.autograd.gradgradcheck(lambda v: function(operator, v).sin(), (x,))


def test_no_gradient_where_none_is_asked_for() -> None:
    assert not apply(matrix(), torch.zeros(1, 1, 6, dtype=torch.float64)).requires_grad


def test_mismatch_is_rounding_for_a_transpose_and_seen_for_a_fake() -> None:
    rng = torch.Generator().manual_seed(3)
    true = matrix(40, 40)
    assert adjoint_mismatch(true, rng=rng) < 1e-6
    assert adjoint_mismatch(Matrix(true.matrix, error=0.05), rng=rng) > 1e-4


def test_norm_is_the_largest_singular_value() -> None:
    positive = Matrix(matrix(20, 15).matrix.abs())
    largest = float(torch.linalg.matrix_norm(positive.matrix, 2))
    assert operator_norm(positive) == pytest.approx(largest, rel=1e-2)


def test_pseudoinverse_solves_least_squares_by_default() -> None:
    operator = matrix(12, 5)
    y = torch.randn(2, 1, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    want = y @ torch.linalg.pinv(operator.matrix).T
    torch.testing.assert_close(pseudoinverse(operator, y), want, rtol=1e-6, atol=1e-6)


def test_prox_is_the_damped_least_squares_solution_by_default() -> None:
    operator = matrix(12, 5)
    rng = torch.Generator().manual_seed(4)
    y = torch.randn(2, 1, 12, dtype=torch.float64, generator=rng)
    weights = torch.linspace(1, 2, 12, dtype=torch.float64)
    centre = torch.randn(2, 1, *operator.grid.shape, dtype=torch.float64, generator=rng)
    a = operator.matrix
    normal = a.T @ (weights[:, None] * a) + 0.3 * torch.eye(5, dtype=torch.float64)
    want = torch.linalg.solve(normal, ((y * weights) @ a + 0.3 * centre.flatten(2)).flatten(1).T).T.view_as(centre)
    got = prox(operator, y, centre=centre, damping=0.3, iterations=30, weights=weights.expand_as(y))
    torch.testing.assert_close(got.x, want, rtol=1e-6, atol=1e-6)
    misfit = (weights * (y - operator.forward(want)) ** 2).flatten(1).sum(1)
    torch.testing.assert_close(got.misfit, misfit, rtol=1e-6, atol=1e-6)


def test_final_class_cannot_be_subclassed() -> None:
    with pytest.raises(TypeError, match="final"):

        class Sub(Matrix):
            pass
