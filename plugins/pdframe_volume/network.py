"""The network of the whole-volume prior: presets, and its card."""

from __future__ import annotations

from pdframe.ct.checkpoint import NetworkCard
from pdframe.nn.denoiser import UNetDenoiser
from pdframe.nn.unet import UNetShape

#: log(spacing), three axes.
CONDITIONS = 3

PRESETS: dict[str, UNetShape] = {
    # The same levels as `compact` of the patch prior, at the same depth below the voxel.
    "compact": UNetShape(
        in_channels=1, width=16, multipliers=(1, 2, 4, 8), blocks=1, attention=(8,), conditions=CONDITIONS, places=True
    ),
    # For tests: seconds, not minutes.
    "tiny": UNetShape(in_channels=1, width=8, multipliers=(1, 2), blocks=1, attention=(), conditions=CONDITIONS),
}


class Card(NetworkCard):
    """What a checkpoint of the whole-volume prior was made for and from."""

    def network(self) -> UNetDenoiser:
        return UNetDenoiser(self.unet, self.deviation, self.precondition)
