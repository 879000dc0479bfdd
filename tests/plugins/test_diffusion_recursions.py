"""Each diffusion solver against its own recursion, written a second time with dense matrices.

The noise differs from ray to ray, as in a scanner, and the data are so low that volumes become negative.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from dense import DEVIATION, EYE, MEAN, ROWS, SHAPE, TOY, A, denoised, draws, krylov, levels, shrinkage
from pdframe_solvers.admm import ADMMConfig
from pdframe_solvers.daps import DAPSConfig
from pdframe_solvers.dds_ztv import DDSZTVConfig
from pdframe_solvers.diffpir import DiffPIRConfig
from pdframe_solvers.dps import DPSConfig
from pdframe_solvers.red_diff import REDDiffConfig
from torch import Tensor

from pdframe.core.linalg import power_iteration
from pdframe.core.noise import PhotonNoise
from pdframe.core.operator import pseudoinverse
from pdframe.core.seeds import generator
from pdframe.core.solve import Status, solve
from pdframe.hooks import Config

Y = TOY.problem.y.flatten() - 0.8 * A.sum(1)
PROBLEM = dataclasses.replace(TOY.problem, y=Y.reshape(1, 1, ROWS), noise=PhotonNoise(1000.0, 5.0))
LADDER = {"steps": 5, "sigma_max": 4.0, "sigma_min": 0.1, "rho": 5.0}


@dataclasses.dataclass(frozen=True)
class Rules:
    """What holds for every solver: how rays are weighed, whether volumes may be negative, the operator's error."""

    weighting: str
    nonnegative: bool
    model_error: float = 0.0

    @property
    def w(self) -> Tensor:
        """The diagonal of W."""
        inverse = 1 / (1 / PROBLEM.noise.inverse_variance(Y) + self.model_error**2 * (Y**2).mean())
        return inverse if self.weighting == "statistical" else torch.full_like(inverse, float(1 / (1 / inverse).mean()))

    @property
    def h(self) -> Tensor:
        return A.T @ (self.w[:, None] * A)

    @property
    def back(self) -> Tensor:
        return A.T @ (self.w * Y)

    @property
    def largest(self) -> float:
        """Largest eigenvalue of H as the solvers estimate it, from below."""
        found = float(power_iteration(PROBLEM.operator, iterations=8, weights=self.w.reshape(1, 1, ROWS))[0]) ** 2
        assert found == pytest.approx(float(torch.linalg.eigvalsh(self.h)[-1]), rel=0.05)
        return found

    def square(self, x: Tensor) -> float:
        """|y - A x|_W^2."""
        return float((self.w * (Y - A @ x) ** 2).sum())

    def clamped(self, x: Tensor) -> Tensor:
        return x.clamp_min(0) if self.nonnegative else x

    def agree(self, config: Callable[..., Config], want: Tensor, **settings: object) -> None:
        told = config(**dataclasses.asdict(self), **settings)
        got = solve(PROBLEM, told.build(prior=TOY.prior), rng=generator(0, "test"))
        assert got.status in (Status.finished, Status.step_limit)
        torch.testing.assert_close(got.x, want.reshape(SHAPE), rtol=0, atol=1e-6)


@pytest.fixture(
    params=[
        ("statistical", False),
        ("none", False),
        ("statistical", True),
        ("statistical", False, 0.05),
        ("none", True, 0.05),
    ],
    ids=str,
)
def rules(request: pytest.FixtureRequest) -> Rules:
    return Rules(*request.param)


def test_the_rules_make_a_difference():
    free, bound, equal = Rules("statistical", False), Rules("statistical", True), Rules("none", False)
    assert float(free.w.max() / free.w.min()) > 1.2 and float(equal.w.std()) == 0
    settings = LADDER | {"steps": 2}
    solver = [DiffPIRConfig(nonnegative=r.nonnegative, **settings).build(prior=TOY.prior) for r in (free, bound)]
    one, other = (solve(PROBLEM, s, rng=generator(0, "test")).x for s in solver)
    assert float(one.min()) < -0.01 and float(other.min()) == 0


@pytest.mark.parametrize(
    "changes",
    [{"cg": 3, "discrepancy": 0.0}, {"cg": 60, "strength": 0.2, "zeta": 1.0, "discrepancy": 0.0}, {"cg": 20}],
    ids=["few", "many", "stopped"],
)
def test_diffpir_is_its_recursion(rules: Rules, changes: dict):
    config = DiffPIRConfig(**LADDER, **changes)
    draw, ladder, stopped = draws(), levels(**LADDER), []
    x = MEAN + ladder[0] * draw()
    for sigma, after in zip(ladder, ladder[1:], strict=False):
        x0_hat, rho = denoised(x, sigma), config.strength / sigma**2
        h, right = rules.h + rho * EYE, rules.back + rho * x0_hat
        for k in range(min(config.cg, ROWS + 1) + 1):
            x0 = krylov(h, x0_hat, right, k)
            if rules.square(x0) <= config.discrepancy * ROWS:
                stopped.append(k)
                break
        x0 = rules.clamped(x0)
        noise = math.sqrt(1 - config.zeta) * (x - x0) / sigma + math.sqrt(config.zeta) * draw()
        x = x0 + after * noise
    assert bool(stopped) is (config.discrepancy > 0)
    rules.agree(DiffPIRConfig, x, **LADDER, **changes)


