"""`blur`: convolution with a Gaussian along every axis of the grid, zero outside."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from pydantic import Field
from torch import Tensor

from pdframe import Config, ForwardOperator, Grid


class BlurConfig(Config):
    """A Gaussian blur, the same along every axis."""

    width_mm: float = Field(gt=0, description="standard deviation of the Gaussian")

    def build(self, grid: Grid) -> Blur:
        return Blur(grid, tuple(grid.shape), self.width_mm)


@dataclass(frozen=True)
class Blur(ForwardOperator):
    """y = g * x: y lies on the grid of x and has its unit."""

    grid: Grid
    data_shape: tuple[int, ...]
    width_mm: float

    def forward(self, x: Tensor) -> Tensor:
        for axis, spacing in enumerate(self.grid.spacing, start=2):
            x = _convolved(x, axis, _gaussian(self.width_mm / spacing).to(x))
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.forward(y)  # the Gaussian is even, so the blur is its own transpose


def _gaussian(width: float) -> Tensor:
    """Sampled out to 4 widths on both sides, with sum 1; `width` in voxels."""
    reach = ceil(4 * width)
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (at / width) ** 2)
    return kernel / kernel.sum()


def _convolved(x: Tensor, axis: int, kernel: Tensor) -> Tensor:
    lines = x.movedim(axis, -1)
    flat = torch.nn.functional.conv1d(
        lines.reshape(-1, 1, lines.shape[-1]), kernel[None, None], padding=len(kernel) // 2
    )
    return flat.reshape(lines.shape).movedim(-1, axis).contiguous()
