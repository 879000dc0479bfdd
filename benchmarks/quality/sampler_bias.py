"""How far the samplers' mean and deviation are from the true posterior, where that is known.

    python benchmarks/quality/sampler_bias.py > docs/math/sampler-bias.md

The problem is `pdframe.testing.toys.gaussian_toy`: 64 voxels, 24 noisy measurements, a smooth Gaussian prior whose
denoiser is exact, so that everything left is the sampler's own error.
"""

from __future__ import annotations

import dataclasses

import torch

import pdframe
from pdframe.core.solve import solve
from pdframe.testing.toys import GaussianToy, gaussian_toy

SAMPLES = 2000
#: DDS as a sampler: from noise, at full temperature. Its defaults seek one good volume instead.
SAMPLING: dict[str, object] = {"start": "noise", "steps": 30, "sigma_max": 10.0, "sigma_min": 0.02, "eta": 0.85}
SAMPLING |= {"temperature": 1.0, "cg": 10, "weighting": "statistical", "proximal": 0.0, "discrepancy": 1.0}
SETTINGS: tuple[tuple[str, dict[str, object]], ...] = (
    ("dds", {}),
    ("dds", SAMPLING),
    ("dds", SAMPLING | {"steps": 10}),
    ("dds", SAMPLING | {"steps": 100}),
    ("dds", SAMPLING | {"eta": 0.5}),
    ("dds", SAMPLING | {"eta": 1.0}),
    ("dds", SAMPLING | {"rounds": 2, "steps": 15}),
    ("dds", SAMPLING | {"discrepancy": 0.0}),
    ("dds", SAMPLING | {"discrepancy": 0.0, "cg": 3}),
    ("dds", SAMPLING | {"discrepancy": 0.0, "proximal": 1.0, "cg": 30}),
    ("dds", SAMPLING | {"discrepancy": 0.0, "proximal": 1.0, "cg": 30, "eta": 1.0}),
    ("dds", SAMPLING | {"discrepancy": 0.0, "proximal": 1.0, "cg": 30, "steps": 100}),
    ("dds", SAMPLING | {"discrepancy": 0.0, "proximal": 1.0, "cg": 30, "eta": 1.0, "steps": 100}),
    ("dds", SAMPLING | {"discrepancy": 0.0, "proximal": 0.3, "cg": 30}),
    ("diffpir", {}),
    ("diffpir", {"discrepancy": 0.0, "cg": 30}),
    ("diffpir", {"discrepancy": 0.0, "cg": 30, "zeta": 1.0, "steps": 100}),
    ("daps", {}),
    ("daps", {"steps": 100}),
    ("daps", {"draw": "langevin"}),
    ("dps", {}),
    ("dps", {"steps": 1000}),
    ("dps", {"jacobian": "identity"}),
    ("dps", {"jacobian": "identity", "steps": 1000}),
    ("red_diff", {}),
    ("red_diff", {"steps": 1000}),
    ("admm", {}),
)
#: In all rows: what the problem is.
EXACT: dict[str, object] = {"nonnegative": False, "model_error": 0.0}
HEAD = """# How far samples are from the posterior

All samplers here are approximations: in `dds`, `diffpir` and `dps` a point stands for a draw from p(x0 | x_t, y), in
`daps` a Gaussian of one width for p(x0 | x_t); `red_diff` and `admm` seek one volume, not samples. Where prior and
noise are Gaussian the posterior is known, the denoiser exact, and the rest is the method's own error. Below: {samples}
samples of `gaussian_toy` (64 voxels, 24 measurements with 0.05 of noise, smooth prior of deviation 0.5; `model_error`
0, since the operator is exact), settings that
differ from the defaults (of `dds`, whose defaults seek one good volume, from those as a sampler: {sampling}), and over
all voxels

- bias: root mean square of (sample mean - posterior mean) / posterior deviation; exact samples have {floor:.2f},
- spread: mean of sample deviation / posterior deviation; 1 is right, below 1 is too sure,
- error: root mean square error of one sample, and of the samples' mean, against the truth. The posterior's mean has
  {best:.3f}, an exact sample {exact:.3f},
- misfit: weighted mean squared residual at the end. Exact samples have {misfit:.2f},
- denoiser calls and operator calls (forward and adjoint), for one sample.

| solver | settings | bias | spread | error, one sample | error, mean | misfit | denoiser calls | operator calls |
|---|---|---|---|---|---|---|---|---|"""
FOOT = """
Written by `benchmarks/quality/sampler_bias.py`. A deviation map made of such samples shows where the reconstruction is
unsure, not by how much: with a `spread` below 1 it is too sure, above 1 not sure enough.
"""


