"""Total variation against ODL's primal-dual solver on the same problem: no code shared but the operator's matrix."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from pdframe_classic.admm_tv import ADMMTVConfig
from pdframe_classic.data_term import largest_eigenvalue
from pdframe_classic.pdhg_tv import PDHGTVConfig
from pdframe_ray.config import ConeBeamConfig

from pdframe.core.grid import Grid
from pdframe.core.noise import GaussianNoise
from pdframe.core.problem import Problem
from pdframe.core.seeds import generator
from pdframe.core.solve import Status, solve

if find_spec("odl") is None:
    pytest.skip("odl is not installed", allow_module_level=True)

GRID = Grid((4, 8, 8), (3.0, 2.0, 2.0))
WEIGHT = 2e-3
#: Of ODL's solver: root of primal over dual step. 300 iterations with 3 end within 1e-5 of the least objective.
STEP, ITERATIONS = 3.0, 300


@pytest.fixture(scope="module")
def problem() -> Problem:
    """A block in a cone beam of 9 views, with noise, float64."""
    operator = ConeBeamConfig(views=9).build(GRID)
    x = torch.zeros(1, 1, *GRID.shape, dtype=torch.float64)
    x[..., 1:3, 2:6, 3:7] = 0.02
    noise = GaussianNoise(0.01)
    return Problem(operator, noise.sample(operator.forward(x), rng=generator(0, "noise")), noise)


@pytest.fixture(scope="module")
def matrix(problem: Problem) -> np.ndarray:
    """sqrt(1 / L) A, column by column, (rays, voxels)."""
    basis = torch.eye(GRID.size, dtype=torch.float64).reshape(-1, 1, *GRID.shape)
    scale = float(largest_eigenvalue(problem.operator, torch.ones_like(problem.y)))
    return problem.operator.forward(basis).flatten(1).T.numpy() / scale**0.5


@pytest.fixture(scope="module")
def data(problem: Problem) -> np.ndarray:
    """sqrt(1 / L) y."""
    scale = float(largest_eigenvalue(problem.operator, torch.ones_like(problem.y)))
    return problem.y.flatten().numpy() / scale**0.5


def objective(matrix: np.ndarray, data: np.ndarray, x: np.ndarray) -> float:
    """Once more, in NumPy: 1/2 |A x - y|^2 + weight * sum of the lengths of the forward differences."""
    residual = matrix @ x.ravel() - data
    slopes = [np.diff(x, axis=k, append=np.take(x, [-1], axis=k)) / h for k, h in enumerate(GRID.spacing)]
    return float(residual @ residual / 2 + WEIGHT * np.sqrt(sum(s**2 for s in slopes)).sum())


def by_odl(matrix: np.ndarray, data: np.ndarray) -> np.ndarray:
    """min f(x) + g(K x) by `odl.solvers.pdhg`: f the constraint, K = (A, grad).

    ODL's norms are integrals: they carry the volume of a voxel, and so must the adjoint and the weight.
    Run in a process of its own, since importing ODL changes the environment and NumPy's printing.
    """
    import odl

    half = np.array(GRID.extent) / 2
    space = odl.uniform_discr(-half, half, GRID.shape)
    rays = odl.rn(len(data))

    class Adjoint(odl.Operator):
        def __init__(self):
            super().__init__(rays, space, linear=True)

        def _call(self, y):
            return space.element((matrix.T @ np.asarray(y.data)).reshape(GRID.shape) / space.cell_volume)

    class Projector(odl.Operator):
        def __init__(self):
            super().__init__(space, rays, linear=True)

        def _call(self, x):
            return rays.element(matrix @ np.asarray(x.data).ravel())

        @property
        def adjoint(self):
            return Adjoint()

    gradient = odl.Gradient(space, method="forward", pad_mode="symmetric")
    both = odl.BroadcastOperator(Projector(), gradient)
    misfit = 0.5 * odl.functionals.L2NormSquared(rays).translated(rays.element(data))
    variation = WEIGHT / space.cell_volume * odl.functionals.GroupL1Norm(gradient.range, exponent=2)
    constraint = odl.functionals.IndicatorNonnegativity(space)
    norm = 1.05 * odl.power_method_opnorm(both, maxiter=100)
    x = space.zero()
    odl.solvers.pdhg(
        x, constraint, odl.functionals.SeparableSum(misfit, variation), both,
        niter=ITERATIONS, tau=STEP / norm, sigma=1 / STEP / norm,
    )  # fmt: skip
    return np.asarray(x.data)


@pytest.fixture(scope="module")
def reference(matrix: np.ndarray, data: np.ndarray) -> np.ndarray:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(by_odl, matrix, data).result()


@pytest.mark.parametrize("name", ["admm_tv", "pdhg_tv"])
def test_tv_agrees_with_odl(name: str, problem: Problem, matrix: np.ndarray, data: np.ndarray, reference: np.ndarray):
    config = {
        "admm_tv": ADMMTVConfig(weight=WEIGHT, steps=1000, tolerance=1e-4),
        "pdhg_tv": PDHGTVConfig(weight=WEIGHT, steps=3000, tolerance=1e-4),
    }[name]
    got = solve(problem, config.build())
    assert got.status is Status.finished
    x = got.x[0, 0].numpy()
    want = objective(matrix, data, reference)
    assert objective(matrix, data, np.zeros_like(x)) > 2 * want  # the problem is not solved by nothing
    assert objective(matrix, data, x) == pytest.approx(want, rel=1e-3)
    assert np.linalg.norm(x - reference) < 0.02 * np.linalg.norm(reference)
