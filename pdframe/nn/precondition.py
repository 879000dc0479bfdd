"""How the output of a network becomes an estimate of the clean signal, and in which arithmetic the network runs.

Two parametrisations behind one contract, `denoise(x, sigma)` with x = x0 + sigma * noise: "edm", Karras et al. 2022
(arXiv 2206.00364, eq. 7 and 8), and "vp", the epsilon-prediction of DDPM. Derived in docs/math/edm-preconditioning.md.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Precondition = Literal["edm", "vp"]


@dataclass(frozen=True)
class Scaling:
    """The estimate is `skip * x + out * F(given * x; label)`; each has the shape of sigma."""

    given: Tensor
    skip: Tensor
    out: Tensor
    label: Tensor


def scaling(kind: Precondition, sigma: Tensor, deviation: float) -> Scaling:
    """The four numbers at noise level sigma, for a signal of zero mean and standard deviation `deviation`."""
    if kind == "vp":
        given = (sigma**2 + 1).rsqrt()
        return Scaling(given, torch.ones_like(sigma), -sigma, vp_time(sigma))
    given = (sigma**2 + deviation**2).rsqrt()
    # The embedding's fastest wave turns once for a change of sigma by a factor of 1.9.
    return Scaling(given, (deviation * given) ** 2, sigma * deviation * given, sigma.log() / 100)


def loss_weight(kind: Precondition, sigma: Tensor, deviation: float) -> Tensor:
    """What a squared error of the estimate weighs: EDM's lambda(sigma), eq. 8; for VP the plain error of epsilon."""
    if kind == "vp":
        return sigma**-2
    return (sigma**2 + deviation**2) / (sigma * deviation) ** 2


def vp_time(sigma: Tensor) -> Tensor:
    """The continuous DDPM time in [0, 1] whose linear beta schedule (1e-4 to 0.02, T = 1000) has this sigma.

    From log(abar_t) ~ -(b0 t + (b1 - b0) t^2 / 2) T, solved for t.
    """
    low, high = 1e-4 * 1000, 0.02 * 1000
    depth = torch.log1p(sigma**2)
    return (torch.sqrt(low**2 + 2 * (high - low) * depth) - low) / (high - low)


#: Units that multiply bfloat16 on CPUs: torch's word that one is there, and the words of ONEDNN_MAX_CPU_ISA that let
#: oneDNN use it.
CPU_UNITS = {
    "AMX": ("_is_amx_tile_supported", ("AMX",)),
    "AVX-512": ("_is_avx512_bf16_supported", ("AMX", "FP16", "BF16")),
}


def cpu_bfloat16() -> str:
    """The unit of this CPU by which oneDNN multiplies bfloat16, or "".

    On Zen 4 the patch network takes half the time of float32 (measured).
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper().replace("DEFAULT", "AMX")
    for unit, (probe, words) in CPU_UNITS.items():
        if any(word in limit for word in words) and getattr(torch.cpu, probe, lambda: False)():
            return unit
    return ""


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is the faster arithmetic here: tensor cores, or a CPU with a unit for it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(cpu_bfloat16())
