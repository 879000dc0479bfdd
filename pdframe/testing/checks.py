"""How a conformance check is written and run: a function that returns what it measured, or raises what is wrong."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Check:
    """One claim about a subject: its name, whether it holds, and what was measured or what is wrong."""

    name: str
    passed: bool
    detail: str


class Violation(AssertionError):
    """A claim that does not hold; the message says what was expected and what came."""


def require(condition: object, message: str) -> None:
    """Raises Violation unless the condition holds. (A bare `assert` is not run under `python -O`.)"""
    if not bool(condition):
        raise Violation(message)


def run_checks(claims: Iterable[Callable[[object], str]], subject: object) -> list[Check]:
    """Each claim on the subject. Whatever a plugin raises is that claim's failure and stops no other claim."""
    return [_run(claim, subject) for claim in claims]


def report(checks: Iterable[Check]) -> str:
    """One line per check, the failed ones first."""
    ordered = sorted(checks, key=lambda check: check.passed)
    return "\n".join(f"{'ok  ' if c.passed else 'FAIL'} {c.name}: {c.detail}" for c in ordered)


def relative_gap(got: Tensor, want: Tensor) -> float:
    """|got - want| / |want|, in float64; the absolute gap where `want` is zero."""
    gap, size = float((got.double() - want.double()).norm()), float(want.double().norm())
    return gap / size if size > 0 else gap


def rounding(dtype: torch.dtype, factor: float = 50.0) -> float:
    """What rounding alone may do to a relative norm: a multiple of the dtype's epsilon."""
    return factor * torch.finfo(dtype).eps


def leaves_global_randomness(act: Callable[[], object]) -> bool:
    """Whether `act` leaves the process-wide streams of torch, NumPy and random as they were."""
    before = _global_streams()
    act()
    return before == _global_streams()


def _global_streams() -> tuple:
    keys = np.random.get_state()  # noqa: NPY002 (read to prove that nobody moved it)
    return torch.get_rng_state().numpy().tobytes(), keys[1].tobytes(), keys[2], random.getstate()


def _run(claim: Callable[[object], str], subject: object) -> Check:
    words = claim.func if isinstance(claim, functools.partial) else claim
    name = words.__name__.replace("_", " ")
    try:
        return Check(name, True, claim(subject))
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), "")
        return Check(
            name, False, first_line if isinstance(error, Violation) else f"{type(error).__name__}: {first_line}"
        )
