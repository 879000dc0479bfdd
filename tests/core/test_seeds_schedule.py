"""Random streams and noise ladders."""

from __future__ import annotations

import math

import pytest
import torch

from pdframe.core.schedule import ddpm_sigmas, edm_sigmas, geometric_sigmas
from pdframe.core.seeds import generator, normal


def _draw(*key: object) -> torch.Tensor:
    return torch.rand(8, generator=generator(*key))


def test_streams_are_keyed_by_seed_and_role():
    assert torch.equal(_draw(0, "a", 1), _draw(0, "a", 1))
    keys = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", 1), (0, "a1"), (0, "a", "1"), (-1, "a")]
    draws = [tuple(_draw(*key).tolist()) for key in keys]
    assert len(set(draws)) == len(keys)


def test_a_stream_is_the_same_in_every_release():
    assert torch.randint(1 << 30, (3,), generator=generator(0, "golden")).tolist() == [234762607, 899198530, 453989229]


def test_normal_has_the_dtype_and_shape_of_its_model_and_leaves_the_global_stream():
    before = torch.get_rng_state()
    z = normal(torch.zeros(1, 2, 64, 64, dtype=torch.float64), generator(0))
    assert z.dtype == torch.float64 and z.shape == (1, 2, 64, 64)
    assert abs(float(z.std()) - 1) < 0.03 and abs(float(z.mean())) < 0.03
    assert torch.equal(before, torch.get_rng_state())


def test_edm_levels_follow_equation_5():
    levels = edm_sigmas(80.0, 0.002, 18, rho=7.0)
    want = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert levels == pytest.approx(want)
    assert levels[0] == pytest.approx(80) and levels[-1] == pytest.approx(0.002)
    assert all(a > b for a, b in zip(levels, levels[1:], strict=False))


def test_geometric_levels_have_one_ratio_and_are_the_limit_of_edm():
    levels = geometric_sigmas(10.0, 0.1, 5)
    assert levels == pytest.approx([10, 10**0.5, 1, 10**-0.5, 0.1])
    assert edm_sigmas(10.0, 0.1, 5, rho=1e6) == pytest.approx(levels, rel=1e-4)


def test_ddpm_levels_have_the_known_abar():
    levels = ddpm_sigmas(1000)
    assert len(levels) == 1000
    abar = [1 / (1 + s * s) for s in levels]
    assert abar[0] == pytest.approx(4.04e-5, rel=5e-3) and abar[500] == pytest.approx(0.0786, rel=1e-3)
    assert ddpm_sigmas(50) == pytest.approx(levels[::20]) and len(ddpm_sigmas(30)) == 30
    assert math.isclose(levels[-1], math.sqrt(1e-4 / (1 - 1e-4)))


@pytest.mark.parametrize("bad", [(1.0, 2.0, 5), (1.0, 0.0, 5), (math.inf, 1.0, 5), (1.0, 0.1, 0)])
def test_impossible_ladders_are_refused(bad: tuple):
    with pytest.raises(ValueError):
        edm_sigmas(*bad)
    with pytest.raises(ValueError):
        geometric_sigmas(*bad)


def test_one_level_is_the_highest():
    assert edm_sigmas(3.0, 1.0, 1) == geometric_sigmas(3.0, 1.0, 1) == (3.0,)