def told(settings: dict[str, object]) -> str:
    """What the table says of settings: those that differ."""
    if SAMPLING.keys() <= settings.keys():
        rest = {key: value for key, value in settings.items() if value != SAMPLING.get(key)}
        return f"as a sampler, {_listed(rest)}" if rest else "as a sampler"
    return _listed(settings) or "(defaults)"


def _listed(settings: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def measure(toy: GaussianToy, name: str, settings: dict[str, object], samples: int) -> dict[str, float]:
    """Bias, spread, errors and misfit of `samples` draws, made in one batch: each item has its own noise."""
    y = toy.problem.y.expand(samples, *toy.problem.y.shape[1:]).clone()
    problem = dataclasses.replace(toy.problem, y=y)
    solution = solve(problem, pdframe.build("solver", name, prior=toy.prior, **EXACT, **settings))
    sure = toy.posterior_covariance.diagonal().sqrt().reshape(toy.truth.shape)
    mean, deviation = solution.x.mean(0, keepdim=True), solution.x.std(0, keepdim=True)
    weights = problem.noise.inverse_variance(y)
    return {
        "bias": _rms((mean - toy.posterior_mean) / sure),
        "spread": float((deviation / sure).mean()),
        "error_sample": _rms(solution.x - toy.truth),
        "error_mean": _rms(mean - toy.truth),
        "misfit": float((weights * (y - problem.operator.forward(solution.x)) ** 2).mean()),
        "network": solution.usage.network_calls / samples,
        "calls": (solution.usage.forward_calls + solution.usage.adjoint_calls) / samples,
    }


def exact(toy: GaussianToy, samples: int) -> dict[str, float]:
    """The same numbers for draws from the posterior itself."""
    root = torch.linalg.cholesky(toy.posterior_covariance)
    z = torch.randn(samples, root.shape[0], generator=torch.Generator().manual_seed(0), dtype=root.dtype)
    x = toy.posterior_mean + (z @ root.T).reshape(samples, *toy.truth.shape[1:])
    residual = toy.problem.y - toy.problem.operator.forward(x)
    weights = toy.problem.noise.inverse_variance(residual)
    return {
        "error_sample": _rms(x - toy.truth),
        "error_mean": _rms(toy.posterior_mean - toy.truth),
        "misfit": float((weights * residual**2).mean()),
    }


def _rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


def main() -> None:
    toy = gaussian_toy()
    truth = exact(toy, SAMPLES)
    print(
        HEAD.format(
            samples=SAMPLES,
            floor=SAMPLES**-0.5,
            best=truth["error_mean"],
            exact=truth["error_sample"],
            misfit=truth["misfit"],
            sampling=_listed(SAMPLING),
        )
    )
    for name, settings in SETTINGS:
        m = measure(toy, name, settings, SAMPLES)
        words = told(settings)
        print(
            f"| `{name}` | {words} | {m['bias']:.2f} | {m['spread']:.2f} | {m['error_sample']:.3f} "
            f"| {m['error_mean']:.3f} | {m['misfit']:.2f} | {m['network']:.0f} | {m['calls']:.0f} |"
        )
    print(FOOT, end="")


if __name__ == "__main__":
    main()