@pytest.mark.parametrize("jacobian", ["exact", "identity"])
def test_dps_is_its_recursion(rules: Rules, jacobian: str):
    draw, ladder, metric = draws(), levels(**LADDER), 1 / rules.h.sum(1)
    x = MEAN + ladder[0] * draw()
    for sigma, after in zip(ladder, ladder[1:], strict=False):
        x0_hat = denoised(x, sigma)
        f = math.sqrt(rules.square(x0_hat))
        g, j = A.T @ (rules.w * (A @ x0_hat - Y)) / f, 1.0
        if jacobian == "exact":
            g, j = shrinkage(sigma).T @ g, DEVIATION**2 / (DEVIATION**2 + sigma**2)
        q = after**2 / sigma**2
        x = x0_hat + q * (x - x0_hat) + after * math.sqrt(1 - q) * draw()
        x = x - 0.7 * max(f - math.sqrt(ROWS), 0) / max(float(g @ (metric * g)), 0.1 * j**2) * metric * g
    rules.agree(DPSConfig, rules.clamped(x), **LADDER, jacobian=jacobian, zeta=0.7)


def test_red_diff_is_its_recursion_with_the_adam_of_torch(rules: Rules):
    draw = draws()
    start = rules.clamped(pseudoinverse(PROBLEM.operator, PROBLEM.y).flatten())
    mu = (start / DEVIATION).clone().requires_grad_()
    adam = torch.optim.Adam([mu], lr=0.1, betas=(0.9, 0.99), eps=1e-8)
    for sigma in levels(**LADDER)[:-1]:
        x = mu.detach() * DEVIATION
        x0_hat = denoised(x + sigma * draw(), sigma)
        mu.grad = (A.T @ (rules.w * (A @ x - Y)) / rules.largest + 0.25 * (x - x0_hat)) / DEVIATION
        adam.step()
        mu.data = rules.clamped(mu.data)
    rules.agree(REDDiffConfig, mu.detach() * DEVIATION, **LADDER, rate=0.1)


@pytest.mark.parametrize("kind", ["exact", "langevin"])
def test_daps_is_its_recursion(rules: Rules, kind: str):
    draw, ladder = draws(), levels(**LADDER)
    x = MEAN + ladder[0] * draw()
    for sigma, after in zip(ladder, ladder[1:], strict=False):
        x0_hat = x
        flow = levels(3, sigma / DEVIATION, LADDER["sigma_min"], LADDER["rho"])
        for s, t in zip(flow, flow[1:], strict=False):
            x0_hat = x0_hat + (t - s) / s * (x0_hat - denoised(x0_hat, s))
        precision = 1 / sigma**2 + 1 / DEVIATION**2
        if kind == "exact":
            centre = x0_hat + precision**-0.5 * draw()
            y = Y + rules.w**-0.5 * draw(ROWS)
            x0 = torch.linalg.solve(rules.h + precision * EYE, A.T @ (rules.w * y) + precision * centre)
        else:
            x0, h = x0_hat, 0.3 / (rules.largest + precision)
            for _ in range(4):
                slope = rules.h @ x0 - rules.back + precision * (x0 - x0_hat)
                x0 = x0 - h * slope + math.sqrt(2 * h) * draw()
        x0 = rules.clamped(x0)
        x = x0 + after * draw() if after else x0
    rules.agree(DAPSConfig, x, **LADDER, draw=kind, ode=3, cg=60, langevin=4, rate=0.3)


@pytest.mark.parametrize(
    "changes", [{"cg": 3}, {"cg": 4, "penalty": 0.3, "threshold": 0.2, "eta": 0.2, "temperature": 0.4}]
)
def test_dds_ztv_is_its_recursion(rules: Rules, changes: dict):
    config = DDSZTVConfig(**LADDER, **changes)
    draw, ladder = draws(), levels(**LADDER)
    d_z = torch.kron(torch.eye(4).diff(dim=0).double(), torch.eye(16, dtype=torch.float64))
    x, d, u = MEAN + config.temperature * ladder[0] * draw(), torch.zeros(48).double(), torch.zeros(48).double()
    for sigma, after in zip(ladder, ladder[1:], strict=False):
        x0_hat = denoised(x, sigma)
        right = rules.back / rules.largest + config.penalty * d_z.T @ (d - u)
        x0 = krylov(rules.h / rules.largest + config.penalty * d_z.T @ d_z, x0_hat, right, config.cg)
        v = d_z @ x0 + u
        d = torch.nn.functional.softshrink(v, config.threshold * DEVIATION)
        u = v - d
        noise = math.sqrt(1 - config.eta**2) * (x - x0_hat) / sigma + config.eta * config.temperature * draw()
        x = rules.clamped(x0) + after * noise
    rules.agree(DDSZTVConfig, x, **LADDER, **changes)


def test_admm_is_its_recursion(rules: Rules):
    """While its level falls, too: then the scaled dual variable changes its unit from step to step."""
    ladder = levels(3, 2.0, 0.5, 5.0)[:-1]
    z = rules.clamped(pseudoinverse(PROBLEM.operator, PROBLEM.y).flatten())
    u, before = torch.zeros_like(z), ladder[0]
    for k in range(6):
        sigma = ladder[min(k, 2)]
        rho, u = 0.7 / sigma**2, u * (sigma / before) ** 2
        x = torch.linalg.solve(rules.h + rho * EYE, rules.back + rho * (z - u))
        z = rules.clamped(denoised(x + u, sigma))
        u, before = u + x - z, sigma
    settings = {"steps": 6, "anneal": 3, "sigma_max": 2.0, "sigma_min": 0.5, "rho": 5.0}
    rules.agree(ADMMConfig, z, **settings, strength=0.7, cg=60, tolerance=0.0)
