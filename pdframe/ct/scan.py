"""What can be asked of any operator that is a scanner: its rays, and itself over another grid or other rays."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from pdframe.core.grid import Grid
from pdframe.core.operator import ForwardOperator
from pdframe.ct.geometry import Geometry


@functools.singledispatch
def geometry_of(operator: ForwardOperator) -> Geometry | None:
    """The rays of an operator; None if it is no scanner. Default: its field `geometry`, where it has one."""
    found = getattr(operator, "geometry", None)
    return found if isinstance(found, Geometry) else None


@functools.singledispatch
def rebuilt(operator: ForwardOperator, grid: Grid, geometry: Geometry) -> ForwardOperator:
    """The same kind of operator over another grid and along other rays. Default: with these two fields replaced."""
    if not dataclasses.is_dataclass(operator):
        raise TypeError(f"{type(operator).__name__} cannot be moved to another grid: register pdframe.ct.scan.rebuilt")
    return dataclasses.replace(operator, grid=grid, geometry=geometry)


def oversampled(geometry: Geometry, factor: int) -> Geometry:
    """The same panels with `factor` times as many rows and columns, each so much smaller."""
    rows, columns = geometry.panel
    return dataclasses.replace(
        geometry, u=geometry.u / factor, v=geometry.v / factor, panel=(rows * factor, columns * factor)
    )


def bin_intensities(y: Tensor, factor: int) -> Tensor:
    """What a pixel of factor^2 samples reads: (..., rows * factor, columns * factor) -> (..., rows, columns).

    A pixel adds up photons, so intensities exp(-y) are averaged, not line integrals; behind an edge the two differ.
    """
    if factor == 1:
        return y
    rows, columns = y.shape[-2] // factor, y.shape[-1] // factor
    tiles = y.reshape(*y.shape[:-2], rows, factor, columns, factor).movedim(-3, -2).flatten(-2)
    return torch.log(torch.tensor(float(factor**2))).to(y) - torch.logsumexp(-tiles, dim=-1)
