"""Laws of the diffusion solvers: closed forms, scales, limits, and how far their samples are from the posterior."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from dense import DEVIATION, EYE, MEAN, ROWS, SHAPE, TOY, A, W, Y, denoised
from pdframe_solvers.admm import ADMMConfig
from pdframe_solvers.daps import DAPSConfig
from pdframe_solvers.diffpir import DiffPIRConfig
from pdframe_solvers.dps import DPSConfig

from pdframe.core.noise import NoNoise
from pdframe.core.problem import Problem
from pdframe.core.seeds import generator
from pdframe.core.solve import Solution, Status, solve
from pdframe.hooks import Config
from pdframe.testing.toys import GaussianPrior, gaussian_toy, smooth_covariance

H, BACK = W * A.T @ A, W * A.T @ Y
LADDER = {"steps": 5, "sigma_max": 4.0, "sigma_min": 0.1, "rho": 5.0}


def _solve(config: Config, problem: Problem = TOY.problem, seed: int = 0) -> Solution:
    """With the operator taken for exact, as it is here, unless a test sets the model error."""
    if "model_error" not in config.model_fields_set:
        config = config.model_copy(update={"model_error": 0.0})
    return solve(problem, config.build(prior=TOY.prior), rng=generator(seed, "test"))


def test_the_guidance_of_dps_does_not_know_the_scale_of_the_operator():
    """y, A and the noise in another unit: the same steps. At the noise level there is no pull."""
    scaled = dataclasses.replace(TOY.problem.operator, matrix=1000 * A)
    noise = dataclasses.replace(TOY.problem.noise, deviation=1000 * TOY.problem.noise.deviation)
    problem = Problem(scaled, 1000 * TOY.problem.y, noise)
    config = DPSConfig(**LADDER)
    torch.testing.assert_close(_solve(config, problem).x, _solve(config).x, rtol=0, atol=1e-9)

    loud = dataclasses.replace(TOY.problem, noise=dataclasses.replace(TOY.problem.noise, deviation=100.0))
    torch.testing.assert_close(_solve(config, loud).x, _solve(DPSConfig(**LADDER, zeta=0.0), loud).x, rtol=0, atol=0)


def test_the_gradient_of_dps_goes_through_the_prior_and_is_counted():
    exact, free = (_solve(DPSConfig(**LADDER, jacobian=j)).usage for j in ("exact", "identity"))
    assert exact.network_calls == free.network_calls == LADDER["steps"]
    assert exact.network_voxels == 3 * free.network_voxels
    assert exact.view_calls == free.view_calls


def test_an_exact_draw_of_daps_has_the_law_that_langevin_steps_tend_to():
    """One level, no flow: draws of N(x0_hat, r^2 I) p(y | x) in closed form."""
    items = 4000
    y = TOY.problem.y.expand(items, 1, ROWS).clone()
    config = DAPSConfig(steps=1, ode=1, sigma_max=0.5, sigma_min=0.5, cg=60, nonnegative=False, model_error=0.0)
    solver = config.build(prior=TOY.prior)
    rng, sigma = generator(0, "law"), 0.5 * DEVIATION
    state = solver.init(dataclasses.replace(TOY.problem, y=y), rng)
    same = dataclasses.replace(state, x=state.x[:1].expand_as(state.x).clone())
    drawn = solver.step(dataclasses.replace(TOY.problem, y=y), same, rng).x0.flatten(1)

    precision = 1 / sigma**2 + 1 / DEVIATION**2
    covariance = torch.linalg.inv(H + precision * EYE)
    mean = covariance @ (BACK + precision * denoised(state.x[0].flatten(), sigma))
    root = torch.linalg.cholesky(torch.linalg.inv(covariance))
    white = (drawn - mean) @ root  # standard normal, if the law is right
    assert float(white.mean(0).abs().max()) < 5 / math.sqrt(items)
    spread = white.T @ white / items - EYE
    assert float(spread.abs().max()) < 6 * math.sqrt(2 / items)


def test_langevin_draws_without_a_noise_model_are_refused():
    with pytest.raises(ValueError, match="need a noise model"):
        _solve(DAPSConfig(draw="langevin"), dataclasses.replace(TOY.problem, noise=NoNoise()))
    drawn = _solve(DAPSConfig(draw="langevin", model_error=0.01), dataclasses.replace(TOY.problem, noise=NoNoise()))
    assert drawn.status is Status.finished


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_admm_converges_to_the_most_likely_volume(strength: float):
    """Its denoiser is the proximal map of a Gaussian prior, of weight `strength`: the limit is known."""
    toy = gaussian_toy(shape=(3, 3, 3), rows=10, noise=0.2)
    prior = GaussianPrior(1.0, smooth_covariance(toy.problem.operator.grid, 0.5, 0.6))
    exact = {"tolerance": 1e-9, "nonnegative": False, "model_error": 0.0}
    config = ADMMConfig(steps=500, anneal=3, sigma_max=2.0, sigma_min=0.5, strength=strength, cg=12, **exact)
    got = solve(toy.problem, config.build(prior=prior))
    assert got.status is Status.finished and len(got.trace) > 5

    a, y, precision = toy.problem.operator.matrix, toy.problem.y.flatten(), 1 / 0.2**2
    h = precision * a.T @ a + strength * torch.linalg.inv(prior.covariance)
    want = 1.0 + torch.linalg.solve(h, precision * a.T @ (y - a.sum(1)))
    torch.testing.assert_close(got.x, want.reshape(got.x.shape), rtol=0, atol=1e-6)


def test_admm_says_when_it_has_not_converged():
    got = _solve(ADMMConfig(steps=4, anneal=2, tolerance=1e-10))
    assert got.status is Status.step_limit
    assert got.trace[-1]["primal"] > 1e-10


@pytest.mark.parametrize(
    ("config", "factor"),
    [(DiffPIRConfig(cg=40), 10), (DAPSConfig(cg=40), 10), (ADMMConfig(cg=40), 10), (DPSConfig(steps=300), 2)],
    ids=lambda value: type(value).__name__,
)
def test_without_noise_the_data_are_met(config: Config, factor: int):
    """By CG as far as it goes; by the single gradient steps of dps as far as their number goes."""
    problem = dataclasses.replace(TOY.problem, noise=NoNoise())
    got = _solve(config.model_copy(update={"nonnegative": False}), problem)
    left, start = (
        float((problem.operator.forward(x) - problem.y).norm() / problem.y.norm())
        for x in (got.x, torch.full(SHAPE, MEAN, dtype=torch.float64))
    )
    assert left < start / factor


SAMPLERS = [DPSConfig(), DPSConfig(jacobian="identity"), DiffPIRConfig(), DAPSConfig(), DAPSConfig(draw="langevin")]


@pytest.mark.parametrize("config", SAMPLERS, ids=lambda c: f"{type(c).__name__}-{len(c.model_fields_set)}")
def test_samples_are_near_the_posterior_and_their_bias_is_recorded(config: Config, record_property):
    """All samplers here are biased; this bounds by how much. docs/math/sampler-bias.md has the full table."""
    items = 200
    problem = dataclasses.replace(TOY.problem, y=TOY.problem.y.expand(items, 1, ROWS).clone())
    x = _solve(config.model_copy(update={"nonnegative": False}), problem).x
    sure = TOY.posterior_covariance.diagonal().sqrt().reshape(SHAPE)
    bias = float(((x.mean(0, keepdim=True) - TOY.posterior_mean) / sure).square().mean().sqrt())
    spread = float((x.std(0, keepdim=True) / sure).mean())
    record_property("bias_in_posterior_deviations", bias)
    record_property("spread_over_posterior_deviation", spread)
    prior_bias = float(((MEAN - TOY.posterior_mean) / sure).square().mean().sqrt())
    assert bias < prior_bias * 0.7
    assert 0.8 < spread < 1.4
