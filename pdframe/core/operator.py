"""The contract of a forward operator, and what follows from it: gradients, norm, pseudo-inverse, data step."""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pdframe.core.grid import Grid
from pdframe.core.interface import Interface

if TYPE_CHECKING:
    from pdframe.core.linalg import LeastSquares


class ForwardOperator(Interface):
    """The linear map A from an unknown x to its measurements y.

    x has shape (batch, channel, *grid.shape) and unit `grid.unit`; y has shape (batch, channel, *data_shape).
    Batch and channel ride along: each pair is mapped alone. Device and dtype are those of the input.

    Fields that a final class must supply:
        grid: where x lives.
        data_shape: shape of one measurement, without batch and channel; for a cone beam (view, row, column).
        matched: whether `adjoint` is the exact transpose of `forward`. Where it is not, the measured mismatch
            goes into the record of every run.
        views: what one call costs in the unit in which the field counts operator work: projection views for a
            scanner, 1 where the operator has no such notion.

    Write `forward` and `adjoint` without regard to autograd: `apply` and `apply_adjoint` below give gradients
    of any order to all operators.
    """

    grid: Grid
    data_shape: tuple[int, ...]
    matched: bool = True
    views: int = 1

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x: (batch, channel, *grid.shape) -> (batch, channel, *data_shape)."""

    @abc.abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A' y, the plain (Euclidean) transpose: (batch, channel, *data_shape) -> (batch, channel, *grid.shape)."""


class _Linear(torch.autograd.Function):
    """A linear map whose gradient is its transpose; differentiating again swaps them back, to any order."""

    @staticmethod
    def forward(ctx, value: Tensor, operator: ForwardOperator, transposed: bool) -> Tensor:  # noqa: ANN001
        ctx.operator, ctx.transposed = operator, transposed
        return operator.adjoint(value) if transposed else operator.forward(value)

    @staticmethod
    def backward(ctx, grad: Tensor):  # noqa: ANN001, ANN205
        return _Linear.apply(grad, ctx.operator, not ctx.transposed), None, None


def apply(operator: ForwardOperator, x: Tensor) -> Tensor:
    """A x, differentiable to any order in x."""
    return _Linear.apply(x, operator, False)


def apply_adjoint(operator: ForwardOperator, y: Tensor) -> Tensor:
    """A' y, differentiable to any order in y."""
    return _Linear.apply(y, operator, True)


def pseudoinverse(operator: ForwardOperator, y: Tensor) -> Tensor:
    """An approximate inverse of A applied to y; same unit as x.

    The operator's direct inverse; where it has none, 20 conjugate-gradient steps on the least-squares problem.
    """
    from pdframe.core.linalg import cgls

    inverse = direct_inverse(operator)
    return cgls(operator, y, iterations=20).x if inverse is None else inverse(y)


@functools.singledispatch
def direct_inverse(operator: ForwardOperator) -> Callable[[Tensor], Tensor] | None:
    """y -> x in closed form, at the cost of about one adjoint; None, the default, if the operator has no such thing.

    An operator that has one registers it: `@direct_inverse.register` on a function of it. A cone beam on a circle
    answers with FDK, on a helix with None.
    """
    return None


@functools.singledispatch
def prox(
    operator: ForwardOperator,
    y: Tensor,
    *,
    centre: Tensor,
    damping: float,
    iterations: int,
    x0: Tensor | None = None,
    weights: Tensor | None = None,
    target: float | Tensor = 0.0,
) -> LeastSquares:
    """The data step of splitting methods: argmin |y - A x|_W^2 + damping |x - centre|^2.

    The default is `pdframe.core.linalg.cgls` with these arguments, from x0 (or the centre). An operator whose normal
    equations have a closed solution (a mask, a Fourier transform, a blur) registers it, and all solvers take it.
    """
    from pdframe.core.linalg import cgls

    start = centre if x0 is None else x0
    settings = {"centre": centre, "damping": damping, "weights": weights, "target": target}
    return cgls(operator, y, iterations=iterations, x0=start, **settings)


@functools.singledispatch
def call_bytes(operator: ForwardOperator, *, itemsize: int = 4) -> int:
    """Memory that one `forward` or `adjoint` of one item takes: its input, its output, its scratch; an upper bound.

    The default counts input and output. An operator that needs more registers its own.
    """
    return itemsize * (operator.grid.size + math.prod(operator.data_shape))


@functools.singledispatch
def operator_norm(operator: ForwardOperator, *, device: torch.device | str = "cpu") -> float:
    """Largest singular value of A, by 30 power iterations from a positive start.

    An operator that knows its norm registers a better function. The estimate is from below, within about 1 %
    for operators with non-negative weights (the leading singular vector is then non-negative: Perron-Frobenius).
    """
    from pdframe.core.linalg import power_iteration

    return float(power_iteration(operator, iterations=30, device=device))


def adjoint_mismatch(operator: ForwardOperator, *, rng: torch.Generator, device: torch.device | str = "cpu") -> float:
    """|<A x, y> - <x, A' y>| / (|A x| |y|) for random-sign x and y in float32: 0 for an exact transpose."""
    x = torch.randn(1, 1, *operator.grid.shape, generator=rng).to(device)
    y = torch.randn(1, 1, *operator.data_shape, generator=rng).to(device)
    ax, aty = operator.forward(x).double(), operator.adjoint(y).double()
    gap = (ax * y.double()).sum() - (x.double() * aty).sum()
    return float(gap.abs() / (ax.norm() * y.double().norm()).clamp_min(1e-300))
