"""What every dataset, metric and noise model must do."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from pdframe.core.noise import Noise
from pdframe.core.problem import Dataset, Metric
from pdframe.core.seeds import generator
from pdframe.testing.checks import Check, leaves_global_randomness, require, run_checks


def check_dataset(dataset: Dataset, *, items: int = 2) -> list[Check]:
    """Runs every claim about datasets; loads the first `items` items."""
    claims = (functools.partial(items_hold_what_they_say, count=items), loading_twice_gives_the_same, *DATASET_CLAIMS)
    return run_checks(claims, dataset)


def check_metric(metric: Metric, x: Tensor, truth: Tensor) -> list[Check]:
    """Runs every claim about metrics, on an imperfect x and its truth (1, channel, *spatial)."""
    return run_checks(METRIC_CLAIMS, _Comparison(metric, x, truth))


def check_noise(noise: Noise, clean: Tensor) -> list[Check]:
    """Runs every claim about noise models, on a clean measurement."""
    return run_checks(NOISE_CLAIMS, _Measured(noise, clean))


def names_are_unique_and_in_a_fixed_order(dataset: Dataset) -> str:
    names = dataset.names()
    require(isinstance(names, tuple) and names, f"names must be a tuple that is not empty: got {names!r}")
    require(len(set(names)) == len(names), "two items share a name")
    require(names == dataset.names(), "the order of names changed between two calls")
    return f"{len(names)} items"


def items_hold_what_they_say(dataset: Dataset, *, count: int) -> str:
    for name in dataset.names()[:count]:
        item = dataset.load(name)
        require(item.name == name, f"item {name!r} calls itself {item.name!r}")
        require(
            item.x.shape[0] == 1 and item.x.shape[2:] == item.grid.shape,
            f"{name}: {tuple(item.x.shape)} on {item.grid}",
        )
        require(item.x.dtype == torch.float32, f"{name}: x must be float32: got {item.x.dtype}")
        require(item.x.isfinite().all(), f"{name}: x holds NaN or inf")
        for label, mask in item.masks.items():
            fits = mask.dtype == torch.bool and mask.shape == item.x.shape
            require(fits, f"{name}: mask {label!r} must be bool and shaped like x")
    return f"{min(count, len(dataset.names()))} items"


def loading_twice_gives_the_same(dataset: Dataset) -> str:
    name = dataset.names()[0]
    require(torch.equal(dataset.load(name).x, dataset.load(name).x), f"{name}: two loads differ")
    return name


def an_unknown_name_is_refused_with_the_known_ones(dataset: Dataset) -> str:
    try:
        dataset.load("no such item")
    except KeyError as error:
        require(dataset.names()[0] in str(error), f"the KeyError must list the known names: {error}")
        return "KeyError"
    require(False, "an unknown name must raise KeyError")
    return ""


def loading_leaves_global_randomness_alone(dataset: Dataset) -> str:
    require(leaves_global_randomness(lambda: dataset.load(dataset.names()[0])), "load moved a global stream")
    return "torch, numpy, random"


DATASET_CLAIMS = (
    names_are_unique_and_in_a_fixed_order,
    an_unknown_name_is_refused_with_the_known_ones,
    loading_leaves_global_randomness_alone,
)


@dataclass(frozen=True)
class _Comparison:
    metric: Metric
    x: Tensor
    truth: Tensor


def it_gives_named_finite_numbers(c: _Comparison) -> str:
    values = c.metric.measure(c.x, c.truth)
    require(values, "a metric must give at least one value")
    for name, value in values.items():
        require(isinstance(name, str) and isinstance(value, float), f"must be named floats: got {name!r}: {value!r}")
        require(abs(value) < float("inf"), f"{name} is {value} for an imperfect x")
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def it_tells_a_better_volume_from_a_worse_one(c: _Comparison) -> str:
    better = c.metric.measure(c.truth + 0.1 * (c.x - c.truth), c.truth)
    require(better != c.metric.measure(c.x, c.truth), "a tenth of the error gave the same values")
    return "a tenth of the error"


def a_full_mask_is_no_mask(c: _Comparison) -> str:
    whole, masked = (
        c.metric.measure(c.x, c.truth),
        c.metric.measure(c.x, c.truth, torch.ones_like(c.x, dtype=torch.bool)),
    )
    for name, value in whole.items():
        require(abs(masked[name] - value) <= 1e-6 * max(abs(value), 1), f"{name}: {value} without, {masked[name]} with")
    return f"{len(whole)} values"


def the_volumes_are_left_as_they_were(c: _Comparison) -> str:
    x, truth = c.x.clone(), c.truth.clone()
    c.metric.measure(x, truth)
    require(torch.equal(x, c.x) and torch.equal(truth, c.truth), "measure changed its input")
    return "x and truth"


METRIC_CLAIMS = (
    it_gives_named_finite_numbers,
    it_tells_a_better_volume_from_a_worse_one,
    a_full_mask_is_no_mask,
    the_volumes_are_left_as_they_were,
)


@dataclass(frozen=True)
class _Measured:
    noise: Noise
    clean: Tensor


def a_draw_has_the_form_of_the_clean_data(m: _Measured) -> str:
    y = m.noise.sample(m.clean, rng=generator(0))
    require(y.shape == m.clean.shape and y.dtype == m.clean.dtype, f"got {tuple(y.shape)}, {y.dtype}")
    require(y.isfinite().all(), "a noisy measurement must be finite")
    return str(tuple(y.shape))


def an_equal_generator_gives_an_equal_draw(m: _Measured) -> str:
    first, again = m.noise.sample(m.clean, rng=generator(1)), m.noise.sample(m.clean, rng=generator(1))
    require(torch.equal(first, again), "two draws with equal generators differ")
    untouched = leaves_global_randomness(lambda: m.noise.sample(m.clean, rng=generator(1)))
    require(untouched, "sample moved a global stream")
    return "two draws"


def inverse_variances_are_positive_and_tell_the_spread(m: _Measured) -> str:
    draws = torch.stack([m.noise.sample(m.clean, rng=generator(2, k)) for k in range(64)]).double()
    inverse = m.noise.inverse_variance(m.clean)
    require(inverse.shape == m.clean.shape and (inverse > 0).all(), "must be positive and shaped like y")
    spread = draws.var(0)
    if not spread.any():
        return "no noise"
    ratio = float((spread * inverse).mean())
    require(0.7 < ratio < 1.4, f"the variance of 64 draws is {ratio:.2g} times 1 / inverse_variance")
    return f"variance of 64 draws {ratio:.2f} times the model's"


NOISE_CLAIMS = (
    a_draw_has_the_form_of_the_clean_data,
    an_equal_generator_gives_an_equal_draw,
    inverse_variances_are_positive_and_tell_the_spread,
)
