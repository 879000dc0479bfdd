"""How much memory a projection takes, and a refusal in one line where it is not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from pdframe.core.memory import available_bytes
from pdframe_ray import columns, planes

if TYPE_CHECKING:
    from pdframe_ray.operator import ConeBeam

#: Below this a call is not checked: asking costs more than it saves.
SMALL_BYTES = 2**27


def memory_estimate(operator: ConeBeam, *, items: int = 1, itemsize: int = 4) -> int:
    """Bytes that one `forward` or `adjoint` takes, its input, output and scratch together; an upper bound.

    items: batch times channel. itemsize: 4 for float32, 8 for float64.
    """
    panel, shape = operator.geometry.panel, operator.grid.shape
    rays = operator.views * panel[0] * panel[1]
    both = items * (operator.grid.size + rays) * itemsize
    scratch = planes.scratch_bytes(items, panel, shape, itemsize)
    if operator.form == "auto" and (table := operator._table):
        scratch = max(scratch, columns.scratch_bytes(table, operator.data_shape, shape, itemsize))
    return both + scratch


def check(operator: ConeBeam, value: Tensor) -> None:
    """MemoryError if a call on `value` needs more than its device has free."""
    need = memory_estimate(operator, items=value.shape[0], itemsize=value.element_size())
    if need < SMALL_BYTES:
        return
    need -= value.numel() * value.element_size()  # it is there already
    free = available_bytes(value.device)
    if free is not None and need > free:
        raise MemoryError(
            f"projecting {value.shape[0]} x {operator.grid.shape} voxels and {operator.data_shape} rays needs "
            f"{need / 2**30:.1f} GiB more on {value.device}, {free / 2**30:.1f} GiB are free: "
            "use a smaller grid or batch, or fewer views at a time"
        )
