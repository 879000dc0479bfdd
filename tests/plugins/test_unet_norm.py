"""GroupNorm and SiLU of bfloat16 on a CPU: our own loop against float32, and where it steps aside."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pdframe.core.seeds import generator
from pdframe.nn import norm
from pdframe.nn.norm import CHANNELS_LAST, GroupNorm

pytest.importorskip("numba", reason="numba is not installed")


def _given(channels: int, *spatial: int) -> tuple[GroupNorm, torch.Tensor]:
    rng, layer = generator(channels), GroupNorm(channels)
    layer.weight.data = torch.rand(channels, generator=rng) + 0.5
    layer.bias.data = torch.randn(channels, generator=rng)
    means = torch.linspace(-5, 5, channels).reshape(-1, *(1,) * len(spatial))
    x = 3 * torch.randn(3, channels, *spatial, generator=rng) + means
    return layer, x.bfloat16().contiguous(memory_format=CHANNELS_LAST[len(spatial)])


@pytest.mark.parametrize(("channels", "spatial"), [(16, (5, 6, 7)), (32, (4, 4, 4)), (128, (2, 2, 2)), (24, (9, 8))])
@pytest.mark.parametrize("activate", [False, True])
def test_it_is_the_float32_result_rounded_once(channels: int, spatial: tuple[int, ...], activate: bool):
    layer, x = _given(channels, *spatial)
    with torch.no_grad():
        assert norm._is_for_kernel(x)
        got = layer.activated(x) if activate else layer(x)
        want = functional.group_norm(x.double(), layer.num_groups, layer.weight.double(), layer.bias.double())
    want = functional.silu(want) if activate else want
    assert got.dtype == torch.bfloat16 and got.is_contiguous(memory_format=CHANNELS_LAST[len(spatial)])
    # Half a unit in the last of bfloat16's 8 bits, and the float32 sums.
    torch.testing.assert_close(got.double(), want, rtol=2**-8, atol=1e-5)


def test_extreme_values_stay_finite_and_keep_their_sign():
    layer = GroupNorm(8)
    x = torch.zeros(1, 8, 10, 10, dtype=torch.bfloat16)
    x[..., 0, 0], x[..., 5, 5] = 1e15, -1e15
    x = x.contiguous(memory_format=torch.channels_last)
    layer.weight.data = torch.full((8,), 1e3)
    with torch.no_grad():
        got, plain = layer.activated(x).float(), functional.silu(functional.group_norm(x.double(), 8) * 1e3)
    assert bool(got.isfinite().all())
    torch.testing.assert_close(got.double(), plain, rtol=2**-7, atol=1e-5)


def test_torch_takes_over_where_the_loop_does_not_fit(monkeypatch: pytest.MonkeyPatch):
    layer, x = _given(16, 4, 4, 4)
    assert not norm._is_for_kernel(x)  # gradients are on
    with torch.no_grad():
        ours = layer.activated(x)
        assert not norm._is_for_kernel(x.float())
        assert not norm._is_for_kernel(x.contiguous())
        monkeypatch.setattr(norm, "_kernel", lambda: None)  # no numba
        assert not norm._is_for_kernel(x)
        torch.testing.assert_close(layer.activated(x).float(), ours.float(), rtol=2**-6, atol=2e-2)
