"""The networks of the slice priors: presets, and what a network is told beside the slices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pdframe.ct.checkpoint import SHIPPED, NetworkCard, load_checkpoint, shipped_checkpoint
from pdframe.ct.network_prior import log_spacing
from pdframe.nn.denoiser import UNetDenoiser
from pdframe.nn.unet import UNetShape

#: log(spacing), three axes, and log(stride).
CONDITIONS = 4

PRESETS: dict[str, UNetShape] = {
    # What two CPU cores can train: 3.8 M parameters, five levels so that a whole slice is seen, attention where 128 x
    # 128 pixels have become 256 and 64 tokens. A training step of 8 slices of 128 x 128 costs 0.87 of the operations of
    # one of 64 patches of the patch prior's `compact`.
    "compact": UNetShape(
        dims=2, width=32, multipliers=(1, 2, 3, 3, 3), blocks=1, attention=(8, 16), conditions=CONDITIONS, places=True
    ),
    # For tests: seconds, not minutes.
    "tiny": UNetShape(dims=2, width=8, multipliers=(1, 2), blocks=1, attention=(), conditions=CONDITIONS),
}


class Card(NetworkCard):
    """What a checkpoint of a slice prior was made for and from: slices seen together, at one of `strides`."""

    strides: tuple[int, ...] = (1,)

    @property
    def slices(self) -> int:
        """How many are seen together: the network's channels."""
        return self.unet.in_channels

    def network(self) -> UNetDenoiser:
        return UNetDenoiser(self.unet, self.deviation, self.precondition)


def conditions(spacing_mm: Sequence[float], stride: int) -> Tensor:
    """(4,): log of the voxel spacing over 2 mm, z, y, x, and log of the stride: how far the slices of a group are
    apart, in slices. DiffusionBlend gives its network a label for each stride, and knows no spacing.
    """
    return torch.cat([log_spacing(spacing_mm), torch.tensor([float(stride)]).log()])


def shipped_weights(name: str) -> Path:
    """The checkpoint that comes with pdframe for the prior of that name."""
    return shipped_checkpoint("pdframe_slice", name)


def load_weights(name: str, weights: str | Path, slices: int) -> tuple[UNetDenoiser, Card]:
    """The network of prior `name` and its card; 'shipped' or a path."""
    path = shipped_weights(name) if str(weights) == SHIPPED else Path(weights)
    network, card = load_checkpoint(path, Card)
    if card.slices != slices:
        raise ValueError(f"{path} sees {card.slices} slices together: {name} needs a checkpoint that sees {slices}")
    return network, card
