"""The patch network: what it is given, how its output becomes an estimate of the clean patch, and presets.

Five input channels: the noisy patch, the downsampled noisy volume, the patch's z, y and x coordinates (-1 to 1
over the volume, beyond in the padding). The voxel spacing and the volume's extent steer it beside the noise level,
so that one checkpoint serves any grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pdframe.core.prior import per_item
from pdframe.ct.network_prior import log_spacing
from pdframe.nn.precondition import Precondition, fast_bfloat16, scaling
from pdframe.nn.unet import UNet, UNetShape

#: log(spacing) and log(extent), three axes each.
CONDITIONS = 6

PRESETS: dict[str, UNetShape] = {
    # Table 6 of arXiv 2512.18161, as its re-implementations read it: 68.59 M parameters, no spacing input.
    "paper": UNetShape(width=64, multipliers=(1, 2, 4, 4), blocks=2, attention=(8,)),
    # What two CPU cores can train and run: narrow where voxels are many, wide where they are few.
    # Attention at 8^3 and 4^3 tokens that know their place is what looks a patch up in the context channel.
    "compact": UNetShape(
        width=16, multipliers=(1, 2, 4, 8), blocks=1, attention=(4, 8), conditions=CONDITIONS, places=True
    ),
    # Half the resolution for all but a thin first level: cheaper by a third on matrix units, slower to learn.
    "folded": UNetShape(width=64, multipliers=(1, 1, 2), blocks=1, attention=(8,), fold=2, conditions=CONDITIONS),
    # For tests: seconds, not minutes.
    "tiny": UNetShape(width=8, multipliers=(1, 2), blocks=1, attention=(), conditions=CONDITIONS),
}


@dataclass(frozen=True)
class Inputs:
    """What the network may see; switching one off is an ablation (its channels are fed zeros)."""

    context: bool = True
    position: bool = True
    spacing: bool = True


class PatchNetwork(nn.Module):
    """(patches (b, 1, P, P, P), sigma (b,), context, context_sigma, coordinates, conditions) -> clean patches.

    All in network units (value 0 is the middle of the range, `deviation` its standard deviation).
    `precondition="edm"`: Karras et al. 2022, eq. 7. The context is scaled by its own noise level, not by the
    patch's: it is the mean of many voxels and far cleaner. `"vp"`: the paper's variance-preserving
    epsilon-prediction, x_t = (x0 + sigma eps) / sqrt(1 + sigma^2), behind the same contract.
    """

    def __init__(
        self,
        shape: UNetShape,
        deviation: float,
        precondition: Precondition = "edm",
        inputs: Inputs | None = None,
    ) -> None:
        super().__init__()
        self.unet = UNet(replace(shape, in_channels=5, out_channels=1))
        self.deviation, self.precondition = deviation, precondition
        self.inputs = inputs or Inputs()

    def forward(
        self,
        patches: Tensor,
        sigma: Tensor,
        context: Tensor,
        context_sigma: Tensor,
        coordinates: Tensor,
        conditions: Tensor,
    ) -> Tensor:
        scale = scaling(self.precondition, sigma, self.deviation)
        context = context * per_item((context_sigma**2 + self.deviation**2).rsqrt(), context)
        channels = [
            patches * per_item(scale.given, patches),
            context if self.inputs.context else torch.zeros_like(context),
            coordinates if self.inputs.position else torch.zeros_like(coordinates),
        ]
        given = torch.cat(channels, dim=1).contiguous(memory_format=torch.channels_last_3d)
        if not self.inputs.spacing:
            conditions = torch.zeros_like(conditions)
        with torch.autocast(patches.device.type, torch.bfloat16, enabled=fast_bfloat16(patches.device)):
            answer = self.unet(given, scale.label, conditions)
        return per_item(scale.skip, patches) * patches + per_item(scale.out, patches) * answer.float()


def coordinates(starts: Tensor, patch: int, shape: Sequence[int]) -> Tensor:
    """(n, 3) starts -> (n, 3, P, P, P) coordinates of voxel centres, -1 to 1 over the un-padded volume."""
    steps = torch.arange(patch, device=starts.device, dtype=torch.float32)
    channels = []
    for axis, n in enumerate(shape):
        line = (2 * (starts[:, axis, None] + steps) + 1) / n - 1
        view = [len(starts), 1, 1, 1]
        view[axis + 1] = patch
        channels.append(line.reshape(view).expand(-1, patch, patch, patch))
    return torch.stack(channels, dim=1)


def conditions(spacing_mm: Sequence[float], shape: Sequence[int]) -> Tensor:
    """(6,): log of the voxel spacing over 2 mm and of the volume's extent over 300 mm, z, y, x."""
    extent = torch.tensor(spacing_mm, dtype=torch.float32) * torch.tensor(shape, dtype=torch.float32)
    return torch.cat([log_spacing(spacing_mm), (extent / 300).log()])
