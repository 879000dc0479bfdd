"""What a method may not do, found out by looking: move a global random stream, write into the operator or the
measurement, call operator and prior by another way than the proxies that count, or turn back what these put on a meter.

It runs in the worker, around building and solving. It finds mistakes and short cuts; it does not hold against code that
sets out to undo it in the same process (docs/bench.md says what is and is not guarded). The truth is not there at all.
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdframe.core.budget import LET_THROUGH, Meter, Usage, peak_memory_bytes
from pdframe.core.checkpoint import fingerprint
from pdframe.core.operator import ForwardOperator
from pdframe.core.prior import Prior
from pdframe.core.problem import Problem
from pdframe.core.seeds import generator, normal

_INSIDE: ContextVar[bool] = ContextVar("inside", default=False)


class Guard:
    """Watches one problem and what solves it: `watch_randomness`, `watch_calls`, then `offence`."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.behind: Counter[str] = Counter()
        self.counted: Counter[str] = Counter()
        self.views = 0
        self.ledger = _Ledger()
        self.replaced: list[str] = []
        self.answers = _answers(problem)  # first: an operator may prepare its tables on its first call
        self.buffers = _buffers(problem.operator)
        self.content, self.versions = self._content(), self._versions()
        self.streams: dict[str, Any] = {}

    def watch_randomness(self) -> None:
        """Remembers the global random streams as they are now: after building, before the first step."""
        self.streams = _streams()

    @contextmanager
    def watch_calls(self, thing: ForwardOperator | Prior, names: Iterable[str]) -> Iterator[None]:
        """Counts the calls of these methods, of every object of the class of `thing`, until the block ends; with an
        operator, all that goes on a meter too."""
        kind = type(thing)
        watched = {name: self._watched(f"{kind.__name__}.{name}", getattr(kind, name)) for name in names}
        meters = self._in_place(Meter, self.ledger.watched()) if isinstance(thing, ForwardOperator) else nullcontext()
        with self._in_place(kind, watched), meters:
            yield

    @contextmanager
    def _in_place(self, kind: type, watched: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
        """Puts these in the place of a class's methods until the block ends, and sees whether they stayed there."""
        originals = {name: getattr(kind, name) for name in watched}
        for name, call in watched.items():
            setattr(kind, name, call)
        try:
            yield
        finally:
            for name, original in originals.items():
                if getattr(kind, name) is not watched[name]:
                    self.replaced.append(f"{kind.__name__}.{name}")
                setattr(kind, name, original)

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def watched(thing: Any, *values: Any, **options: Any) -> Any:
            if _INSIDE.get():  # called by a call that is already counted
                return call(thing, *values, **options)
            way = LET_THROUGH.get()
            if not way:
                self.behind[name] += 1
            elif way == "call":
                items = _items(name, [*values, *options.values()][0])
                self.counted[name.rsplit(".", 1)[1]] += items
                self.views += items * thing.views if isinstance(thing, ForwardOperator) else 0
            token = _INSIDE.set(True)
            try:
                return call(thing, *values, **options)
            finally:
                _INSIDE.reset(token)

        return watched

    def offence(self, usage: Usage) -> str:
        """What was done that may not be, in one line; empty if nothing. `usage`: what all samples were charged."""
        found = [f"called {name} behind the counting proxy ({count} times)" for name, count in self.behind.items()]
        found += [f"replaced {name}" for name in self.replaced]
        charged = {"forward": usage.forward_calls, "adjoint": usage.adjoint_calls, "denoise": usage.network_calls}
        fewer = [
            f"was charged for {charged[name]} of {count} calls of `{name}`"
            for name, count in self.counted.items()
            if charged[name] < count
        ]
        found += fewer or self._less_than_spent(usage)
        now = _streams()
        found += [
            f"changed the global random state of {name}" for name in self.streams if now[name] != self.streams[name]
        ]
        content, versions = self._content(), self._versions()
        for name in content:
            if content[name] != self.content[name] or versions.get(name) != self.versions.get(name):
                found.append(f"wrote into {name}")
        if "wrote into the operator" not in found and not _agree(self.answers, _answers(self.problem)):
            found.append("changed what the operator answers")
        return "; ".join(found)

    def _less_than_spent(self, usage: Usage) -> list[str]:
        short = self.ledger.short_of(usage)
        if usage.view_calls < self.views:
            short.setdefault("view_calls", (usage.view_calls, self.views))
        return [f"had {read:.6g} of {spent:.6g} `{name}` on its meter" for name, (read, spent) in short.items()]

    def _content(self) -> dict[str, str]:
        return {
            "the operator": fingerprint(self.problem.operator, self.buffers),
            "the measurement": fingerprint(self.problem.y),
            "the noise model": fingerprint(self.problem.noise),
        }

    def _versions(self) -> dict[str, Any]:
        """torch counts writes into a tensor: a value that was put back afterwards shows here."""
        buffers = [b._version for b in self.buffers]
        return {"the operator": buffers, "the measurement": [self.problem.y._version]}


@dataclass
class _Page:
    """What one meter should read. `of_solve`: of a solve that is no part of another, whose usage is what is told."""

    meter: Meter
    spent: dict[str, float]
    of_solve: bool


class _Ledger:
    """The guard's own sums of all that goes on meters, seconds by its own clock, and where a meter read less."""

    def __init__(self) -> None:
        self.pages: dict[int, _Page] = {}
        self.running = 0
        self.short: dict[str, tuple[float, float]] = {}

    def watched(self) -> dict[str, Callable[..., Any]]:
        """What to put in the place of the methods of `Meter`."""
        add, clock = Meter.add, Meter.clock

        @functools.wraps(add)
        def watched_add(meter: Meter, **amounts: float) -> None:
            spent = self._page(meter).spent
            add(meter, **amounts)
            for name, amount in amounts.items():
                spent[name] += 0 if name.endswith("seconds") else amount

        @functools.wraps(clock)
        @contextmanager
        def watched_clock(meter: Meter, name: str) -> Iterator[None]:
            spent = self._page(meter).spent
            self.running += 1
            try:
                with clock(meter, name):  # around this clock, so that it cannot have seen less
                    start = perf_counter()
                    try:
                        yield
                    finally:
                        spent[name] += perf_counter() - start
                        spent["peak_memory_bytes"] = max(spent["peak_memory_bytes"], peak_memory_bytes(meter.device))
            finally:
                self.running -= 1
            if not self.running:  # while another thread is at work, it may have told one of the two only
                self._compare(meter.usage, spent)

        return {"add": watched_add, "clock": watched_clock}

    def _page(self, meter: Meter) -> _Page:
        """A new one goes on from what the meter reads: a solve may go on from a checkpoint."""
        if id(meter) not in self.pages:
            self.pages[id(meter)] = _Page(meter, asdict(meter.usage), not self.running)
        return self.pages[id(meter)]

    def short_of(self, usage: Usage) -> dict[str, tuple[float, float]]:
        """Currencies of which a meter, or the sum that is told in the end, once read less than was spent: both."""
        total = Usage()
        for page in self.pages.values():
            total = total.plus(Usage(**page.spent)) if page.of_solve else total
        self._compare(usage, asdict(total))
        return dict(self.short)

    def _compare(self, usage: Usage, spent: Mapping[str, float]) -> None:
        for name, amount in spent.items():
            read = getattr(usage, name)
            # Sums of samples may come in another order; the kernel's peak of memory may even fall a little.
            slack = 0.05 if name == "peak_memory_bytes" else 1e-9
            if read < amount * (1 - slack):
                self.short.setdefault(name, (read, amount))


def _items(name: str, value: Tensor) -> int:
    """As the proxies count: items of a batch for a prior, items and channels for an operator."""
    return value.shape[0] if name.endswith(".denoise") else value.shape[0] * value.shape[1]


def _streams() -> dict[str, Any]:
    """State of every stream that a process shares, by the name of its library."""
    kind, keys, *place = np.random.get_state()  # noqa: NPY002 (looking at it is the point)
    streams = {
        "random": random.getstate(),
        "numpy": (kind, keys.tobytes(), *place),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        streams["torch.cuda"] = tuple(s.numpy().tobytes() for s in torch.cuda.get_rng_state_all())
    return streams


def _buffers(operator: ForwardOperator) -> list[Tensor]:
    """Tensors and arrays that an operator holds now, in fields or beside them, a few containers deep."""
    found: list[Tensor] = []
    seen: set[int] = set()

    def look(thing: Any, depth: int) -> None:
        if id(thing) in seen or depth > 4 or isinstance(thing, type):
            return
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            found.append(thing)
        elif isinstance(thing, np.ndarray):
            found.extend([torch.from_numpy(thing)] if thing.dtype.kind in "fiub" and thing.flags.writeable else [])
        elif isinstance(thing, dict):
            inside.extend((value, depth + 1) for value in thing.values())
        elif isinstance(thing, list | tuple):
            inside.extend((value, depth + 1) for value in thing)
        else:
            inside.append((getattr(thing, "__dict__", {}), depth + 1))

    inside: list[tuple[Any, int]] = [(operator, 0)]
    while inside:
        look(*inside.pop())
    return found


def _answers(problem: Problem) -> tuple[Tensor, Tensor]:
    """A and A' of fixed noise."""
    y, rng = problem.y, generator(0, "guard")
    x = normal(y.new_zeros(1, y.shape[1], *problem.operator.grid.shape), rng)
    with torch.no_grad():
        return problem.operator.forward(x).clone(), problem.operator.adjoint(normal(y[:1], rng)).clone()


def _agree(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> bool:
    """To the bit on a CPU; elsewhere sums may come in another order."""
    for a, b in zip(before, after, strict=True):
        if a.shape != b.shape:
            return False
        if not torch.equal(a, b) and (a.device.type == "cpu" or float((a - b).norm() / a.norm()) > 1e-5):
            return False
    return True
