"""Conjugate gradients and power iteration for batches: every item has step sizes of its own, so that its result
does not depend on the batch it sits in. State in the dtype of the input, inner products accumulated in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pdframe.core.operator import ForwardOperator
from pdframe.core.prior import per_item
from pdframe.core.seeds import generator


class Solved(NamedTuple):
    """x and what was left of the right-hand side, b - H x; `iterations` is the largest count of any item."""

    x: Tensor
    residual: Tensor
    iterations: int


class LeastSquares(NamedTuple):
    """x, its data misfit |y - A x|_W^2 per item (batch,), and the largest number of iterations of any item."""

    x: Tensor
    misfit: Tensor
    iterations: int


@dataclass(frozen=True)
class CGState:
    """After some steps on H x = b: x, its residual r = b - H x, the last direction and the r'z that it was made from (z
    is r preconditioned), which items go on, and the |r|^2 at which an item stops; the last three (batch,)."""

    x: Tensor
    residual: Tensor
    direction: Tensor
    square: Tensor
    active: Tensor
    goal: Tensor
    iterations: int


@dataclass(frozen=True)
class CGLSState:
    """After some steps on min |y - A x|_W^2: x, its residual y - A x and misfit |y - A x|_W^2, the last direction and
    the squared gradient that it was made from, and which items go on; the last three and misfit (batch,)."""

    x: Tensor
    residual: Tensor
    misfit: Tensor
    direction: Tensor
    square: Tensor
    active: Tensor
    iterations: int


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each batch item, (batch,)."""
    wide = torch.float32 if a.device.type == "mps" else torch.float64  # Metal has no float64
    return (a * b).flatten(1).sum(1, dtype=wide)


def cg(
    matvec: Callable[[Tensor], Tensor],
    b: Tensor,
    x0: Tensor | None = None,
    *,
    iterations: int,
    tolerance: float = 0.0,
    precondition: Callable[[Tensor], Tensor] = lambda r: r,
) -> Solved:
    """Solves H x = b for a symmetric positive semi-definite H, from x0 (or zero, which saves one `matvec`).

    An item stops when |b - H x| <= tolerance |b|. Costs one `matvec` per iteration. `precondition` applies a
    symmetric positive definite approximation of the inverse of H (Saad 2003, algorithm 9.1).
    """
    k = cg_start(matvec, b, x0, tolerance=tolerance)
    while k.iterations < iterations and bool(k.active.any()):
        k = cg_step(matvec, k, precondition=precondition)
    return Solved(k.x, k.residual, k.iterations)


def cg_start(
    matvec: Callable[[Tensor], Tensor], b: Tensor, x0: Tensor | None = None, *, tolerance: float = 0.0
) -> CGState:
    """`cg` before its first step."""
    x = torch.zeros_like(b) if x0 is None else x0
    r = b if x0 is None else b - matvec(x0)
    goal = tolerance**2 * dot(b, b)
    return CGState(x, r, torch.zeros_like(b), torch.zeros_like(goal), dot(r, r) > goal, goal, 0)


def cg_step(
    matvec: Callable[[Tensor], Tensor], k: CGState, *, precondition: Callable[[Tensor], Tensor] = lambda r: r
) -> CGState:
    """One step of `cg`, which costs one `matvec`."""
    z = precondition(k.residual)
    square = dot(k.residual, z)
    p = z + per_item(_ratio(square, k.square, k.active), z).to(z) * k.direction
    hp = matvec(p)
    step = _ratio(square, dot(p, hp), k.active)
    x, r = k.x + per_item(step, p).to(p) * p, k.residual - per_item(step, p).to(p) * hp
    return CGState(x, r, p, square, k.active & (dot(r, r) > k.goal), k.goal, k.iterations + 1)


