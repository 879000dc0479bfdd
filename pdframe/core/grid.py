"""Where the samples of an unknown lie in space."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, prod


@dataclass(frozen=True)
class Grid:
    """A regular grid of samples along any number of spatial axes.

    Axes are in the order of the tensor: for a CT volume (z, y, x). `spacing` and `centre` are in millimetres
    for CT; the core only needs them to be in one unit. `unit` is the unit of the values that live on the grid
    ("1/mm" for attenuation). A tensor on the grid has shape (batch, channel, *shape).
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    centre: tuple[float, ...] = ()
    unit: str = "1/mm"

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "spacing", tuple(float(s) for s in self.spacing))
        object.__setattr__(self, "centre", tuple(float(c) for c in self.centre) or (0.0,) * len(self.shape))
        if not len(self.shape) == len(self.spacing) == len(self.centre):
            raise ValueError(
                f"a grid needs one spacing and one centre per axis: got shape {self.shape}, "
                f"spacing {self.spacing}, centre {self.centre}"
            )
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"every axis of a grid needs at least one sample: got shape {self.shape}")
        if not all(isfinite(s) and s > 0 for s in self.spacing):
            raise ValueError(f"grid spacing must be positive and finite: got {self.spacing}")

    @property
    def size(self) -> int:
        """Number of samples."""
        return prod(self.shape)

    @property
    def extent(self) -> tuple[float, ...]:
        """Edge lengths of the box that the samples (as cells) fill."""
        return tuple(n * s for n, s in zip(self.shape, self.spacing, strict=True))
