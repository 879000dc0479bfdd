"""SIRT, Tikhonov and early-stopped CGLS against closed forms and an independent minimiser."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from pdframe_classic.data_term import POWER_ITERATIONS, largest_eigenvalue
from pdframe_classic.gradient import gradient
from pdframe_classic.least_squares import CGLSConfig
from pdframe_classic.sirt import SIRTConfig
from pdframe_classic.tikhonov import TikhonovConfig

from pdframe.core.grid import Grid
from pdframe.core.noise import GaussianNoise, NoNoise, PhotonNoise
from pdframe.core.problem import Problem
from pdframe.core.seeds import generator
from pdframe.core.solve import Status, solve
from pdframe.testing.toys import MatrixOperator

GRID = Grid((2, 4, 3), (2.0, 1.0, 0.5))


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed, "classic linear"), dtype=torch.float64)


def _problem(noise=None, rows: int = 40, deviation: float = 0.02) -> Problem:
    """More rays than voxels; one ray misses the volume, and no ray sees the first voxel."""
    matrix = _draw(rows, GRID.size, seed=1).abs() / GRID.size
    matrix[3], matrix[:, 0] = 0, 0
    operator = MatrixOperator(matrix, GRID, (rows,))
    x = torch.zeros(1, 1, *GRID.shape, dtype=torch.float64)
    x[..., 1:3, :2] = 2.0
    y = operator.forward(x) + deviation * _draw(1, 1, rows, seed=2)
    return Problem(operator, y, noise or NoNoise())


# SIRT


@pytest.mark.parametrize("relaxation", [1.0, 1.9])
def test_sirt_follows_its_recursion_in_closed_form(relaxation: float):
    """In the metric of 1 / C the iteration is symmetric, so k steps are a filter on its eigenvalues."""
    problem, steps = _problem(), 25
    a, y = problem.operator.matrix.numpy()[:, 1:], problem.y.flatten().numpy()
    r, c = np.where(a.sum(1) > 0, 1 / np.maximum(a.sum(1), 1e-9), 0), 1 / a.sum(0)
    symmetric = np.sqrt(r)[:, None] * a * np.sqrt(c)
    values, vectors = np.linalg.eigh(symmetric.T @ symmetric)
    assert 0 < values[0] and values[-1] == pytest.approx(1, abs=1e-12)  # what makes any relaxation below 2 converge
    filtered = (1 - (1 - relaxation * values) ** steps) / values
    want = np.sqrt(c) * (vectors @ (filtered * (vectors.T @ (symmetric.T @ (np.sqrt(r) * y)))))
    got = solve(problem, SIRTConfig(steps=steps, relaxation=relaxation, nonnegative=False).build())
    np.testing.assert_allclose(got.x.flatten().numpy(), np.concatenate([[0], want]), rtol=0, atol=1e-10)
    assert got.status is Status.finished


def test_sirt_with_non_negativity_reaches_the_minimiser():
    """SciPy's active-set method on sqrt(R) A shares no step with SIRT."""
    nnls = pytest.importorskip("scipy.optimize", reason="scipy is not installed").nnls
    problem = _problem(deviation=0.2)
    a = problem.operator.matrix.numpy()
    root = np.sqrt(np.where(a.sum(1) > 0, 1 / np.maximum(a.sum(1), 1e-9), 0))
    want, _ = nnls(root[:, None] * a, root * problem.y.flatten().numpy())
    got = solve(problem, SIRTConfig(steps=1500, relaxation=1.9).build()).x.flatten().numpy()
    assert (want[1:] == 0).any()
    np.testing.assert_allclose(got[1:], want[1:], rtol=0, atol=1e-6)


def test_sirt_stops_at_the_noise_level_and_each_item_by_itself():
    problem = _problem(GaussianNoise(0.02))
    both = dataclasses.replace(problem, y=torch.cat([problem.y, 0.5 * problem.y]))
    solver = SIRTConfig(steps=500, discrepancy=1.5, nonnegative=False).build()
    together = solve(both, solver)
    for i in range(2):
        alone = solve(dataclasses.replace(problem, y=both.y[i : i + 1]), solver)
        torch.testing.assert_close(together.x[i : i + 1], alone.x, rtol=0, atol=1e-12)
        misfits = [row["misfit"] for row in alone.trace]
        assert alone.status is Status.finished and 2 < len(misfits) < 500
        assert misfits[-1] <= 1.5 < misfits[-2]
        residual = problem.operator.forward(alone.x) - both.y[i : i + 1]
        assert float((residual**2).mean()) / 0.02**2 == pytest.approx(misfits[-1])
        assert alone.usage.adjoint_calls == len(misfits)  # 1 at the start, none in the step that finds it fits


def test_sirt_refuses_an_operator_with_negative_weights():
    signed = MatrixOperator(_draw(20, GRID.size, seed=3), GRID, (20,))
    with pytest.raises(ValueError, match="without negative weights"):
        solve(Problem(signed, _draw(1, 1, 20)), SIRTConfig().build())


