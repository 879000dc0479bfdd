"""Conjugate gradients and power iteration for batches: every item has step sizes of its own, so that its result
does not depend on the batch it sits in. State in the dtype of the input, inner products accumulated in float64."""

from __future__ import annotations

from collections.abc import Callable
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
    x = torch.zeros_like(b) if x0 is None else x0
    r = b if x0 is None else b - matvec(x0)
    goal = tolerance**2 * dot(b, b)
    active, done = dot(r, r) > goal, 0
    p = z = precondition(r)
    rz = dot(r, z)
    while done < iterations and bool(active.any()):
        hp = matvec(p)
        step = _ratio(rz, dot(p, hp), active)
        x, r = x + per_item(step, x).to(x) * p, r - per_item(step, r).to(r) * hp
        active, done = active & (dot(r, r) > goal), done + 1
        if done < iterations:
            z = precondition(r)
            rz, before = dot(r, z), rz
            p = z + per_item(_ratio(rz, before, active), p).to(p) * p
    return Solved(x, r, done)


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
    number or one per item). `weights` is the diagonal of W, like y.
    Costs at most iterations + 1 forward and `iterations` adjoint calls (one forward fewer from zero).
    """
    start = y.new_zeros(*y.shape[:2], *operator.grid.shape) if x0 is None else x0
    weigh = (lambda r: r) if weights is None else (lambda r: weights * r)
    x, r = start, y if x0 is None else y - operator.forward(start)
    misfit, done = dot(weigh(r), r), 0
    active = misfit > target
    if iterations < 1 or not bool(active.any()):
        return LeastSquares(x, misfit, 0)
    s = operator.adjoint(weigh(r))
    if centre is None:
        centre = start
    elif damping:
        s = s - damping * (start - centre)
    p, ss = s, dot(s, s)
    while True:
        q = operator.forward(p)
        step = _ratio(ss, dot(weigh(q), q) + damping * dot(p, p), active)
        x, r = x + per_item(step, x).to(x) * p, r - per_item(step, r).to(r) * q
        misfit, done = torch.where(active, dot(weigh(r), r), misfit), done + 1
        active = active & (misfit > target) & (ss > 0)
        if done == iterations or not bool(active.any()):
            return LeastSquares(x, misfit, done)
        s = operator.adjoint(weigh(r)) - damping * (x - centre)
        ss, before = dot(s, s), ss
        p = s + per_item(_ratio(ss, before, active), p).to(p) * p


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
