"""Convolutions in two and three dimensions: torch's, but for a gradient that oneDNN gets wrong on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: On inputs with an edge as short as this oneDNN 3.12 (torch 2.13) leaves part of the gradient by the weights of a
#: bfloat16 convolution unwritten on CPUs with AVX-512: what lay in memory before, up to 1e33, and NaN after some steps
#: of training (measured on Zen 4 for 2 x 2 x 2; longer edges, the gradient by the input, and float32 are right).
SHORT = 2


class _Convolution(nn.Module):
    """Computes in float32 where weights are to learn from inputs with a short edge: little work, as these are small."""

    weight: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and self.weight.requires_grad and _reduced(x) and min(x.shape[2:]) <= SHORT):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).bfloat16()


class Conv2d(_Convolution, nn.Conv2d):
    """torch's `Conv2d`, its gradient by the weights right on every CPU."""


class Conv3d(_Convolution, nn.Conv3d):
    """torch's `Conv3d`, its gradient by the weights right on every CPU."""


def _reduced(x: Tensor) -> bool:
    """Whether a convolution of x would be computed in bfloat16 on a CPU."""
    return x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
