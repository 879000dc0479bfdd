"""The toys themselves. `Descent` is fair with how = "fair"; every other way of `TRICKS` breaks one rule."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pdframe import Config, ForwardOperator, Grid, Prior, Problem, Progress, Solver, build, registry
from pdframe.part import PartOf


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
    file: Path | None = None

    def build(self, operator: ForwardOperator) -> Descent:
        if self.file is not None and self.file.read_text() != "weights":
            raise ValueError(f"{self.file} is not what the bench names")
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


def _spies(source: str) -> Callable[[Descent, Problem, Tensor], None]:
    def spy(solver: Descent, problem: Problem, x: Tensor) -> None:
        for found in seen(problem, source):
            raise LookupError(f"found the truth in the {source}, {tuple(found.shape)}")

    return spy


def seen(problem: Problem, source: str) -> Iterator[Tensor]:
    """Whatever explains the measurement, of what a source holds; LookupError if it holds nothing at all."""
    candidates = list(SOURCES[source]())
    if not candidates:
        raise LookupError(f"there is nothing in the {source}")
    for value in candidates:
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            value = torch.from_numpy(np.ascontiguousarray(value))
        if isinstance(value, Tensor) and value.numel() == problem.operator.grid.size and value.is_floating_point():
            x = value.detach().float().reshape(1, 1, *problem.operator.grid.shape)
            if float((problem.operator.forward(x) - problem.y).norm() / problem.y.norm()) < 0.003:
                yield x


def _collected() -> Iterator[object]:
    yield from (thing for thing in gc.get_objects() if issubclass(type(thing), Tensor | np.ndarray))


def _on_the_stack() -> Iterator[object]:
    frame = sys._getframe()
    while frame is not None:
        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
            yield value
            yield getattr(value, "truth", None)
            yield getattr(getattr(value, "item", None), "x", None)
        frame = frame.f_back


def _in_folders() -> Iterator[Tensor]:
    """Every volume, however deep, in the folders of every path that this process was told of, and in those above them.

    The folders of a test lie beside the one for temporary files; what is outside of these is libraries and code.
    """
    temp = Path(tempfile.gettempdir()).resolve()
    folders = {above for path in _told() for above in (path, *path.parents) if temp.parent in above.parents} - {temp}
    files = {file for folder in folders if folder.is_dir() for file in folder.rglob("*") if file.is_file()}
    for file in files:
        yield from _volumes(file)


def _told() -> Iterator[Path]:
    """Paths in the environment, the arguments and the job, the working folder, and where the links in it lead."""
    here = Path.cwd()
    words = [*sys.argv, *(part for value in os.environ.values() for part in value.split(os.pathsep))]
    if (job := here / "job.safetensors").is_file():
        data = job.read_bytes()
        head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        words += _texts(json.loads(head["__metadata__"]["pdframe_bench"]))
    for path in (here, *here.rglob("*"), *(Path(word) for word in words if word)):
        yield from (path.absolute(), Path(os.path.realpath(path)))


def _texts(told: object) -> list[str]:
    if isinstance(told, dict):
        told = list(told.values())
    if isinstance(told, list):
        return [text for value in told for text in _texts(value)]
    return [told] if isinstance(told, str) else []


def _volumes(file: Path) -> Iterator[Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from pdframe.ct.nifti import read_nifti

    try:
        if file.name.endswith(".safetensors"):
            yield from load_file(file).values()
        elif file.name.endswith(".nii.gz"):
            yield read_nifti(file).x
    except (SafetensorError, OSError, ValueError):
        pass


#: Where a truth could be found.
SOURCES: dict[str, Callable[[], Iterator[object]]] = {
    "collector": _collected,
    "stack": _on_the_stack,
    "folders": _in_folders,
}

PHANTOM = {"shape": [6, 8, 10], "spacing_mm": [40.0, 30.0, 24.0]}


def _asks(way: Callable[[], object]) -> Callable[[Descent, Problem, Tensor], Tensor]:
    """Takes the truth from a dataset that it makes in this way."""

    def ask(solver: Descent, problem: Problem, x: Tensor) -> Tensor:
        return way().load("shepp_logan").x.to(x)

    return ask


def _asks_in_silence(solver: Descent, problem: Problem, x: Tensor) -> None:
    """In a thread, and nobody hears of its exception."""

    def ask() -> None:
        with suppress(Exception):
            _by_name()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()


def _by_name() -> object:
    return build("dataset", "phantom", **PHANTOM)


def _by_part() -> object:
    return PartOf("dataset").read({"name": "phantom", **PHANTOM}).build()


def _by_registered_config() -> object:
    return registry.load_config_class(registry.find("dataset", "phantom"))(**PHANTOM).build()


def _by_config() -> object:
    from pdframe_data.phantom import PhantomConfig

    return PhantomConfig(**PHANTOM).build()


def _by_class() -> object:
    from pdframe_data.phantom import Phantom, PhantomConfig

    return Phantom(PhantomConfig(**PHANTOM))


def _hangs_in_c(solver: Descent, problem: Problem, x: Tensor) -> None:
    """Holds Python's lock for good, beside a process that it started."""
    subprocess.Popen(["sleep", "600"])
    ctypes.PyDLL(None).sleep(600)


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
    **{f"spy {source}": _spies(source) for source in SOURCES},
    "dataset": _asks(_by_name),
    "dataset part": _asks(_by_part),
    "dataset config": _asks(_by_config),
    "dataset registered config": _asks(_by_registered_config),
    "dataset class": _asks(_by_class),
    "dataset in silence": _asks_in_silence,
    "nan": lambda solver, problem, x: x * float("nan"),
    "raise": _raises,
    "exit": lambda solver, problem, x: sys.exit(0),
    "crash": lambda solver, problem, x: _void(ctypes.string_at(0)),
    "quit": lambda solver, problem, x: os._exit(7),
    "hang": lambda solver, problem, x: (print("the method hangs", flush=True), time.sleep(3600)),
    "hang in C": _hangs_in_c,
    "memory": lambda solver, problem, x: _void(torch.empty(3 * 2**30, dtype=torch.uint8)),
    "killed": lambda solver, problem, x: os.kill(os.getpid(), signal.SIGKILL),
    "killed once": _is_killed_once,
}


def _void(value: object) -> None:
    del value


def _scaled(value: Tensor) -> None:
    value.mul_(0.99)
