"""The Gaussian toy as plain matrices, for tests that write a solver's recursion a second time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pdframe.core.seeds import generator
from pdframe.testing.toys import gaussian_toy

TOY = gaussian_toy()
A = TOY.problem.operator.matrix
ROWS, N = A.shape
EYE = torch.eye(N, dtype=torch.float64)
Y = TOY.problem.y.flatten()
W = 1 / TOY.problem.noise.deviation**2
MEAN, DEVIATION = TOY.prior.mean, TOY.prior.deviation
SHAPE = (1, 1, 4, 4, 4)


def levels(steps: int, sigma_max: float, sigma_min: float, rho: float) -> list[float]:
    """EDM's ladder in units of the prior's deviation, with 0 at its end."""
    top, low = (sigma_max * DEVIATION) ** (1 / rho), (sigma_min * DEVIATION) ** (1 / rho)
    return [(top + i / max(steps - 1, 1) * (low - top)) ** rho for i in range(steps)] + [0.0]


def shrinkage(sigma: float) -> Tensor:
    """C (C + sigma^2 I)^-1: the denoiser's matrix and its Jacobian."""
    return torch.linalg.solve(TOY.prior.covariance + sigma**2 * EYE, TOY.prior.covariance)


def denoised(x: Tensor, sigma: float) -> Tensor:
    return MEAN + shrinkage(sigma) @ (x - MEAN)


def draws(seed: int = 0) -> Callable[[int], Tensor]:
    """Normal vectors from the stream that a solve with `generator(seed, "test")` draws from, in the same order."""
    rng = generator(seed, "test")
    shape = {N: SHAPE, ROWS: (1, 1, ROWS)}
    return lambda size=N: torch.randn(shape[size], generator=rng, dtype=torch.float64).flatten()


def krylov(h: Tensor, start: Tensor, right: Tensor, iterations: int) -> Tensor:
    """What CG reaches: the minimiser of x'Hx/2 - b'x over start + span{r, Hr, ...}, by dense least squares."""
    basis = torch.zeros(len(start), 0, dtype=start.dtype)
    direction = right - h @ start
    for _ in range(iterations):
        basis, _ = torch.linalg.qr(torch.cat([basis, direction[:, None]], 1))
        direction = h @ basis[:, -1]
    reduced = torch.linalg.solve(basis.T @ h @ basis, basis.T @ (right - h @ start))
    return start + basis @ reduced