# Tikhonov


def _difference_matrix() -> torch.Tensor:
    """The gradient, column by column."""
    basis = torch.eye(GRID.size, dtype=torch.float64).reshape(-1, 1, *GRID.shape)
    return gradient(basis, GRID.spacing).flatten(1).T


@pytest.mark.parametrize("penalty", ["identity", "gradient"])
@pytest.mark.parametrize("weighting", ["none", "statistical"])
def test_tikhonov_is_its_closed_form(penalty: str, weighting: str):
    problem, weight = _problem(PhotonNoise(1000.0, 5.0)), 0.02
    a, y = problem.operator.matrix, problem.y.flatten()
    w = torch.ones_like(y) if weighting == "none" else problem.noise.inverse_variance(y)
    d = torch.eye(GRID.size, dtype=torch.float64) if penalty == "identity" else _difference_matrix()
    scale = largest_eigenvalue(problem.operator, w.reshape(1, 1, -1))
    assert float(scale) == pytest.approx(float(torch.linalg.eigvalsh(a.T @ (w[:, None] * a))[-1]), rel=0.05)
    want = torch.linalg.solve(a.T @ (w[:, None] * a) / scale + weight * d.T @ d, a.T @ (w * y) / scale)
    settings = {"penalty": penalty, "weight": weight, "weighting": weighting}
    got = solve(problem, TikhonovConfig(**settings, tolerance=1e-13, iterations=400, nonnegative=False).build())
    torch.testing.assert_close(got.x.flatten(), want, rtol=0, atol=1e-9)
    assert float(solve(problem, TikhonovConfig(**settings).build()).x.min()) >= 0


def test_tikhonov_costs_what_it_says_and_solves_each_item_as_if_alone():
    one = _problem()
    solver = TikhonovConfig(iterations=6, tolerance=0).build()
    usage = solve(one, solver).usage
    assert usage.forward_calls == POWER_ITERATIONS + 1 + 6
    assert usage.adjoint_calls == POWER_ITERATIONS - 1 + 2 + 6
    y = torch.cat([one.y, 3 * one.y.flip(2)])
    solver = TikhonovConfig(tolerance=1e-11).build()
    together = solve(dataclasses.replace(one, y=y), solver).x
    for i in range(2):
        alone = solve(dataclasses.replace(one, y=y[i : i + 1]), solver).x
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-10)


# CGLS


def test_cgls_stopped_early_is_the_best_point_of_its_krylov_space():
    """k steps from zero minimise |A x - y|_W over the span of (A'WA)^i A'W y, i < k (Hestenes and Stiefel 1952)."""
    problem, k = _problem(PhotonNoise(1000.0, 5.0)), 4
    a, y = problem.operator.matrix, problem.y.flatten()
    w = problem.noise.inverse_variance(y)
    columns = [a.T @ (w * y)]
    while len(columns) < k:
        columns.append(a.T @ (w * (a @ columns[-1])))
    span, _ = torch.linalg.qr(torch.stack([c / c.norm() for c in columns], dim=1))
    root = w.sqrt()
    want = span @ torch.linalg.lstsq(root[:, None] * (a @ span), (root * y)[:, None]).solution[:, 0]
    got = solve(problem, CGLSConfig(iterations=k, nonnegative=False).build()).x.flatten()
    torch.testing.assert_close(got, want, rtol=0, atol=1e-8)


@pytest.mark.parametrize("weighting", ["none", "statistical"])
def test_cgls_stops_at_the_noise_level(weighting: str):
    """At the first iterate whose misfit is that of the noise (Morozov); the iterates before are above."""
    noise = PhotonNoise(1000.0, 5.0)
    clean = _problem(deviation=0.0)
    y = noise.sample(clean.y, rng=generator(0, "counts"))
    problem = Problem(clean.operator, y, noise)
    stopped = solve(problem, CGLSConfig(iterations=60, discrepancy=1.2, weighting=weighting, nonnegative=False).build())
    k = len(stopped.trace)
    assert 0 < k < 10 and stopped.usage.forward_calls == k
    variance = 1 / noise.inverse_variance(y)
    w = torch.ones_like(y) if weighting == "none" else 1 / variance
    goal = 1.2 * float((w * variance).sum())

    def misfit(x: torch.Tensor) -> float:
        return float((w * (problem.operator.forward(x) - y) ** 2).sum())

    before = solve(problem, CGLSConfig(iterations=max(k - 1, 1), weighting=weighting, nonnegative=False).build())
    assert misfit(stopped.x) <= goal
    assert misfit(before.x if k > 1 else torch.zeros_like(stopped.x)) > goal


def test_without_a_noise_model_nothing_stops_early():
    got = solve(_problem(), CGLSConfig(iterations=15, discrepancy=100.0).build())
    assert len(got.trace) == 15
    assert len(solve(_problem(), SIRTConfig(steps=15, discrepancy=100.0).build()).trace) == 15
