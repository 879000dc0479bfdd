"""What a solve may cost, what it did cost, and the proxies that count it: by measurement, not by trust."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pdframe.core.grid import Grid
from pdframe.core.linalg import LeastSquares
from pdframe.core.memory import own_bytes
from pdframe.core.operator import ForwardOperator, direct_inverse, operator_norm, prox
from pdframe.core.prior import Prior, prior_cost, prior_on

T = TypeVar("T")

#: What a proxy is letting through to what it stands for: "call" (one that it counted), "power" (a pseudo-inverse or a
#: norm, at its own price), or "" outside of any. `pdframe.bench.guard` finds calls that came by another way.
LET_THROUGH: ContextVar[str] = ContextVar("let_through", default="")

#: Passes that a gradient in x through a prior counts as: the evaluation again, since a volume's worth of activations is
#: recomputed and not kept, and its transpose, which has the same multiplications.
BACKWARD_PASSES = 2

#: Share of the operations that torch counts in a call that its prior must declare to be charged by its own word.
DECLARED_SHARE = 0.9


@dataclass(frozen=True)
class Budget:
    """Limits of one solve; None is no limit. Looked at between steps, so the last step may run over: `Usage` says by
    how much. `steps` counts the solver's outer iterations."""

    seconds: float | None = None
    network_voxels: float | None = None
    network_flops: float | None = None
    view_calls: int | None = None
    peak_memory_bytes: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            limit = getattr(self, f.name)
            if limit is not None and not limit > 0:
                raise ValueError(f"a budget's {f.name} must be positive, or None for no limit: got {limit}")


@dataclass(frozen=True)
class Usage:
    """What a solve cost. Batch items and channels count one by one.

    network_*: evaluations of `Prior.denoise`, and the voxel-evaluations and floating-point operations in them, as
        `prior_cost` gives them, or torch's counter where a prior has registered none or declares too few operations. A
        gradient taken through an evaluation is no call of its own, but costs as much as `BACKWARD_PASSES` more.
    undeclared_flops: those of network_flops that the prior had not declared.
    forward_calls, adjoint_calls: applications of A and A' to one item; a pseudo-inverse counts as one adjoint.
    view_calls: the same times the operator's `views`.
    seconds: wall clock inside the solver; network_seconds and operator_seconds are parts of it.
    peak_memory_bytes: of the GPU during the solve; on a CPU of the whole process: on Linux during the solve, elsewhere
        so far.
    """

    network_calls: int = 0
    network_voxels: float = 0.0
    network_flops: float = 0.0
    undeclared_flops: float = 0.0
    forward_calls: int = 0
    adjoint_calls: int = 0
    view_calls: int = 0
    seconds: float = 0.0
    network_seconds: float = 0.0
    operator_seconds: float = 0.0
    peak_memory_bytes: int = 0

    def plus(self, other: Usage) -> Usage:
        """The cost of both, one after the other."""
        total = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return replace(Usage(**total), peak_memory_bytes=max(self.peak_memory_bytes, other.peak_memory_bytes))


@dataclass(slots=True)  # which leaves no room for an `add` of one meter's own
class Meter:
    """The running count behind the proxies of one solve, on one device."""

    device: torch.device
    usage: Usage = field(default_factory=Usage)

    def add(self, **amounts: float) -> None:
        self.usage = replace(self.usage, **{k: getattr(self.usage, k) + v for k, v in amounts.items()})

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Adds the wall-clock time of the block to the field `name`; waits for the GPU on both sides."""
        start = _now(self.device)
        try:
            yield
        finally:
            self.add(**{name: _now(self.device) - start})
            peak = max(self.usage.peak_memory_bytes, peak_memory_bytes(self.device))
            self.usage = replace(self.usage, peak_memory_bytes=peak)


@dataclass(frozen=True, repr=False, eq=False)
class CountedOperator(ForwardOperator):
    """The operator as a solver sees it: the contract's fields and calls, each call on the meter, nothing else."""

    _inner: ForwardOperator
    _meter: Meter
    grid: Grid
    data_shape: tuple[int, ...]
    matched: bool
    views: int

    def forward(self, x: Tensor) -> Tensor:
        return self._counted("forward_calls", self._inner.forward, x, "call")

    def adjoint(self, y: Tensor) -> Tensor:
        return self._counted("adjoint_calls", self._inner.adjoint, y, "call")

    def _counted(self, name: str, call: Callable[[Tensor], T], value: Tensor, way: str) -> T:
        items = value.shape[0] * value.shape[1]
        self._meter.add(**{name: items, "view_calls": items * self.views})
        with self._meter.clock("operator_seconds"), _letting_through(way):
            return call(value)


