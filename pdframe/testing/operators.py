"""What every forward operator must do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pdframe.core.operator import ForwardOperator, adjoint_mismatch, apply, apply_adjoint
from pdframe.core.seeds import generator, normal
from pdframe.testing.checks import Check, leaves_global_randomness, relative_gap, require, rounding, run_checks


def check_operator(
    operator: ForwardOperator, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> list[Check]:
    """Runs every claim below on one operator. Choose a small grid: each claim applies the operator a few times."""
    return run_checks(CLAIMS, _Subject(operator, torch.device(device), dtype))


@dataclass(frozen=True)
class _Subject:
    operator: ForwardOperator
    device: torch.device
    dtype: torch.dtype

    def x(self, batch: int = 1, channel: int = 1, seed: int = 0) -> Tensor:
        return self._draw((batch, channel, *self.operator.grid.shape), seed)

    def y(self, batch: int = 1, channel: int = 1, seed: int = 1) -> Tensor:
        return self._draw((batch, channel, *self.operator.data_shape), seed)

    def _draw(self, shape: tuple[int, ...], seed: int) -> Tensor:
        return normal(torch.empty(shape, dtype=self.dtype, device=self.device), generator(seed, "operator check"))

    def sides(self):  # noqa: ANN201
        """(name, map, input maker) of forward and adjoint."""
        return (("forward", self.operator.forward, self.x), ("adjoint", self.operator.adjoint, self.y))


def fields_are_there(s: _Subject) -> str:
    op = s.operator
    require(all(isinstance(n, int) and n > 0 for n in op.data_shape), f"data_shape must be positive: {op.data_shape}")
    require(isinstance(op.matched, bool), f"matched must be a bool: got {op.matched!r}")
    require(isinstance(op.views, int) and op.views > 0, f"views must be a positive int: got {op.views!r}")
    return f"grid {op.grid.shape} -> data {tuple(op.data_shape)}, {op.views} views"


def shape_dtype_and_device_are_those_of_the_input(s: _Subject) -> str:
    for batch, channel in ((1, 1), (2, 3)):
        ax, aty = s.operator.forward(s.x(batch, channel)), s.operator.adjoint(s.y(batch, channel))
        for name, got, want in (("forward", ax, s.y(batch, channel)), ("adjoint", aty, s.x(batch, channel))):
            require(got.shape == want.shape, f"{name} must give {tuple(want.shape)}: got {tuple(got.shape)}")
            require(got.dtype == want.dtype, f"{name} must give {want.dtype}: got {got.dtype}")
            require(got.device == want.device, f"{name} must give a tensor on {want.device}: got {got.device}")
            require(got.isfinite().all(), f"{name} of finite values must be finite")
    return str(s.dtype)


def it_is_linear(s: _Subject) -> str:
    worst = 0.0
    for name, act, draw in s.sides():
        a, b = draw(seed=2), draw(seed=3)
        gap = relative_gap(act(2.5 * a - b), 2.5 * act(a) - act(b))
        require(gap <= rounding(s.dtype), f"{name} is not linear: relative gap {gap:.1e}")
        require(not act(torch.zeros_like(a)).any(), f"{name} of zero must be zero")
        worst = max(worst, gap)
    return f"relative gap {worst:.1e}"


def it_is_not_the_zero_map(s: _Subject) -> str:
    size = float(s.operator.forward(torch.ones_like(s.x())).abs().max() + s.operator.forward(s.x()).abs().max())
    require(size > 0, "forward is zero for ones and for noise: does the operator see the grid at all?")
    return f"largest value {size:.2g}"


def adjoint_is_the_transpose_of_forward(s: _Subject) -> str:
    x, y = s.x(seed=4), s.y(seed=5)
    ax, aty = s.operator.forward(x).double(), s.operator.adjoint(y).double()
    gap = float(((ax * y).sum() - (x * aty).sum()).abs() / (ax.norm() * y.double().norm()))
    if not s.operator.matched:
        shown = adjoint_mismatch(s.operator, rng=generator(0, "mismatch"), device=s.device)
        return f"declared as not matched; mismatch {shown:.1e}"
    require(gap <= rounding(s.dtype, 20), f"<A x, y> and <x, A' y> differ by {gap:.1e} of |A x| |y|")
    return f"mismatch {gap:.1e}"


def autograd_gives_the_adjoint_to_any_order(s: _Subject) -> str:
    x, y = s.x(seed=6).requires_grad_(), s.y(seed=7)
    (slope,) = torch.autograd.grad(apply(s.operator, x), x, y)
    gap = relative_gap(slope, s.operator.adjoint(y))
    require(gap <= rounding(s.dtype), f"the gradient of A x must be the adjoint: relative gap {gap:.1e}")

    # f(x) = |A x|^2 / 2 has gradient A'A x and Hessian-vector product A'A v.
    (slope,) = torch.autograd.grad((apply(s.operator, x) ** 2).sum() / 2, x, create_graph=True)
    v = s.x(seed=8)
    (bend,) = torch.autograd.grad((slope * v).sum(), x)
    gap = relative_gap(bend, s.operator.adjoint(s.operator.forward(v)))
    require(gap <= rounding(s.dtype), f"the Hessian of |A x|^2 / 2 must be A'A: relative gap {gap:.1e}")

    w = s.y(seed=9).requires_grad_()
    (slope,) = torch.autograd.grad(apply_adjoint(s.operator, w), w, v)
    gap = relative_gap(slope, s.operator.forward(v))
    require(gap <= rounding(s.dtype), f"the gradient of A' y must be A: relative gap {gap:.1e}")
    return "first and second order"


def an_item_does_not_depend_on_its_batch(s: _Subject) -> str:
    for name, act, draw in s.sides():
        many = draw(3, 2, seed=10)
        together = act(many)
        for i, j in ((0, 0), (2, 1)):
            gap = relative_gap(together[i : i + 1, j : j + 1], act(many[i : i + 1, j : j + 1]))
            require(gap <= rounding(s.dtype), f"{name}: item {i}, channel {j} differs by {gap:.1e} from the same alone")
    return "3 items, 2 channels"


def the_input_is_left_as_it_was(s: _Subject) -> str:
    for name, act, draw in s.sides():
        value = draw(seed=11)
        before = value.clone()
        result = act(value)
        require(torch.equal(value, before), f"{name} changed its input")
        result.fill_(0)
        require(torch.equal(value, before), f"{name} returned memory of its input")
    return "forward and adjoint"


def memory_layout_does_not_matter(s: _Subject) -> str:
    for name, act, draw in s.sides():
        value = draw(2, 1, seed=12)
        wide = torch.stack([value, value], -1)[..., 0]  # every other number in memory
        turned = value.flip(0).flip(0).movedim(-1, 0).contiguous().movedim(0, -1)
        want = act(value)
        for odd in (wide, turned, value[:1].expand_as(value)):
            gap = relative_gap(act(odd)[:1], want[:1])
            require(gap <= rounding(s.dtype), f"{name} of a non-contiguous input differs by {gap:.1e}")
    return "strided, permuted and expanded"


def the_same_input_gives_the_same_bits(s: _Subject) -> str:
    for name, act, draw in s.sides():
        value = draw(seed=13)
        # A GPU that scatters with atomic additions may round in another order.
        same = torch.equal(act(value), act(value))
        close = relative_gap(act(value), act(value)) <= rounding(s.dtype)
        require(same if s.device.type == "cpu" else close, f"{name} gave two answers to one input")
    return "twice"


def global_randomness_is_left_alone(s: _Subject) -> str:
    for name, act, draw in s.sides():
        value = draw()
        require(leaves_global_randomness(lambda act=act, value=value: act(value)), f"{name} moved a global stream")
    return "torch, numpy, random"


CLAIMS = (
    fields_are_there,
    shape_dtype_and_device_are_those_of_the_input,
    it_is_linear,
    it_is_not_the_zero_map,
    adjoint_is_the_transpose_of_forward,
    autograd_gives_the_adjoint_to_any_order,
    an_item_does_not_depend_on_its_batch,
    the_input_is_left_as_it_was,
    memory_layout_does_not_matter,
    the_same_input_gives_the_same_bits,
    global_randomness_is_left_alone,
)
