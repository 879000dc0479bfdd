"""A U-Net as a denoiser of whatever lies in its output channels: slices, triples of slices, whole volumes."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from torch import Tensor, nn

from pdframe.core.prior import per_item
from pdframe.nn.norm import CHANNELS_LAST
from pdframe.nn.precondition import Precondition, fast_bfloat16, scaling
from pdframe.nn.unet import UNet, UNetShape

#: Values that a 3D U-Net holds at once, for each voxel and channel of its first level: without a gradient, and with one
#: (counted on the presets of `patch3d`; the spread between them is a third). A 2D one, whose levels shrink more slowly,
#: holds twice as many (measured on `slice2d`).
HELD, HELD_FOR_GRADIENT = 14, 64


class UNetDenoiser(nn.Module):
    """(noisy (b, channels, *spatial), sigma (b,), conditions (b, n)) -> the clean signal, of the shape of `noisy`.

    In units where the signal has zero mean and standard deviation `deviation`. Every spatial edge must be a multiple of
    `unet.shape.multiple`. `channels` are seen and estimated together, at one noise level.
    """

    def __init__(self, shape: UNetShape, deviation: float, precondition: Precondition = "edm") -> None:
        super().__init__()
        self.unet = UNet(shape)
        self.deviation, self.precondition = deviation, precondition

    def forward(self, noisy: Tensor, sigma: Tensor, conditions: Tensor) -> Tensor:
        scale = scaling(self.precondition, sigma, self.deviation)
        given = (noisy * per_item(scale.given, noisy)).contiguous(memory_format=CHANNELS_LAST[self.unet.shape.dims])
        with torch.autocast(noisy.device.type, torch.bfloat16, enabled=fast_bfloat16(noisy.device)):
            answer = self.unet(given, scale.label, conditions)
        return per_item(scale.skip, noisy) * noisy + per_item(scale.out, noisy) * answer.float()


@functools.lru_cache(maxsize=64)
def unet_flops(shape: UNetShape, spatial: tuple[int, ...]) -> int:
    """Floating-point operations of one item of that size through a U-Net, by torch's counter; nothing is computed."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        UNet(shape)(torch.zeros(1, shape.in_channels, *spatial), torch.zeros(1), torch.zeros(1, shape.conditions))
    return counter.get_total_flops()


def unet_bytes(shape: UNetShape, pixels: int, device: torch.device | str, *, gradient: bool = False) -> int:
    """Memory of a U-Net at work on so many pixels or voxels in all, roughly; its weights not counted."""
    values = pixels / shape.fold**shape.dims * shape.width * (2 if shape.dims == 2 else 1)
    itemsize = 2 if fast_bfloat16(torch.device(device)) else 4
    return int(itemsize * values * (HELD_FOR_GRADIENT if gradient else HELD))


def with_channels(shape: UNetShape, channels: int) -> UNetShape:
    """The same U-Net for a signal of that many channels."""
    return replace(shape, in_channels=channels, out_channels=channels)