@dataclass(frozen=True, repr=False, eq=False)
class CountedPrior(Prior):
    """The prior as a solver sees it: each `denoise` on the meter, and each gradient that is taken through one."""

    _inner: Prior
    _meter: Meter
    sigma_range: tuple[float, float]
    mean: float
    deviation: float

    def denoise(self, x: Tensor, sigma: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        seen = x.view_as(x)  # so that the hooks below see what passes through this evaluation and no other
        with ExitStack() as around:
            around.enter_context(self._meter.clock("network_seconds"))
            around.enter_context(_letting_through("call"))
            counted = around.enter_context(_counting()) if self._is_looked_at(x.shape[0]) else None
            clean = self._inner.denoise(seen, sigma, rng=rng)
        cost = self._cost(tuple(x.shape), counted.flops if counted else 0.0)
        self._meter.add(network_calls=x.shape[0], **cost)
        if seen.requires_grad and clean.requires_grad:
            self._count_backward(seen, clean, cost)
        return clean

    def _is_looked_at(self, items: int) -> bool:
        """Whether torch counts this call: always if the prior declares nothing, or any has declared too little so far.

        Otherwise the first call, the 4th, the 16th and so on, as counting slows small operations down. Told by the
        usage alone, which a checkpoint keeps: a solve that goes on from one looks at the same calls.
        """
        before = self._meter.usage.network_calls
        doubtful = self._meter.usage.undeclared_flops != 0 or not _specialised(prior_cost, self._inner)
        return doubtful or _power_of_four(before) != _power_of_four(before + items)

    def _cost(self, shape: tuple[int, ...], counted: float) -> dict[str, float]:
        """What a call is charged: what the prior declares, unless much more was counted. To declare more is fair: the
        cost of a call may vary, and torch sees no operations outside of it."""
        declared = prior_cost(self._inner, shape)
        flops = declared["flops"] if declared["flops"] >= DECLARED_SHARE * counted else counted
        undeclared = flops - declared["flops"]
        return {"network_voxels": declared["voxels"], "network_flops": flops, "undeclared_flops": undeclared}

    def _count_backward(self, seen: Tensor, clean: Tensor, cost: dict[str, float]) -> None:
        """Puts every gradient that passes from `clean` back to `seen` on the meter."""
        started: list[float] = []

        def enter(_: Tensor) -> None:
            self._meter.add(**{name: BACKWARD_PASSES * amount for name, amount in cost.items()})
            started.append(_now(self._meter.device))

        def leave(_: Tensor) -> None:
            self._meter.add(network_seconds=_now(self._meter.device) - started.pop())

        clean.register_hook(enter)
        seen.register_hook(leave)


class _Operations(TorchDispatchMode):
    """The sum of torch's counts of operations. Its own `FlopCounterMode` gives the same, slows an operation down four
    times as much (measured), and imports the compiler: a second, and memory, that would go on the meter."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry

        super().__init__()
        self.flops, self.counts = 0.0, flop_registry

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True, torch's default, imports the compiler

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _has_parts(func):
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        count = self.counts.get(getattr(func, "_overloadpacket", func))
        self.flops += count(*args, **kwargs, out_val=out) if count else 0
        return out


@functools.cache
def _has_parts(func: Any) -> bool:
    """Whether an operation is made of others that are counted; seen from here only where a prior infers without
    autograd's bookkeeping (`torch.inference_mode`)."""
    is_plain = isinstance(func, torch._ops.OpOverload)
    return is_plain and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@contextmanager
def _counting() -> Iterator[_Operations]:
    """Counts the operations of the block. What is compiled runs uncompiled in it: torch would give its compiled form up
    for good at the sight of a counter."""
    with ExitStack() as around:
        if "torch._dynamo" in sys.modules:
            around.enter_context(torch.compiler.set_stance("force_eager"))
        yield around.enter_context(_Operations())


def _power_of_four(count: int) -> int:
    """0 for 0, 1 for 1 to 3, 2 for 4 to 15, 3 for 16 to 63, ..."""
    return (count.bit_length() + 1) // 2


@contextmanager
def _letting_through(way: str) -> Iterator[None]:
    token = LET_THROUGH.set(way)
    try:
        yield
    finally:
        LET_THROUGH.reset(token)


def counted_operator(operator: ForwardOperator, meter: Meter) -> CountedOperator:
    """The operator behind a counting proxy."""
    return CountedOperator(operator, meter, operator.grid, operator.data_shape, operator.matched, operator.views)


def counted_prior(prior: Prior, meter: Meter) -> CountedPrior:
    """The prior behind a counting proxy."""
    return CountedPrior(prior, meter, prior.sigma_range, prior.mean, prior.deviation)


def overspent(budget: Budget, usage: Usage, steps: int) -> str | None:
    """Name of the first limit that is reached, or None."""
    spent = {"steps": steps, "seconds": usage.seconds, "view_calls": usage.view_calls}
    spent |= {"network_voxels": usage.network_voxels, "network_flops": usage.network_flops}
    spent |= {"peak_memory_bytes": usage.peak_memory_bytes}
    for name, amount in spent.items():
        limit = getattr(budget, name)
        if limit is not None and amount >= limit:
            return name
    return None


# The optional powers see through the proxies, at their true cost. Where the inner operator has no version of its own,
# the default runs on the proxy, so that every forward and adjoint call in it is counted.


@direct_inverse.register
def _(operator: CountedOperator) -> Callable[[Tensor], Tensor] | None:
    inverse = direct_inverse(operator._inner)
    return None if inverse is None else lambda y: operator._counted("adjoint_calls", inverse, y, "power")


@prox.register
def _(operator: CountedOperator, y: Tensor, **settings: Any) -> LeastSquares:
    if not _specialised(prox, operator._inner):
        return prox.dispatch(object)(operator, y, **settings)
    return operator._counted("adjoint_calls", lambda y: prox(operator._inner, y, **settings), y, "power")


@operator_norm.register
def _(operator: CountedOperator, *, device: torch.device | str = "cpu") -> float:
    if not _specialised(operator_norm, operator._inner):
        return operator_norm.dispatch(object)(operator, device=device)
    with _letting_through("power"):
        return operator_norm(operator._inner, device=device)


@prior_on.register
def _(prior: CountedPrior, grid: Grid) -> Prior:
    return counted_prior(prior_on(prior._inner, grid), prior._meter)


@prior_cost.register
def _(prior: CountedPrior, shape: tuple[int, ...]) -> dict[str, float]:
    return prior_cost(prior._inner, shape)


def _specialised(power: Any, thing: object) -> bool:
    return power.dispatch(type(thing)) is not power.dispatch(object)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory_bytes(device: torch.device) -> int:
    """As `Usage` tells it, up to now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (peak := own_bytes("VmHWM")) is not None:  # ru_maxrss goes on from the process that started this one
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
