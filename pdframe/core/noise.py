"""Noise models: how a clean measurement becomes a noisy one, and how far each value can be trusted."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from pdframe.core.interface import Interface


class Noise(Interface):
    """A noise model on the data space."""

    @abc.abstractmethod
    def sample(self, clean: Tensor, *, rng: torch.Generator) -> Tensor:
        """One noisy measurement of a clean one; the same shape."""

    @abc.abstractmethod
    def inverse_variance(self, y: Tensor) -> Tensor:
        """1 / variance of each value of y, estimated from y itself; the shape of y. All ones if noiseless."""


@dataclass(frozen=True)
class NoNoise(Noise):
    """The measurement as it is."""

    def sample(self, clean: Tensor, *, rng: torch.Generator) -> Tensor:
        return clean

    def inverse_variance(self, y: Tensor) -> Tensor:
        return torch.ones_like(y)


@dataclass(frozen=True)
class GaussianNoise(Noise):
    """Independent noise of one standard deviation, in the unit of the data."""

    deviation: float

    def sample(self, clean: Tensor, *, rng: torch.Generator) -> Tensor:
        return clean + self.deviation * torch.randn(clean.shape, generator=rng, dtype=clean.dtype).to(clean.device)

    def inverse_variance(self, y: Tensor) -> Tensor:
        return torch.full_like(y, 1.0 / self.deviation**2)


@dataclass(frozen=True)
class PhotonNoise(Noise):
    """Log-corrected photon counts: N ~ Poisson(I0 exp(-l)) + N(0, electronic^2), y = -log(N / I0).

    `photons` is I0, the mean count of an unattenuated ray; `electronic` is the read-out noise in counts. Counts
    below half a photon are set there before the logarithm, so a starved ray reads long, not infinite.
    """

    photons: float
    electronic: float = 0.0

    def sample(self, clean: Tensor, *, rng: torch.Generator) -> Tensor:
        mean = self.photons * torch.exp(-clean.double().cpu())
        counts = torch.poisson(mean, generator=rng)
        counts += self.electronic * torch.randn(mean.shape, generator=rng, dtype=mean.dtype)
        return (-torch.log(counts.clamp_min(0.5) / self.photons)).to(clean)

    def inverse_variance(self, y: Tensor) -> Tensor:
        """Delta method: var(log N) = (N + electronic^2) / N^2 (Thibault et al., Proc. SPIE 6065, 2006)."""
        counts = self.photons * torch.exp(-y)
        return counts**2 / (counts + self.electronic**2)
