"""`ConeBeam`: line integrals through a volume along the rays of a scan, and the exact transpose."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pdframe.core.grid import Grid
from pdframe.core.operator import ForwardOperator, call_bytes, direct_inverse
from pdframe.ct.geometry import Geometry, check_clear
from pdframe_ray import columns, memory, planes
from pdframe_ray.rays import IndexRays


@dataclass(frozen=True)
class ConeBeam(ForwardOperator):
    """Joseph's projector for any cone-, fan- or parallel-beam geometry; linear interpolation, zero outside the volume.

    forward: (batch, channel, z, y, x) in 1/mm -> (batch, channel, view, row, column), no unit. A ray is the line
    through source and pixel centre, so it does not end at the panel. `adjoint` is the exact transpose: the dot test
    gives rounding error. Any device, float32 or float64.

    form: "auto" takes the column-separable form on the CPU wherever the scan allows it (upright panels) and numba
    works; "planes" always takes the torch form. They are one operator (equal to rounding).

    Raises ValueError at construction if the volume contains the source or reaches behind it in any view, and
    MemoryError before a call that this machine has no memory for (`memory_estimate`).
    """

    geometry: Geometry
    grid: Grid
    form: Literal["auto", "planes"] = "auto"

    matched = True

    def __post_init__(self) -> None:
        if len(self.grid.shape) != 3:
            raise ValueError(f"a cone beam needs a grid with axes (z, y, x): got shape {self.grid.shape}")
        if self.form not in ("auto", "planes"):
            raise ValueError(f'form must be "auto" or "planes": got {self.form!r}')
        check_clear(self.geometry, self.grid)

    @property
    def views(self) -> int:
        return self.geometry.views

    @property
    def data_shape(self) -> tuple[int, int, int]:
        return self.geometry.views, *self.geometry.panel

    def forward(self, x: Tensor) -> Tensor:
        items = _items(x, self.grid.shape, "a volume")
        memory.check(self, items)
        if table := self._table_for(x):
            y = columns.project(items, table, self.data_shape)
        else:
            y = planes.project(items, self._rays, self.geometry.panel)
        return y.unflatten(0, x.shape[:2])

    def adjoint(self, y: Tensor) -> Tensor:
        items = _items(y, self.data_shape, "a measurement")
        memory.check(self, items)
        if table := self._table_for(y):
            x = columns.back_project(items, table, self.grid.shape)
        else:
            x = planes.back_project(items, self._rays, self.grid.shape)
        return x.unflatten(0, y.shape[:2])

    def _table_for(self, like: Tensor) -> columns.ColumnTable | None:
        """The columns' paths if the column-separable form is to do the work, else None."""
        if self.form == "planes" or like.device.type != "cpu" or not columns.available():
            return None
        return self._table

    @functools.cached_property
    def _rays(self) -> IndexRays:
        return IndexRays.of(self.geometry, self.grid)

    @functools.cached_property
    def _table(self) -> columns.ColumnTable | None:
        return columns.table(self._rays, self.geometry.panel, self.grid.shape)

    def __getstate__(self) -> dict[str, object]:
        return {"geometry": self.geometry, "grid": self.grid, "form": self.form}


def _items(value: Tensor, shape: tuple[int, ...], what: str) -> Tensor:
    """(batch, channel, ...) -> (batch * channel, ...)."""
    if value.ndim != 5 or tuple(value.shape[2:]) != tuple(shape):
        want = ", ".join(map(str, shape))
        raise ValueError(f"{what} must have shape (batch, channel, {want}): got {tuple(value.shape)}")
    if value.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{what} must be float32 or float64: got {value.dtype}; convert it with .float()")
    if value.requires_grad and torch.is_grad_enabled():  # the loops below would cut the tape without a word
        raise ValueError(
            f"{what} asks for a gradient: call pdframe.apply or pdframe.apply_adjoint(operator, ...), or detach it"
        )
    return value.flatten(0, 1)


@call_bytes.register
def _(operator: ConeBeam, *, itemsize: int = 4) -> int:
    return memory.memory_estimate(operator, itemsize=itemsize)


@direct_inverse.register
def _(operator: ConeBeam) -> Callable[[Tensor], Tensor] | None:
    """FDK (fan- and parallel-beam FBP with it) on a circle; there is none elsewhere."""
    from pdframe_ray import fdk

    def inverse(y: Tensor) -> Tensor:
        items = _items(y, operator.data_shape, "a measurement").unflatten(0, y.shape[:2])
        return fdk.fdk(operator.geometry, operator.grid, items)

    return None if fdk.circle(operator.geometry) is None else inverse
