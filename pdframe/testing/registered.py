"""The conformance checks over what is installed: any entry of the registry, built small from its `example`."""

from __future__ import annotations

import torch

from pdframe import registry
from pdframe.core.grid import Grid
from pdframe.core.noise import GaussianNoise
from pdframe.core.problem import Problem
from pdframe.core.seeds import generator, normal
from pdframe.hooks import Entry
from pdframe.testing.checks import Check
from pdframe.testing.data import check_dataset, check_metric, check_noise
from pdframe.testing.operators import check_operator
from pdframe.testing.priors import check_prior
from pdframe.testing.solvers import check_solver
from pdframe.testing.toys import GaussianPrior, MatrixOperator, smooth_covariance

#: Unequal, small and anisotropic on purpose: what mixes up two axes shows.
GRID = Grid((6, 9, 8), (2.0, 1.5, 1.0))


def check_entry(entry: Entry, **given: object) -> list[Check]:
    """Every claim about one registered entry, built from its `example` on a small anisotropic grid.

    An operator is checked in float32 and float64. A solver gets a small dense problem in float32 with a smooth
    Gaussian prior. `given` adds settings that no example can hold, such as a file. BackendMissing if the entry
    requires what is not here. A "task" and an "executor" have no checks: an empty list.
    """
    if entry.kind in ("task", "executor"):
        return []
    subject = registry.build(entry.kind, entry.name, context=_context(), **{**dict(entry.example), **given})
    match entry.kind:
        case "operator":
            return check_operator(subject) + check_operator(subject, dtype=torch.float64)
        case "prior":
            return check_prior(subject, GRID)
        case "solver":
            return check_solver(subject, toy_problem())
        case "dataset":
            return check_dataset(subject)
        case "metric":
            truth = toy_truth()
            return check_metric(subject, truth + 0.002 * normal(truth, generator(0, "metric")), truth)
        case _:
            return check_noise(subject, torch.linspace(0.1, 4.0, 200).reshape(1, 1, 10, 20))


def toy_truth() -> torch.Tensor:
    """A ball of attenuation 0.02 1/mm in air, off centre, on `GRID`."""
    axes = [(torch.arange(n) - (n - 1) / 2) * s for n, s in zip(GRID.shape, GRID.spacing, strict=True)]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return (0.02 * (z**2 + (y - 1) ** 2 + x**2 < 16)).float()[None, None]


def toy_problem() -> Problem:
    """A quarter as many rays as voxels, each a non-negative combination, with 1 % of noise; float32."""
    rows = GRID.size // 4
    matrix = torch.rand(rows, GRID.size, generator=generator(0, "toy matrix")).double()
    operator = MatrixOperator(matrix / GRID.size**0.5, GRID, (rows,))
    clean = operator.forward(toy_truth())
    noise = GaussianNoise(0.01 * float(clean.abs().max()))
    return Problem(operator, noise.sample(clean, rng=generator(0, "toy noise")), noise)


def _context() -> dict[str, object]:
    prior = GaussianPrior(0.01, smooth_covariance(GRID, 0.01, 3.0))
    return {"grid": GRID, "operator": toy_problem().operator, "prior": prior}
