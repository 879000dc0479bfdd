"""The toys themselves. `Descent` is fair with how = "fair"; every other way of `TRICKS` breaks one rule."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pdframe import Config, ForwardOperator, Grid, Prior, Problem, Progress, Solver, build


class MatrixConfig(Config):
    views: int = 4

    def build(self, grid: Grid) -> Matrix:
        rng = torch.Generator().manual_seed(1)
        rays = 40 * self.views
        return Matrix(torch.rand(rays, grid.size, generator=rng) * 10, grid, (self.views, 5, 8), self.views)


@dataclass(frozen=True, eq=False)
class Matrix(ForwardOperator):
    weights: Tensor
    grid: Grid
    data_shape: tuple[int, ...]
    views: int

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(2) @ self.weights.to(x).T).unflatten(2, self.data_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        return (y.flatten(2) @ self.weights.to(y)).unflatten(2, self.grid.shape)


class WhiteConfig(Config):
    def build(self) -> White:
        return White()


@dataclass(frozen=True)
class White(Prior):
    sigma_range = (1e-4, 0.1)
    mean = 0.01
    deviation = 0.01

    def denoise(self, x: Tensor, sigma: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        share = 1e-4 / (1e-4 + sigma.reshape(-1, *(1,) * (x.ndim - 1)) ** 2)
        return self.mean + share * (x - self.mean)


class DescentConfig(Config):
    how: str = "fair"
    steps: int = 6

    def build(self, operator: ForwardOperator) -> Descent:
        return Descent(self, None, Box(operator), Box(None))


class SteeredConfig(Config):
    how: str = "fair"
    steps: int = 6

    def build(self, operator: ForwardOperator, prior: Prior) -> Descent:
        return Descent(DescentConfig(how=self.how, steps=self.steps), prior, Box(operator), Box(prior))


@dataclass(frozen=True)
class Box:
    """Hides what it holds from the loop, which puts a counter before every operator and prior among the fields."""

    content: object


@dataclass(frozen=True)
class Descent(Solver):
    settings: DescentConfig
    prior: Prior | None
    hidden: Box
    hidden_prior: Box

    @property
    def total_steps(self) -> int:
        return self.settings.steps

    def init(self, problem: Problem, rng: torch.Generator) -> tuple[int, Tensor]:
        return 0, torch.full((1, 1, *problem.operator.grid.shape), 0.01)

    def step(self, problem: Problem, state: tuple[int, Tensor], rng: torch.Generator) -> tuple[int, Tensor]:
        i, x = state
        slope = problem.operator.adjoint(problem.y - problem.operator.forward(x))
        x = x + 5e-7 * slope + 1e-5 * torch.randn(x.shape, generator=rng)
        if self.prior is not None:
            x = self.prior.denoise(x, torch.full((1,), 0.001), rng=rng)
        if i == 1 and self.settings.how in TRICKS:
            found = TRICKS[self.settings.how](self, problem, x)
            x = found if found is not None else x
        return i + 1, x

    def view(self, state: tuple[int, Tensor]) -> Progress:
        done = state[0] == self.settings.steps
        return Progress(state[1][..., :-1] if done and self.settings.how == "shape" else state[1], done)


def _put_back(solver: Descent, problem: Problem, x: Tensor) -> None:
    weights = solver.hidden.content.weights
    before = weights.clone()
    weights.mul_(2)
    weights.copy_(before)


def _through_numpy(solver: Descent, problem: Problem, x: Tensor) -> None:
    solver.hidden.content.weights.numpy()[3, 3] += 1


def _rebuilt(solver: Descent, problem: Problem, x: Tensor) -> None:
    build("operator", "toy_matrix", grid=problem.operator.grid, views=4).forward(x)


def _forgets(solver: Descent, problem: Problem, x: Tensor) -> None:
    meter = problem.operator._meter
    meter.usage = type(meter.usage)()


def _replaces_its_answer(solver: Descent, problem: Problem, x: Tensor) -> None:
    type(solver.hidden.content).adjoint = lambda self, y: y.new_zeros(1, 1, *self.grid.shape)


def _gradients(solver: Descent, problem: Problem, x: Tensor) -> None:
    solver.hidden_prior.content.denoise(x, torch.full((1,), 0.001))


def _is_killed_once(solver: Descent, problem: Problem, x: Tensor) -> None:
    if not Path("killed").exists():
        Path("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def _spies(solver: Descent, problem: Problem, x: Tensor) -> Tensor | None:
    return next(seen(problem), None)


def seen(problem: Problem) -> Iterator[Tensor]:
    """Whatever explains the measurement, in memory, on the call stack, or in a file that this process was told of."""
    for value in candidates():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            value = torch.from_numpy(np.ascontiguousarray(value))
        if isinstance(value, Tensor) and value.numel() == problem.operator.grid.size and value.is_floating_point():
            x = value.detach().float().reshape(1, 1, *problem.operator.grid.shape)
            if float((problem.operator.forward(x) - problem.y).norm() / problem.y.norm()) < 0.003:
                yield x


def candidates() -> Iterator[object]:
    """Every tensor in reach."""
    yield from (thing for thing in gc.get_objects() if isinstance(thing, Tensor | np.ndarray))
    frame = sys._getframe()
    while frame is not None:
        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
            yield value
            yield getattr(value, "truth", None)
            yield getattr(getattr(value, "item", None), "x", None)
        frame = frame.f_back
    yield from _files()


def _files() -> Iterator[Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    here = Path.cwd()
    told = {here, *here.parents[:2], *map(Path, sys.argv)}
    told |= {Path(part) for value in os.environ.values() for part in value.split(os.pathsep) if os.path.isabs(part)}
    for place in told:
        if place.is_dir() and len(place.parts) > 2:
            for path in [
                *place.glob("*.safetensors"),
                *place.glob("*/*.safetensors"),
                *place.glob("*/*/*.safetensors"),
            ]:
                try:
                    yield from load_file(path).values()
                except (SafetensorError, OSError):
                    continue


def _raises(solver: Descent, problem: Problem, x: Tensor) -> None:
    raise ArithmeticError("the step is too long")


TRICKS: dict[str, Callable[[Descent, Problem, Tensor], Tensor | None]] = {
    "random": lambda solver, problem, x: _void(random.random()),
    "numpy": lambda solver, problem, x: np.random.seed(0),  # noqa: NPY002 (that is the offence)
    "torch": lambda solver, problem, x: _void(torch.randn(1)),
    "buffers": lambda solver, problem, x: _scaled(solver.hidden.content.weights),
    "buffers put back": _put_back,
    "buffers through numpy": _through_numpy,
    "answer": _replaces_its_answer,
    "measurement": lambda solver, problem, x: _scaled(problem.y),
    "behind": lambda solver, problem, x: _void(solver.hidden.content.forward(x)),
    "inner": lambda solver, problem, x: _void(problem.operator._inner.adjoint(problem.y)),
    "rebuilt": _rebuilt,
    "meter": _forgets,
    "prior": _gradients,
    "spy": _spies,
    "nan": lambda solver, problem, x: x * float("nan"),
    "raise": _raises,
    "exit": lambda solver, problem, x: sys.exit(0),
    "crash": lambda solver, problem, x: _void(ctypes.string_at(0)),
    "quit": lambda solver, problem, x: os._exit(7),
    "hang": lambda solver, problem, x: time.sleep(3600),
    "memory": lambda solver, problem, x: _void(torch.empty(3 * 2**30, dtype=torch.uint8)),
    "killed": lambda solver, problem, x: os.kill(os.getpid(), signal.SIGKILL),
    "killed once": _is_killed_once,
}


def _void(value: object) -> None:
    del value


def _scaled(value: Tensor) -> None:
    value.mul_(0.99)
