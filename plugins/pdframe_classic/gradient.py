"""Finite differences on a grid with any number of axes and any spacing, and their exact transpose."""

from __future__ import annotations

import torch
from torch import Tensor


def gradient(x: Tensor, spacing: tuple[float, ...], out: Tensor | None = None) -> Tensor:
    """Forward differences divided by the spacing, 0 past the last voxel (no flux through the border).

    (batch, channel, *spatial) -> (batch, channel, axis, *spatial), in the unit of x per unit of length.
    """
    if out is None:
        out = x.new_empty(*x.shape[:2], len(spacing), *x.shape[2:])
    for axis, step in enumerate(spacing):
        n = x.shape[2 + axis]
        inner = _inner(out, axis, 0, n - 1)
        torch.sub(x.narrow(2 + axis, 1, n - 1), x.narrow(2 + axis, 0, n - 1), out=inner)
        inner.div_(step)
        _inner(out, axis, n - 1, 1).zero_()
    return out


def gradient_adjoint(z: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """The transpose of `gradient`, which is minus the divergence."""
    out = torch.zeros_like(z[:, :, 0])
    for axis, step in enumerate(spacing):
        n = z.shape[3 + axis]
        flow = _inner(z, axis, 0, n - 1) / step
        out.narrow(2 + axis, 1, n - 1).add_(flow)
        out.narrow(2 + axis, 0, n - 1).sub_(flow)
    return out


def total_variation(x: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """Isotropic total variation of each batch item, (batch,): the sum over voxels of the gradient's length."""
    return gradient(x, spacing).norm(dim=2).flatten(1).sum(1, dtype=torch.float64)


def _inner(z: Tensor, axis: int, start: int, length: int) -> Tensor:
    """The component along `axis`, narrowed along that axis."""
    return z[:, :, axis].narrow(2 + axis, start, length)
