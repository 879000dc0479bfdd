"""Made-up couches below a patient: training scans are cropped to the body, what a prior meets later is not.

A couch is one to three thin shells, flat or hollow like a cradle, foam between them, the same in every axial slice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pdframe.ct.checkpoint import NetworkCard

#: Densest tissue that counts as air when the body's back is looked for, HU.
BODY_HU = -400.0


def with_couch(values: Tensor, spacing_mm: tuple[float, ...], card: NetworkCard, rng: torch.Generator) -> Tensor:
    """(z, y, x) in network units with a random couch under the body, where there is only air.

    y runs towards the patient's back. A volume without a body, or whose body reaches the lower edge, stays as it is.
    """
    dense = values > (BODY_HU - card.centre_hu) / card.scale_hu
    rows, columns = (torch.nonzero(dense.any(0).float().mean(axis) > 0.02).flatten() for axis in (1, 0))
    if not len(rows) or int(rows[-1]) >= values.shape[1] - 2:
        return values
    back_mm = (int(rows[-1]) + 1) * spacing_mm[1] + _between(-4.0, 20.0, rng)
    middle_mm = float(columns.float().mean() + 0.5) * spacing_mm[2] + _between(-20.0, 20.0, rng)
    couch = _couch_hu(values.shape[1:], spacing_mm[1:], (back_mm, middle_mm), rng)
    return torch.maximum(values, (couch.clamp_min(card.clip_hu[0]) - card.centre_hu) / card.scale_hu)


def _couch_hu(
    shape: torch.Size, spacing_mm: tuple[float, ...], place_mm: tuple[float, float], rng: torch.Generator
) -> Tensor:
    """The couch's cross-section (y, x) in HU, air of -1000 around it. place_mm: the top shell's lowest point (y, x)."""
    y = (torch.arange(shape[0]) + 0.5)[:, None] * spacing_mm[0] - place_mm[0]
    x = (torch.arange(shape[1]) + 0.5)[None, :] * spacing_mm[1] - place_mm[1]
    inside = x.abs() < 0.5 * _between(300.0, 560.0, rng)
    radius_mm = float(torch.exp(torch.tensor(_between(5.5, 8.5, rng))))  # 240 mm (a cradle) to 4900 mm (flat)
    density_hu, foam_hu = _between(-700.0, 400.0, rng), _between(-1000.0, -880.0, rng)
    section, depth_mm = torch.full((1, 1), -1000.0).expand(shape), 0.0
    for shell in range(int(torch.randint(1, 4, (), generator=rng))):
        if shell:
            gap_mm = _between(6.0, 50.0, rng)
            foam = _covered(y - depth_mm + _sag(x, radius_mm), 0.0, gap_mm, spacing_mm[0])
            section = torch.maximum(section, -1000 + foam * (foam_hu + 1000))
            depth_mm, radius_mm = depth_mm + gap_mm, radius_mm * _between(0.8, 1.6, rng)
        thickness_mm = float(torch.exp(torch.tensor(_between(-0.4, 1.6, rng))))  # 0.7 to 5 mm
        covered = _covered(y - depth_mm + _sag(x, radius_mm), 0.0, thickness_mm, spacing_mm[0])
        section = torch.maximum(section, -1000 + covered * (density_hu + 1000))
    return torch.where(inside, section, -1000.0)


def _sag(x_mm: Tensor, radius_mm: float) -> Tensor:
    """How far a cradle has risen at x."""
    return x_mm.square() / (2 * radius_mm)


def _covered(y_mm: Tensor, low_mm: float, high_mm: float, step_mm: float) -> Tensor:
    """Share of each voxel of height `step_mm` around y that lies between two heights: no step is drawn as a stair."""
    overlap = torch.minimum(y_mm + step_mm / 2, torch.tensor(high_mm)) - torch.maximum(
        y_mm - step_mm / 2, torch.tensor(low_mm)
    )
    return (overlap / step_mm).clamp(0, 1)


def _between(low: float, high: float, rng: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))
