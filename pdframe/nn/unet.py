"""The U-Net of guided diffusion (Dhariwal & Nichol 2021, "ADM"), in two or three dimensions from one source.

With `width=64, multipliers=(1, 2, 4, 4), blocks=2, attention=(8,)`, five channels in and one out it is the
network of arXiv 2512.18161: 68.59 M parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from pdframe.nn.conv import Conv2d, Conv3d
from pdframe.nn.norm import GroupNorm


@dataclass(frozen=True)
class UNetShape:
    """The numbers that make a U-Net.

    dims: 2 or 3 spatial axes. width: channels of the first level; level i has width * multipliers[i].
    blocks: residual blocks a level on the way down (one more on the way up). attention: down-sampling factors at
    which self-attention follows each block (and the middle, if any is given). fold: edge of the cells that are
    folded into channels: 2 halves the resolution at which the blocks work, between one thin residual block before and
    one after at full resolution, with `fine` channels. conditions: how many numbers beside the noise level steer the
    network (0: none). places: attention also knows where in the patch each of its tokens lies.
    """

    dims: int = 3
    in_channels: int = 5
    out_channels: int = 1
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    attention: tuple[int, ...] = (8,)
    heads: int = 4
    fold: int = 1
    fine: int = 16
    conditions: int = 0
    places: bool = False

    @property
    def multiple(self) -> int:
        """What every spatial edge must be a multiple of."""
        return self.fold * 2 ** (len(self.multipliers) - 1)


def _conv(dims: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    kind = {2: Conv2d, 3: Conv3d}[dims]
    return kind(inputs, outputs, kernel, stride=stride, padding=kernel // 2)


def _zero(module: nn.Module) -> nn.Module:
    """Start at zero: the output layer, attention and the conditions. Not the residual blocks, as ADM does: with those
    at zero too, the first few hundred steps of a small network were lost (measured)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class _Residual(nn.Module):
    """GroupNorm, SiLU, convolution, twice, with the noise embedding added between the two."""

    def __init__(self, dims: int, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.norm_in, self.conv_in = GroupNorm(inputs), _conv(dims, inputs, outputs)
        self.embed = nn.Linear(embedding, outputs)
        self.norm_out, self.conv_out = GroupNorm(outputs), _conv(dims, outputs, outputs)
        self.skip = nn.Identity() if inputs == outputs else _conv(dims, inputs, outputs, kernel=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv_in(self.norm_in.activated(x))
        shift = self.embed(functional.silu(embedding))
        h = h + shift.reshape(*shift.shape, *(1,) * (x.ndim - 2))
        return self.skip(x) + self.conv_out(self.norm_out.activated(h))


class _Attention(nn.Module):
    """Self-attention over all positions of the level.

    Without `places` a token knows only its content. The context channel shows the whole volume over the patch's own
    voxels: to look a patch's surroundings up in it, a token must also know where in the channel each other token is.
    """

    def __init__(self, shape: UNetShape, channels: int) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm = GroupNorm(channels)
        self.place = None
        if shape.places:
            self.place = nn.Sequential(nn.Linear(shape.dims, channels), nn.SiLU(), _zero(nn.Linear(channels, channels)))
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.project = _zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.norm(x).flatten(2)
        if self.place is not None:
            h = h + self.place(_places(x)).T
        h = self.qkv(h)
        # Contiguous: on CPUs attention over strided tokens costs ten times as much (measured).
        q, k, v = rearrange(h, "b (three h c) n -> three b h n c", three=3, h=self.heads).contiguous()
        h = rearrange(functional.scaled_dot_product_attention(q, k, v), "b h n c -> b (h c) n")
        return x + self.project(h).reshape(x.shape)


class _Down(nn.Module):
    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.conv = _conv(dims, channels, channels, stride=2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(x)


class _Up(nn.Module):
    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.conv = _conv(dims, channels, channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2, mode="nearest"))


class _Stage(nn.ModuleList):
    """Modules applied in turn, each given the embedding."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for module in self:
            x = module(x, embedding)
        return x


class UNet(nn.Module):
    """(batch, in_channels, *spatial), (batch,), (batch, conditions) -> (batch, out_channels, *spatial).

    The second argument is the noise label, of order 1 (a diffusion time in [0, 1], say). Every spatial edge must be a
    multiple of `shape.multiple`.
    """

    def __init__(self, shape: UNetShape) -> None:
        super().__init__()
        self.shape = shape
        dims, folded = shape.dims, shape.fold**shape.dims
        widths = [shape.width * m for m in shape.multipliers]
        embedding = 4 * shape.width
        self.embed = nn.Sequential(nn.Linear(shape.width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.condition = None
        if shape.conditions:
            self.condition = nn.Sequential(
                nn.Linear(shape.conditions, shape.width), nn.SiLU(), _zero(nn.Linear(shape.width, embedding))
            )
        if shape.fold > 1:
            self.stem = _conv(dims, shape.in_channels, shape.fine)
            self.fine_in = _Residual(dims, shape.fine, shape.fine, embedding)
        self.head = _conv(dims, (shape.fine if shape.fold > 1 else shape.in_channels) * folded, widths[0])
        self.down, skips = _way_down(shape, widths, embedding)
        self.middle = _middle(shape, widths[-1], embedding)
        self.up = _way_up(shape, widths, embedding, skips)
        last = widths[0]
        if shape.fold > 1:
            self.widen = _conv(dims, last, shape.fine * folded)
            self.fine_out = _Residual(dims, 2 * shape.fine, shape.fine, embedding)
            last = shape.fine
        self.tail_norm = GroupNorm(last)
        self.tail = _zero(_conv(dims, last, shape.out_channels))

    def forward(self, x: Tensor, label: Tensor, conditions: Tensor | None = None) -> Tensor:
        embedding = self.embed(_fourier(label, self.shape.width).to(x.dtype))
        if self.condition is not None:
            embedding = embedding + self.condition(conditions.to(x.dtype))
        folds = self.shape.fold > 1
        if folds:
            x = self.fine_in(self.stem(x), embedding)
        h = self.head(_fold(x, self.shape.fold) if folds else x)
        skips = [h]
        for module in self.down:
            h = module(h, embedding)
            skips.append(h)
        h = self.middle(h, embedding)
        for module in self.up:
            h = module(torch.cat([h, skips.pop()], dim=1), embedding)
        if folds:
            h = torch.cat([_unfold(self.widen(h), self.shape.fold), x], dim=1)
            h = self.fine_out(h, embedding)
        return self.tail(self.tail_norm.activated(h))


def _blocks(shape: UNetShape, inputs: int, outputs: int, level: int, embedding: int) -> list[nn.Module]:
    """A residual block, followed by attention where the level has it."""
    block = _Residual(shape.dims, inputs, outputs, embedding)
    attends = shape.fold * 2**level in shape.attention
    return [block, _Attention(shape, outputs)] if attends else [block]


def _way_down(shape: UNetShape, widths: list[int], embedding: int) -> tuple[nn.ModuleList, list[int]]:
    """The stages from fine to coarse, and the channels of what each leaves for the way up."""
    stages, channels = nn.ModuleList(), widths[0]
    skips = [channels]
    for level, width in enumerate(widths):
        for _ in range(shape.blocks):
            stages.append(_Stage(_blocks(shape, channels, width, level, embedding)))
            channels = width
            skips.append(channels)
        if level < len(widths) - 1:
            stages.append(_Stage([_Down(shape.dims, channels)]))
            skips.append(channels)
    return stages, skips


def _middle(shape: UNetShape, channels: int, embedding: int) -> _Stage:
    first, last = (_Residual(shape.dims, channels, channels, embedding) for _ in range(2))
    return _Stage([first, _Attention(shape, channels), last] if shape.attention else [first, last])


def _way_up(shape: UNetShape, widths: list[int], embedding: int, skips: list[int]) -> nn.ModuleList:
    """The stages from coarse to fine; each takes what the way down left at its place."""
    stages, channels = nn.ModuleList(), widths[-1]
    for level, width in reversed(list(enumerate(widths))):
        for index in range(shape.blocks + 1):
            modules = _blocks(shape, channels + skips.pop(), width, level, embedding)
            channels = width
            if level and index == shape.blocks:
                modules.append(_Up(shape.dims, channels))
            stages.append(_Stage(modules))
    return stages


def _fourier(label: Tensor, channels: int) -> Tensor:
    """Sines and cosines of the label at geometrically spaced frequencies (Vaswani et al. 2017)."""
    half = channels // 2
    frequencies = torch.exp(-log(10000.0) * torch.arange(half, device=label.device, dtype=torch.float32) / half)
    phase = 1000.0 * label.float()[:, None] * frequencies
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def _places(x: Tensor) -> Tensor:
    """(batch, channels, *spatial) -> (positions, axes): where each position lies, -1 to 1 over the array."""
    axes = [(2 * torch.arange(n, device=x.device, dtype=x.dtype) + 1) / n - 1 for n in x.shape[2:]]
    return torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")], dim=1)


def _fold(x: Tensor, edge: int) -> Tensor:
    """Cells of `edge` voxels an axis become channels."""
    if x.ndim == 4:
        return rearrange(x, "b c (y j) (x k) -> b (c j k) y x", j=edge, k=edge)
    return rearrange(x, "b c (z i) (y j) (x k) -> b (c i j k) z y x", i=edge, j=edge, k=edge)


def _unfold(x: Tensor, edge: int) -> Tensor:
    if x.ndim == 4:
        return rearrange(x, "b (c j k) y x -> b c (y j) (x k)", j=edge, k=edge)
    return rearrange(x, "b (c i j k) z y x -> b c (z i) (y j) (x k)", i=edge, j=edge, k=edge)
