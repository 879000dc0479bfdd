"""Total variation as a prior: a closed form, and plug-and-play ADMM that ends where `admm_tv` does."""

from __future__ import annotations

import pytest
import torch

from pdframe import build
from pdframe.core.grid import Grid
from pdframe.core.linalg import power_iteration
from pdframe.core.noise import GaussianNoise
from pdframe.core.prior import prior_on
from pdframe.core.problem import Problem
from pdframe.core.seeds import generator
from pdframe.core.solve import Status, solve
from pdframe.testing.toys import MatrixOperator


def test_denoising_of_a_step_in_one_dimension_is_the_known_one():
    """Each side moves towards the other by sigma^2 / (slope * spacing * its length); items have levels of their own."""
    prior = prior_on(build("prior", "tv", slope=0.5, iterations=4000), Grid((10,), (0.5,), unit="1"))
    x = torch.tensor([1.0] * 4 + [3.0] * 6, dtype=torch.float64).reshape(1, 1, 10).repeat(2, 1, 1)
    sigma = torch.tensor([0.1, 0.3], dtype=torch.float64)
    got = prior.denoise(x, sigma)
    for item, level in zip(got, sigma, strict=True):
        move = float(level) ** 2 / (0.5 * 0.5)
        want = torch.tensor([1.0 + move / 4] * 4 + [3.0 - move / 6] * 6, dtype=torch.float64)
        torch.testing.assert_close(item.flatten(), want, rtol=0, atol=1e-5)


def test_more_noise_more_smoothing_and_none_none():
    prior = prior_on(build("prior", "tv"), Grid((8, 8, 8), (2.0, 1.0, 1.0)))
    x = 0.02 * torch.rand(1, 1, 8, 8, 8, generator=generator(0, "tv"))
    flat = [float(prior.denoise(x, torch.full((1,), s)).std()) for s in (1e-6, 1e-3, 1e-2)]
    assert flat[0] == pytest.approx(float(x.std()), rel=1e-3) and flat[0] > flat[1] > flat[2]


def test_admm_with_this_prior_ends_where_admm_tv_does():
    grid, deviation, weight = Grid((3, 5, 4), (2.0, 1.0, 0.5)), 0.01, 1e-2
    draw = torch.randn(30, grid.size, generator=generator(1, "tv"), dtype=torch.float64)
    operator = MatrixOperator(draw.abs() / grid.size, grid, (30,))
    x = torch.zeros(1, 1, *grid.shape, dtype=torch.float64)
    x[..., 1:, 1:4, :2] = 2.0
    noise = deviation * torch.randn(1, 1, 30, generator=generator(2, "tv"), dtype=torch.float64)
    problem = Problem(operator, operator.forward(x) + noise, GaussianNoise(deviation))

    # admm_tv divides the data term by L and leaves the noise out; the prior's slope is in the statistician's units.
    scale = float(power_iteration(operator, iterations=8)) ** 2
    prior = build("prior", "tv", slope=deviation**2 / (weight * scale), iterations=60, mean=0.5, deviation=1.0)
    settings = {"sigma_max": 0.05, "sigma_min": 0.05, "anneal": 1, "start": "noise", "weighting": "none"}
    settings["model_error"] = 0.0
    got = solve(problem, build("solver", "admm", prior=prior, steps=3000, cg=30, tolerance=1e-4, **settings))
    want = solve(problem, build("solver", "admm_tv", weight=weight, steps=3000, tolerance=1e-6))
    assert got.status is Status.finished
    assert float((got.x - want.x).norm() / want.x.norm()) < 5e-3
