"""GroupNorm, alone or with SiLU behind it: torch's, or a loop of our own where torch's is slow."""

from __future__ import annotations

import functools
from math import gcd
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

#: The loop runs on one thread: beside it torch's own threads wait in a busy loop, and two of ours were slower than one
#: (measured). With more threads than this torch's form is taken to be faster.
FEW_THREADS = 4
#: The memory format that convolutions like, by the number of spatial axes.
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


class GroupNorm(nn.GroupNorm):
    """GroupNorm over a number of groups that fits the channels.

    On a CPU and without gradients, bfloat16 in channels-last order goes through `norm_kernel`: torch's own took 41 % of
    the patch network's time there, up to 40 times as long where groups are narrow (measured), and rounds once more.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(32 if channels % 32 == 0 else gcd(8, channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        if _is_for_kernel(x):
            return self._by_kernel(x, activate=False)
        # On CPUs the backward pass of GroupNorm in channels-last order costs several times two copies (measured; of
        # images in bfloat16 only).
        slow = x.ndim == 5 or x.dtype == torch.bfloat16
        if slow and x.device.type == "cpu" and torch.is_grad_enabled():
            return super().forward(x.contiguous()).contiguous(memory_format=CHANNELS_LAST[x.ndim - 2])
        return super().forward(x)

    def activated(self, x: Tensor) -> Tensor:
        """SiLU of the normalised x."""
        return self._by_kernel(x, activate=True) if _is_for_kernel(x) else functional.silu(self(x))

    def _by_kernel(self, x: Tensor, *, activate: bool) -> Tensor:
        out = torch.empty_like(x)
        weight, bias = self.weight.float().numpy(), self.bias.float().numpy()
        _kernel().normalise(_bits(x), weight, bias, self.num_groups, self.eps, activate, _bits(out))
        return out


def _is_for_kernel(x: Tensor) -> bool:
    fits = x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.ndim - 2 in CHANNELS_LAST and x.numel()
    if not fits or torch.is_grad_enabled() or torch.get_num_threads() > FEW_THREADS:
        return False
    return x.is_contiguous(memory_format=CHANNELS_LAST[x.ndim - 2]) and _kernel() is not None


def _bits(x: Tensor) -> np.ndarray:
    """(items, positions, channels) of x, in its own memory."""
    return x.detach().movedim(1, -1).reshape(len(x), -1, x.shape[1]).view(torch.int16).numpy().view(np.uint16)


@functools.cache
def _kernel() -> ModuleType | None:
    """The compiled loop; None where numba is missing or broken, which torch's own serves as well."""
    try:
        from pdframe.nn import norm_kernel

        one = np.zeros((1, 1, 1), np.uint16)
        norm_kernel.normalise(one, np.ones(1, np.float32), np.ones(1, np.float32), 1, 1e-5, True, one.copy())
    except Exception:  # a broken numba fails in many ways
        return None
    return norm_kernel
