"""The data term |A x - y|_W^2 as classical solvers see it: its weights, its scale, its level under noise, its sums."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pdframe.core.linalg import power_iteration
from pdframe.core.noise import NoNoise
from pdframe.core.operator import ForwardOperator
from pdframe.core.problem import Problem
from pdframe.core.seeds import generator

Weighting = Literal["statistical", "none"]

#: Within some 2 % of the norm of a scanner, from below.
POWER_ITERATIONS = 8


def weights_of(problem: Problem, weighting: Weighting) -> Tensor:
    """The diagonal of W, like y: inverse noise variances, or ones."""
    return torch.ones_like(problem.y) if weighting == "none" else problem.noise.inverse_variance(problem.y)


def largest_eigenvalue(operator: ForwardOperator, weights: Tensor) -> Tensor:
    """Of A'WA, (batch,): the scale by which weights of regularisers here are relative. 8 forward, 7 adjoint calls."""
    return power_iteration(operator, iterations=POWER_ITERATIONS, weights=weights) ** 2


def expected_misfit(problem: Problem, weights: Tensor) -> Tensor:
    """|A x - y|_W^2 that the noise alone makes of the true x, on average, (batch,); 0 for a problem without noise."""
    if isinstance(problem.noise, NoNoise):
        return problem.y.new_zeros(len(problem.y), dtype=torch.float64)
    return (weights / problem.noise.inverse_variance(problem.y)).flatten(1).sum(1, dtype=torch.float64)


def row_sums(operator: ForwardOperator, like: Tensor) -> Tensor:
    """A 1, (1, 1, *data_shape), for an operator without negative weights. Two forward calls.

    ValueError if it has any: for random signs s, no row of such an operator has |A s| above A 1.
    """
    ones = like.new_ones(1, 1, *operator.grid.shape)
    draw = torch.rand(ones.shape, generator=generator(0, "signs")).to(ones)
    rows, signed = operator.forward(ones), operator.forward(torch.where(draw < 0.5, -ones, ones))
    if bool((signed.abs() > rows + 1e-4 * rows.abs().max()).any()):
        raise ValueError(
            f"row and column sums bound an operator without negative weights: {type(operator).__name__} has some; "
            "use cgls, tikhonov or admm_tv"
        )
    return rows


def reciprocal(sums: Tensor, *, of_empty: float = 0.0) -> Tensor:
    """1 / sums, and `of_empty` for empty rows or columns (up to rounding)."""
    empty = sums <= 1e-6 * sums.amax()
    return torch.where(empty, of_empty, 1 / torch.where(empty, 1.0, sums))
