"""Training the whole-volume prior, on the same scans as the other priors."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pdframe.ct.denoiser_training import DenoiserTrainingConfig
from pdframe.ct.network_prior import log_spacing
from pdframe.ct.training_set import GridRange, Volume
from pdframe.ct.unet_training import UNetTraining
from pdframe_volume.network import PRESETS, Card


class VolumeTrainingConfig(DenoiserTrainingConfig):
    """What `volume3d` is trained on and how its draws are made; the loop's settings are in [train]."""

    preset: Literal["compact", "tiny"] = "compact"
    start_from: Literal[""] | Path = Field("", description="checkpoint whose weights to start from")
    grids: GridRange = Field(
        GridRange(protocol_share=1.0, protocol_mm=5.5, protocol_voxels=64),
        description="cubes of 64 voxels by default: the whole field of the protocol, at half its resolution",
    )

    def build(self) -> UNetTraining:
        card = self.card(Card, PRESETS[self.preset])
        return UNetTraining(self.network(card), card, self, *self.read(), draw=draw_volume)


def draw_volume(volume: Volume, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """(1, z, y, x): the volume itself; and its conditions."""
    return volume.values[None], log_spacing(volume.spacing_mm)
