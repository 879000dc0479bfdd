"""A training volume with what every draw of a patch from it needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from pdframe.ct.training_set import Volume
from pdframe_patch.context import ContextNoise, area_matrices, downsample, noise_gain


@dataclass(frozen=True)
class PatchVolume:
    """A scan on one grid, in network units, with its clean context."""

    values: Tensor
    spacing_mm: tuple[float, float, float]
    patch: int
    context: Tensor = field(repr=False)

    @cached_property
    def context_noise(self) -> ContextNoise:
        return ContextNoise(self.values.shape, self.patch)

    @cached_property
    def noise_gain(self) -> float:
        return noise_gain(self.values.shape, self.patch)


def with_context(volume: Volume, patch: int) -> PatchVolume:
    context = downsample(volume.values, area_matrices(volume.values.shape, patch))
    return PatchVolume(volume.values, volume.spacing_mm, patch, context)
