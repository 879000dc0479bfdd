"""What a solver may see (Problem), what only a metric may see as well (Case), and where volumes come from."""

from __future__ import annotations

import abc
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from pdframe.core.grid import Grid
from pdframe.core.interface import Interface
from pdframe.core.noise import Noise, NoNoise
from pdframe.core.operator import ForwardOperator


@dataclass(frozen=True)
class Problem:
    """Everything a solver may see: the operator, the measurement, the noise model. No truth."""

    operator: ForwardOperator
    y: Tensor
    noise: Noise = field(default_factory=NoNoise)

    def __post_init__(self) -> None:
        want = tuple(self.operator.data_shape)
        if tuple(self.y.shape[2:]) != want:
            raise ValueError(
                f"the measurement must have shape (batch, channel, {', '.join(map(str, want))}): "
                f"got {tuple(self.y.shape)}; is it from another geometry?"
            )


@dataclass(frozen=True)
class Case:
    """A problem and its truth; metrics see both, solvers only the first."""

    problem: Problem
    truth: Tensor
    name: str = ""


@dataclass(frozen=True)
class Item:
    """One element of a dataset: x with shape (1, channel, *grid.shape) in `grid.unit`, and its papers.

    `header` says where it came from (file, affine, licence...); `masks` are named boolean tensors shaped like x.
    """

    name: str
    x: Tensor
    grid: Grid
    header: Mapping[str, object] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)


class Dataset(Interface):
    """A named collection of items."""

    @abc.abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of the items, in a fixed order."""

    @abc.abstractmethod
    def load(self, name: str) -> Item:
        """The item of that name; KeyError with the known names if there is none."""


class Metric(Interface):
    """A number that compares a reconstruction with the truth."""

    @abc.abstractmethod
    def measure(self, x: Tensor, truth: Tensor, mask: Tensor | None = None) -> dict[str, float]:
        """Named values for (1, channel, *spatial) tensors; `mask` limits where, None is everywhere."""


@functools.singledispatch
def quick_form(metric: Metric) -> Metric:
    """The metric to follow a solve with, step by step: cheap, and equal to `metric` in the values that it gives.

    Default: the metric itself. One that has an expensive part registers a form without it.
    """
    return metric
