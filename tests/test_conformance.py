"""Every registered entry, shipped or foreign, fulfils its contract; and the checks catch what breaks it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from pdframe import registry
from pdframe.core.grid import Grid
from pdframe.core.operator import ForwardOperator
from pdframe.core.prior import Prior
from pdframe.core.problem import Problem
from pdframe.core.seeds import generator
from pdframe.core.solver import Progress, Solver
from pdframe.ct.checkpoint import save_checkpoint
from pdframe.hooks import Entry
from pdframe.nn.denoiser import with_channels
from pdframe.testing import check_entry, check_operator, check_prior, check_solver, report
from pdframe.testing.registered import GRID, toy_problem
from pdframe.testing.toys import GaussianPrior, Langevin, MatrixOperator, gaussian_toy, smooth_covariance

#: Settings that an entry's example cannot hold: where a file lies.
FILES = {"nifti": {"path": str(Path(__file__).parent / "data" / "made_ras_plain.nii.gz")}}
#: Priors that are checked with a small network of random weights: module of the plugin, and the network's channels.
SMALL = {"slice2d": ("pdframe_slice", 1), "blend3": ("pdframe_slice", 3), "volume3d": ("pdframe_volume", 1)}
#: Tasks and executors have no checks of their own: tests/test_train.py and tests/bench run them.
ENTRIES = [entry for entry in registry.entries() if entry.kind not in ("task", "executor")]


@pytest.mark.parametrize("entry", ENTRIES, ids=[f"{entry.kind}-{entry.name}" for entry in ENTRIES])
def test_every_registered_entry_conforms(entry: Entry, tmp_path: Path):
    if missing := registry.missing(entry):
        pytest.skip(f"{', '.join(missing)} not installed")
    given = {"weights": small_checkpoint(entry.name, tmp_path)} if entry.name in SMALL else FILES.get(entry.name, {})
    checks = check_entry(entry, **given)
    assert checks and all(check.passed for check in checks), report(checks)


def small_checkpoint(name: str, folder: Path) -> Path:
    package, channels = SMALL[name]
    plugin = import_module(f"{package}.network")
    card = plugin.Card(unet=with_channels(plugin.PRESETS["tiny"], channels))
    if name == "blend3":
        card = card.model_copy(update={"strides": (1, 3)})
    network, rng = card.network(), generator(0, name)
    for p in network.parameters():
        p.data = torch.randn(p.shape, generator=rng) * 0.05
    save_checkpoint(folder / "weights.safetensors", network, card)
    return folder / "weights.safetensors"


def test_the_toys_conform():
    toy = gaussian_toy()
    checks = check_operator(toy.problem.operator) + check_operator(toy.problem.operator, dtype=torch.float64)
    checks += check_prior(toy.prior, toy.problem.operator.grid)
    checks += check_solver(Langevin(toy.prior, 0.05, 1e-4), toy.problem)
    assert all(check.passed for check in checks), report(checks)


def _failed(checks) -> set[str]:
    return {check.name for check in checks if not check.passed}


SHARED = generator(0, "a stream that nobody was given")


@dataclass(frozen=True, eq=False)
class Spoilt(ForwardOperator):
    """A dense operator with one fault."""

    inner: MatrixOperator
    fault: str
    grid: Grid
    data_shape: tuple[int, ...]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fault == "input":
            x.mul_(1.0000001)
        if self.fault == "random":
            torch.rand(1)
        y = self.inner.forward(x.contiguous())
        faults = {
            "affine": lambda: y + 1,
            "batch": lambda: y - 0.01 * y.mean(0, keepdim=True),
            "dtype": lambda: y.double(),
            "shape": lambda: y[..., :-1],
            "zero": lambda: 0 * y,
            "layout": lambda: y if x.is_contiguous() else 2 * y,
            "unseeded": lambda: y * (1 + 1e-3 * torch.randn((), generator=SHARED)),
        }
        return faults.get(self.fault, lambda: y)()

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return self.inner.adjoint(y) * (1.001 if self.fault == "adjoint" else 1.0)


@pytest.mark.parametrize(
    ("fault", "claim"),
    [
        ("affine", "it is linear"),
        ("batch", "an item does not depend on its batch"),
        ("dtype", "shape dtype and device are those of the input"),
        ("shape", "shape dtype and device are those of the input"),
        ("zero", "it is not the zero map"),
        ("layout", "memory layout does not matter"),
        ("input", "the input is left as it was"),
        ("random", "global randomness is left alone"),
        ("adjoint", "adjoint is the transpose of forward"),
        ("unseeded", "the same input gives the same bits"),
    ],
)
def test_a_spoilt_operator_is_caught(fault: str, claim: str):
    operator = toy_problem().operator
    assert claim in _failed(check_operator(Spoilt(operator, fault, operator.grid, operator.data_shape)))


@dataclass(frozen=True)
class SpoiltPrior(Prior):
    """A Gaussian prior with one fault."""

    inner: GaussianPrior
    fault: str
    sigma_range: tuple[float, float]
    mean: float
    deviation: float

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor, *, rng: torch.Generator | None = None) -> torch.Tensor:
        if self.fault == "random":
            torch.rand(1)
        if self.fault == "input":
            x.add_(0.1)
        clean = self.inner.denoise(x, sigma)
        faults = {
            "biased": lambda: clean + 0.1 * self.deviation,
            "batch": lambda: clean + 0.1 * (x.mean(0, keepdim=True) - x),
            "unit": lambda: 1000 * clean + 1000,
            "nan": lambda: clean / (sigma.max() < self.sigma_range[1] / 2),
            "unseeded": lambda: clean + 0.1 * torch.randn(x.shape, generator=SHARED),
        }
        return faults.get(self.fault, lambda: clean)()


@pytest.mark.parametrize(
    ("fault", "claim"),
    [
        ("biased", "it becomes the identity as sigma falls"),
        ("batch", "an item does not depend on its batch"),
        ("unit", "it is finite over its range and does not amplify"),
        ("nan", "it is finite over its range and does not amplify"),
        ("unseeded", "an equal generator gives equal bits"),
        ("input", "the input is left as it was"),
        ("random", "global randomness is left alone"),
    ],
)
def test_a_spoilt_prior_is_caught(fault: str, claim: str):
    good = GaussianPrior(0.01, smooth_covariance(GRID, 0.01, 3.0))
    spoilt = SpoiltPrior(good, fault, (1e-3 * good.deviation, 100 * good.deviation), good.mean, good.deviation)
    assert claim in _failed(check_prior(spoilt, GRID))
    sound = replace(spoilt, fault="none")
    assert not _failed(check_prior(sound, GRID))


@dataclass(frozen=True)
class SpoiltSolver(Solver):
    """Gradient descent with one fault."""

    fault: str
    steps: int = 4

    @property
    def total_steps(self) -> int:
        return self.steps

    def init(self, problem: Problem, rng: torch.Generator) -> dict:
        x = torch.zeros(len(problem.y), 1, *problem.operator.grid.shape)
        return {"x": x, "step": 0}

    def step(self, problem: Problem, state: dict, rng: torch.Generator) -> dict:
        x, operator, y = state["x"], problem.operator, problem.y
        change = 1e-3 * operator.adjoint(y - operator.forward(x))
        if self.fault == "in place":
            x += change
        if self.fault == "problem":
            problem.y.mul_(0.999)
        if self.fault == "random":
            change = change + 1e-6 * torch.randn(change.shape)
        if self.fault == "unseeded":
            change = change + 1e-6 * torch.randn(change.shape, generator=SHARED)
        if self.fault == "hidden":
            HIDDEN.append(1)
            change = change / len(HIDDEN)
        if self.fault == "ascent":
            change = -change
        return {"x": x if self.fault == "in place" else x + change, "step": state["step"] + 1}

    def view(self, state: dict) -> Progress:
        done, x = state["step"] >= self.steps, state["x"][:1] if self.fault == "batch" else state["x"]
        return Progress(x if done or self.fault != "early" else x * torch.nan, done)


HIDDEN: list[int] = []


@pytest.mark.parametrize(
    ("fault", "claim"),
    [
        ("batch", "it ends with a finite volume on the grid"),
        ("in place", "the state is not changed in place"),
        ("problem", "the problem is left as it was"),
        ("random", "global randomness is left alone"),
        ("hidden", "a killed solve resumes to the same bits"),
        ("ascent", "it gets closer to the data than zero is"),
        ("unseeded", "the same seed gives the same bits"),
        ("early", "its status is honest"),
    ],
)
def test_a_spoilt_solver_is_caught(fault: str, claim: str):
    assert claim in _failed(check_solver(SpoiltSolver(fault), toy_problem()))
    assert not _failed(check_solver(SpoiltSolver("none"), toy_problem()))
