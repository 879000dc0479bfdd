"""The gradient of the U-Nets in bfloat16 on CPUs, against float64, which no kernel of oneDNN computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pdframe.nn.norm import CHANNELS_LAST
from pdframe.nn.unet import UNet, UNetShape


def _gradient(net: UNet, x: Tensor, dtype: torch.dtype) -> Tensor:
    net = net.double() if dtype == torch.float64 else net.float()
    precise = next(net.parameters()).dtype
    net.zero_grad()
    # A gradient that is not written shows what lay there before.
    torch.full((4_000_000,), 1e30)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = net(x.to(precise), torch.linspace(0, 1, len(x), dtype=precise))
    (out.double() ** 2).mean().backward()
    return torch.cat([p.grad.flatten().double() for p in net.parameters()])


# The lowest level has half of these edges. Where it is 2 x 2 x 2, as in the compact patch network, torch 2.13's own
# convolution has a gradient of 1e30 on a CPU with AVX-512.
@pytest.mark.parametrize("spatial", [(4, 4, 4), (4, 8, 16), (2, 8, 8), (8, 8, 8), (4, 4), (2, 8), (8, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_in_low_precision_is_that_of_float64(spatial: tuple[int, ...], dtype: torch.dtype):
    dims = len(spatial)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = UNet(UNetShape(dims=dims, in_channels=1, width=32, multipliers=(1, 2), attention=()))
        torch.nn.init.normal_(net.tail.weight, std=0.1)
        x = torch.randn(4, 1, *spatial).contiguous(memory_format=CHANNELS_LAST[dims])
    net = net.to(memory_format=CHANNELS_LAST[dims])
    exact = _gradient(net, x, torch.float64)
    error = float((_gradient(net, x, dtype) - exact).norm() / exact.norm())
    assert error < (1e-4 if dtype == torch.float32 else 0.1)
