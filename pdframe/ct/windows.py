"""Hounsfield windows: an explicit range in which images are compared or shown."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pdframe.ct.units import attenuation_to_hu


@dataclass(frozen=True)
class Window:
    """Closed range of Hounsfield units."""

    low_hu: float
    high_hu: float

    def __post_init__(self) -> None:
        if not self.low_hu < self.high_hu:
            raise ValueError(f"a window needs low < high in HU: got [{self.low_hu:g}, {self.high_hu:g}]")

    @property
    def width_hu(self) -> float:
        return self.high_hu - self.low_hu

    def clip(self, mu: Tensor) -> Tensor:
        """Attenuation in 1/mm -> HU, clipped to the window; float32 or the dtype of mu if wider."""
        return attenuation_to_hu(mu).clamp(self.low_hu, self.high_hu)


#: Everything that metrics look at unless told otherwise: air to dense bone.
METRIC = Window(-1000.0, 1000.0)
