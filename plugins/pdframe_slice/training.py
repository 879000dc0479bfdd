"""Training the slice priors: slices, or triples of slices, of the same volumes that the 3D priors are trained on."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from pdframe.ct.denoiser_training import DenoiserTrainingConfig
from pdframe.ct.training_set import Volume
from pdframe.ct.unet_training import UNetTraining
from pdframe.nn.denoiser import with_channels
from pdframe_slice.network import PRESETS, Card, conditions, shipped_weights

Preset = Literal["compact", "tiny"]
TOGETHER = "slices that are drawn from one volume, to go through the network at once"


class Slice2DTrainingConfig(DenoiserTrainingConfig):
    """What `slice2d` is trained on and how its draws are made; the loop's settings are in [train]."""

    preset: Preset = "compact"
    together: int = Field(4, ge=1, description=TOGETHER)

    def build(self) -> UNetTraining:
        card = self.card(Card, with_channels(PRESETS[self.preset], 1))
        return _training(self, card, "slice2d")


class Blend3TrainingConfig(DenoiserTrainingConfig):
    """What `blend3` is trained on and how its draws are made; the loop's settings are in [train]."""

    preset: Preset = "compact"
    together: int = Field(4, ge=1, description=TOGETHER.replace("slices", "triples"))
    strides: tuple[PositiveInt, ...] = Field(
        (1, 3), min_length=1, description="distances between slices, as likely each"
    )

    def build(self) -> UNetTraining:
        card = self.card(Card, with_channels(PRESETS[self.preset], 3), strides=self.strides)
        return _training(self, card, "blend3")


def _training(settings: Slice2DTrainingConfig | Blend3TrainingConfig, card: Card, name: str) -> UNetTraining:
    return UNetTraining(
        settings.network(card, shipped_weights(name)),
        card,
        settings,
        *settings.read(),
        draw=partial(draw_slices, size=card.slices, strides=card.strides),
        together=settings.together,
        validation_draws=8,
    )


def draw_slices(volume: Volume, rng: torch.Generator, *, size: int, strides: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(size, y, x): slices at a random height and stride, and their conditions; of a volume with at least `size`."""
    count = len(volume.values)
    possible = [stride for stride in strides if (size - 1) * stride < count] or [1]
    stride = possible[int(torch.randint(len(possible), (1,), generator=rng))]
    first = int(torch.randint(count - (size - 1) * stride, (1,), generator=rng))
    last = first + (size - 1) * stride
    return volume.values[first : last + 1 : stride], conditions(volume.spacing_mm, stride)