def cgls(
    operator: ForwardOperator,
    y: Tensor,
    *,
    iterations: int,
    x0: Tensor | None = None,
    centre: Tensor | None = None,
    weights: Tensor | None = None,
    damping: float = 0.0,
    target: float | Tensor = 0.0,
) -> LeastSquares:
    """Minimises |y - A x|_W^2 + damping |x - centre|^2, without squaring the condition in the data term.

    Starts at x0 (or zero), which is the centre too unless another is given. The iterates are those of conjugate
    gradients on (A'WA + damping I) x = A'W y + damping centre (Hestenes and Stiefel 1952; Bjorck 1996, algorithm
    7.4.1), but the data residual is at hand: an item stops when its misfit |y - A x|_W^2 is at or below `target` (a
    number or one per item). `weights` is the diagonal of W, like y. A step minimises along its direction, s'p and not
    s's (equal without rounding), so that steps after the solution is reached do not lead away from it.
    Costs at most iterations + 1 forward and `iterations` adjoint calls (one forward fewer from zero).
    """
    k = cgls_start(operator, y, x0, weights=weights, target=target)
    centre = k.x if centre is None else centre
    while k.iterations < iterations and bool(k.active.any()):
        k = cgls_step(operator, k, centre=centre, weights=weights, damping=damping, target=target)
    return LeastSquares(k.x, k.misfit, k.iterations)


def cgls_start(
    operator: ForwardOperator,
    y: Tensor,
    x0: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    target: float | Tensor = 0.0,
) -> CGLSState:
    """`cgls` before its first step."""
    x = y.new_zeros(*y.shape[:2], *operator.grid.shape) if x0 is None else x0
    r = y if x0 is None else y - operator.forward(x)
    misfit = dot(_weighed(r, weights), r)
    return CGLSState(x, r, misfit, torch.zeros_like(x), torch.zeros_like(misfit), misfit > target, 0)


def cgls_step(
    operator: ForwardOperator,
    k: CGLSState,
    *,
    centre: Tensor | None = None,
    weights: Tensor | None = None,
    damping: float = 0.0,
    target: float | Tensor = 0.0,
) -> CGLSState:
    """One step of `cgls`, which costs one adjoint and one forward call; without `centre`, it is zero."""
    s = operator.adjoint(_weighed(k.residual, weights))
    if damping:
        s = s - damping * (k.x if centre is None else k.x - centre)
    square = dot(s, s)
    active = k.active & (square > 0)
    p = s + per_item(_ratio(square, k.square, active), s).to(s) * k.direction
    q = operator.forward(p)
    step = _ratio(dot(s, p), dot(_weighed(q, weights), q) + damping * dot(p, p), active)
    x, r = k.x + per_item(step, p).to(p) * p, k.residual - per_item(step, q).to(q) * q
    misfit = torch.where(active, dot(_weighed(r, weights), r), k.misfit)
    return CGLSState(x, r, misfit, p, square, active & (misfit > target), k.iterations + 1)


def _weighed(r: Tensor, weights: Tensor | None) -> Tensor:
    return r if weights is None else weights * r


def power_iteration(
    operator: ForwardOperator, *, iterations: int, weights: Tensor | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Largest singular value of sqrt(W) A for each item of `weights` (batch,), from below; (1,) without weights.

    The start is positive and not constant, so that neither a non-negative nor a difference operator maps it to 0.
    """
    like = torch.ones(1, 1, 1, device=device) if weights is None else weights
    rng = generator(0, "power iteration")
    v = (0.5 + torch.rand(1, 1, *operator.grid.shape, generator=rng)).to(like)
    v = v.expand(*like.shape[:2], *operator.grid.shape).contiguous()
    for k in range(iterations):
        q = operator.forward(v)
        wq = q if weights is None else weights * q
        largest = dot(wq, q) / dot(v, v).clamp_min(1e-300)
        if k + 1 < iterations:
            v = operator.adjoint(wq)
            v = v / per_item(dot(v, v).sqrt().clamp_min(1e-30), v).to(v)
    return largest.sqrt()


def _ratio(top: Tensor, bottom: Tensor, active: Tensor) -> Tensor:
    """top / bottom for the items still running, 0 for the others (their x then stays as it is, exactly)."""
    run = active & (bottom > 0)
    return torch.where(run, top / torch.where(run, bottom, 1.0), 0.0)
