"""What a method may not do, found out by looking: move a global random stream, write into the operator or the
measurement, or call operator and prior by another way than the proxies that count.

It runs in the worker, around building and solving. It finds mistakes and short cuts; it does not hold against code that
sets out to undo it in the same process (docs/bench.md says what is and is not guarded). The truth is not there at all.
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdframe.core.budget import LET_THROUGH, Usage
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
        """Counts the calls of these methods, of every object of the class of `thing`, until the block ends."""
        kind = type(thing)
        originals = {name: getattr(kind, name) for name in names}
        watched = {name: self._watched(f"{kind.__name__}.{name}", call) for name, call in originals.items()}
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
                self.counted[name.rsplit(".", 1)[1]] += _items(name, [*values, *options.values()][0])
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
        found += [
            f"was charged for {charged[name]} of {count} calls of `{name}`"
            for name, count in self.counted.items()
            if charged[name] < count
        ]
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
