"""Explicit randomness: one generator per role, keyed by a seed, and draws that do not depend on the device."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor


def generator(seed: int, *role: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator keyed by SHA-256 of (seed, role...): equal keys give equal streams, others are independent.

    `generator(7, "sample", 3)` is the stream of the fourth posterior sample, however many are drawn before it.
    """
    digest = hashlib.sha256(json.dumps([seed, *role]).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def normal(like: Tensor, rng: torch.Generator) -> Tensor:
    """Standard normal noise with shape, dtype and device of `like`, drawn where `rng` lives.

    With a CPU generator the numbers are the same whatever device the volume is on.
    """
    return torch.randn(like.shape, generator=rng, dtype=like.dtype, device=rng.device).to(like.device)
