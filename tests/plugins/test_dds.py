"""DDS against its own recursion, written again with dense linear algebra, and against the exact posterior."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from dense import EYE, ROWS, TOY, A, Y, krylov
from pdframe_solvers.dds import DDSConfig

from pdframe.core.noise import NoNoise, PhotonNoise
from pdframe.core.prior import Prior
from pdframe.core.problem import Problem
from pdframe.core.seeds import generator
from pdframe.core.solve import Status, posterior, solve
from pdframe.testing.toys import GaussianPrior

#: A sampler with every part of the algorithm at work, from pure noise.
FROM_NOISE = {"start": "noise", "steps": 30, "sigma_max": 10.0, "sigma_min": 0.02, "eta": 0.85, "temperature": 1.0}
FROM_NOISE |= {"cg": 10, "weighting": "statistical", "proximal": 0.0, "discrepancy": 1.0, "model_error": 0.0}


def _config(**settings: object) -> DDSConfig:
    return DDSConfig(**{**FROM_NOISE, "nonnegative": False, **settings})


def _solve(problem: Problem = TOY.problem, prior: Prior = TOY.prior, seed: int = 0, **settings: object):
    solver = _config(**settings).build(prior=prior)
    return solve(problem, solver, rng=generator(seed, "test"))


def _recursion(settings: DDSConfig, weights: torch.Tensor, noiseless: bool = False, seed: int = 0) -> torch.Tensor:
    """The algorithm box with matrices; draws its noise in the same order."""
    rng, c, m, d = generator(seed, "test"), TOY.prior.covariance, TOY.prior.mean, TOY.prior.deviation
    tau = settings.temperature
    draw = lambda: tau * torch.randn((1, 1, 4, 4, 4), generator=rng, dtype=torch.float64).flatten()  # noqa: E731
    top, low = settings.sigma_max * d, settings.sigma_min * d
    n, rho = settings.steps, settings.rho
    sigmas = [(top ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - top ** (1 / rho))) ** rho for i in range(n)] + [0.0]
    h, back = A.T @ torch.diag(weights) @ A, A.T @ (weights * Y)

    x = m + sigmas[0] * draw()
    for sigma, sigma_next in zip(sigmas, sigmas[1:], strict=False):
        for k in range(settings.rounds):
            x0_hat = m + c @ torch.linalg.solve(c + sigma**2 * EYE, x - m)
            gamma = 0.0 if noiseless else settings.proximal * (1 / sigma**2 + 1 / d**2)
            x0 = krylov(h + gamma * EYE, x0_hat, back + gamma * x0_hat, settings.cg)
            noise = math.sqrt(1 - settings.eta**2) * (x - x0_hat) / sigma + settings.eta * draw()
            following = x0 + sigma_next * noise
            if k + 1 < settings.rounds:
                x = following + math.sqrt(sigma**2 - sigma_next**2) * draw()
        x = following
    return x.reshape(1, 1, 4, 4, 4)


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 8, "cg": 3, "discrepancy": 0.0},
        {"steps": 8, "cg": 6, "discrepancy": 0.0, "proximal": 1.0, "eta": 0.3},
        {"steps": 5, "cg": 4, "discrepancy": 0.0, "proximal": 0.5, "rounds": 2, "eta": 1.0, "rho": 3.0},
        {"steps": 8, "cg": 2, "discrepancy": 0.0, "sigma_max": 2.0, "sigma_min": 0.1, "eta": 0.0},
        {"steps": 6, "cg": 3, "discrepancy": 0.0, "proximal": 1.0, "rounds": 2, "temperature": 0.5},
    ],
)
def test_dds_is_its_recursion_in_closed_form(settings: dict):
    weights = torch.full((ROWS,), 1 / TOY.problem.noise.deviation**2, dtype=torch.float64)
    want = _recursion(_config(**settings), weights)
    got = _solve(**settings)
    assert got.status is Status.finished and len(got.trace) == settings["steps"]
    torch.testing.assert_close(got.x, want, rtol=0, atol=1e-6)


def test_tilings_are_averaged_and_the_last_level_has_its_own():
    calls: list[float] = []

    @dataclasses.dataclass(frozen=True)
    class Wavering(Prior):
        """Differs from one call to the next, as a prior of tiles does."""

        deviation: float = TOY.prior.deviation
        sigma_range: tuple[float, float] = TOY.prior.sigma_range
        mean: float = 0.0

        def denoise(self, x, sigma, *, rng=None):
            calls.append(float(sigma[0]))
            return torch.full_like(x, float(len(calls)))

    got = _solve(prior=Wavering(), steps=3, tilings=2, last_tilings=4, cg=0, discrepancy=0.0)
    assert [calls.count(sigma) for sigma in sorted(set(calls), reverse=True)] == [2, 2, 4]
    torch.testing.assert_close(got.x, torch.full_like(got.x, (5 + 6 + 7 + 8) / 4))


def test_without_noise_the_proximal_weight_is_zero_and_the_data_are_met():
    settings = {"steps": 6, "cg": 40, "proximal": 1.0}
    problem = dataclasses.replace(TOY.problem, noise=NoNoise())
    got = _solve(problem, **settings)
    torch.testing.assert_close(problem.operator.forward(got.x).flatten(), Y, rtol=0, atol=1e-6)
    few = {"steps": 6, "cg": 4, "proximal": 1.0}
    want = _recursion(_config(**few), torch.ones(ROWS, dtype=torch.float64), noiseless=True)
    torch.testing.assert_close(_solve(problem, **few).x, want, rtol=0, atol=1e-6)


def test_weights_follow_the_noise_model_or_its_mean():
    noise = PhotonNoise(1000.0, 5.0)
    problem = dataclasses.replace(TOY.problem, noise=noise)
    settings = {"steps": 5, "cg": 5, "discrepancy": 0.0, "proximal": 1.0}
    inverse = noise.inverse_variance(Y)
    uniform = torch.full_like(inverse, float(1 / (1 / inverse).mean()))
    for weighting, weights in (("statistical", inverse), ("none", uniform)):
        want = _recursion(_config(**settings), weights)
        torch.testing.assert_close(_solve(problem, weighting=weighting, **settings).x, want, rtol=0, atol=1e-6)


def test_a_model_error_adds_to_the_variance_and_keeps_the_pull_to_the_prior_without_noise():
    settings = {"steps": 5, "cg": 5, "discrepancy": 0.0, "proximal": 1.0, "model_error": 0.03}
    error = 0.03**2 * float((Y**2).mean())
    for noise, variance in ((TOY.problem.noise, TOY.problem.noise.deviation**2), (NoNoise(), 0.0)):
        want = _recursion(_config(**settings), torch.full((ROWS,), 1 / (variance + error), dtype=torch.float64))
        got = _solve(dataclasses.replace(TOY.problem, noise=noise), **settings)
        torch.testing.assert_close(got.x, want, rtol=0, atol=1e-6)


def test_an_empty_scan_without_noise_gives_a_finite_volume():
    problem = dataclasses.replace(TOY.problem, y=torch.zeros_like(TOY.problem.y), noise=NoNoise())
    assert bool(_solve(problem, steps=3, model_error=0.01).x.isfinite().all())


def test_noise_aware_stopping_leaves_the_residual_at_the_noise_level():
    cautious, greedy = _solve(cg=30), _solve(cg=30, discrepancy=0.0)
    assert 0.3 < cautious.trace[-1]["misfit"] <= 1.0
    assert greedy.trace[-1]["misfit"] < 1e-3
    assert cautious.usage.view_calls < greedy.usage.view_calls / 3


def test_levels_are_in_prior_deviations_and_stay_in_the_priors_range():
    sigmas = DDSConfig(steps=4, sigma_max=10, sigma_min=0.1).build(prior=TOY.prior).sigmas
    assert sigmas[0] == pytest.approx(10 * TOY.prior.deviation) and sigmas[-1] == 0.0
    assert sigmas[-2] == pytest.approx(0.1 * TOY.prior.deviation)
    sigmas = DDSConfig(steps=4, sigma_max=1e9, sigma_min=1e-9).build(prior=TOY.prior).sigmas
    assert (sigmas[0], sigmas[3]) == pytest.approx(tuple(reversed(TOY.prior.sigma_range)))


def test_a_ladder_that_rises_is_refused():
    with pytest.raises(ValueError, match=r"sigma_max = 0.01 below sigma_min = 0.05"):
        DDSConfig(sigma_max=0.01)


def test_tilings_are_averaged_with_fresh_draws_and_counted():
    @dataclasses.dataclass(frozen=True)
    class Jittery(Prior):
        inner: GaussianPrior
        mean: float = TOY.prior.mean
        deviation: float = TOY.prior.deviation
        sigma_range: tuple[float, float] = TOY.prior.sigma_range

        def denoise(self, x: torch.Tensor, sigma: torch.Tensor, *, rng: torch.Generator | None = None):
            return self.inner.denoise(x, sigma) + torch.randn(x.shape, generator=rng, dtype=x.dtype)

    # With cg = 0 the last step returns the average itself: its jitter has deviation 1 / sqrt(tilings).
    once, often = (
        _solve(prior=Jittery(TOY.prior), steps=1, cg=0, last_tilings=k, sigma_max=1e-3, sigma_min=1e-3) for k in (1, 64)
    )
    assert (once.usage.network_calls, often.usage.network_calls) == (1, 64)
    assert float((once.x - TOY.prior.mean).std()) == pytest.approx(1.0, rel=0.3)
    assert float((often.x - TOY.prior.mean).std()) == pytest.approx(1 / 8, rel=0.3)


def test_the_estimate_is_nonnegative_unless_told_otherwise():
    problem = dataclasses.replace(TOY.problem, y=-TOY.problem.y)
    assert float(_solve(problem, nonnegative=True).x.min()) >= 0
    assert float(_solve(problem).x.min()) < 0


def test_samples_are_near_the_posterior_and_their_bias_is_recorded(record_property):
    """The sampler is biased; this says by how much at most. benchmarks/quality/sampler_bias.py has the full table."""
    solver = _config().build(prior=TOY.prior)
    drawn = posterior(TOY.problem, solver, samples=60, seed=1)
    sure = TOY.posterior_covariance.diagonal().sqrt().reshape(TOY.truth.shape)
    bias = float(((drawn.mean - TOY.posterior_mean) / sure).square().mean().sqrt())
    spread = float((drawn.deviation / sure).mean())
    record_property("bias_in_posterior_deviations", bias)
    record_property("spread_over_posterior_deviation", spread)
    assert bias < 0.5
    assert 0.7 < spread < 1.1
    prior_bias = float(((TOY.prior.mean - TOY.posterior_mean) / sure).square().mean().sqrt())
    assert bias < prior_bias / 2
