"""Hounsfield units <-> attenuation in 1/mm: the only file where they change into each other."""

from __future__ import annotations

from torch import Tensor

#: Attenuation of water, 1/mm. A convention (about 65 keV); HU do not depend on it, photon noise does.
WATER = 0.02

AIR_HU = -1000.0


def hu_to_attenuation(hu: Tensor) -> Tensor:
    """mu = WATER (1 + HU / 1000), 1/mm; values below air are set to air, since attenuation is not negative."""
    return (WATER * (1.0 + hu / 1000.0)).clamp_min(0.0)


def attenuation_to_hu(mu: Tensor) -> Tensor:
    """HU = 1000 (mu / WATER - 1); not clipped, so that a reconstruction shows its negative values."""
    return 1000.0 * (mu / WATER - 1.0)
