"""The contract of a solver: three pure functions. The loop around them is `solve`."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from pdframe.core.interface import Interface
from pdframe.core.problem import Problem

State = TypeVar("State")


@dataclass(frozen=True)
class Leg:
    """A part of a solve whose steps cost alike: its name ("" for the main one, which is the last), the steps taken in
    it, those meant."""

    name: str
    done: int
    total: int


@dataclass(frozen=True)
class Progress:
    """What a state looks like from outside: the present estimate of x, whether it is final, numbers to log.

    leg: of a solve in parts, the one that the state belongs to; time left and curves go by it.
    """

    x: Tensor
    done: bool
    stats: Mapping[str, float] = field(default_factory=dict)
    leg: Leg | None = None


class Solver(Interface, Generic[State]):
    """Finds x from y. A prior, if it uses one, is a field called `prior`.

    A state is a frozen dataclass (or dict) of tensors and numbers; `step` returns a new one and leaves the old
    alone, so that a state can be saved at any step and the run continued from it bit for bit. All randomness
    comes from `rng`.
    """

    @property
    @abc.abstractmethod
    def total_steps(self) -> int:
        """Number of steps it means to take (an upper bound if it may stop earlier)."""

    @abc.abstractmethod
    def init(self, problem: Problem, rng: torch.Generator) -> State:
        """The state before the first step."""

    @abc.abstractmethod
    def step(self, problem: Problem, state: State, rng: torch.Generator) -> State:
        """One outer iteration."""

    @abc.abstractmethod
    def view(self, state: State) -> Progress:
        """The present estimate and whether the solver would stop here."""
