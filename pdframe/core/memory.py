"""How much memory is left, on a GPU, a machine, or in the container of a process; how much this process takes, and how
much a solve will."""

from __future__ import annotations

import dataclasses
import functools
import os
from math import prod
from pathlib import Path

import torch

from pdframe.core.operator import ForwardOperator, call_bytes
from pdframe.core.prior import Prior
from pdframe.core.solver import Solver

_CGROUP = Path("/sys/fs/cgroup")
#: What libraries say, apart from MemoryError, when they are refused memory.
_REFUSED = ("allocate memory", "out of memory", "bad_alloc")

#: Smaller tensors share a heap with gaps where freed ones were (above this size the C library of Linux asks the system
#: for each); a solve then takes about so many times what it holds. TV on 112^3 to 192^3 voxels: 1.4 to 1.6.
HEAP_BELOW, GAPS = 2**25, 1.4


def is_refused(error: BaseException) -> bool:
    """Whether an exception says that there was no memory left."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _REFUSED)


@functools.singledispatch
def solve_bytes(solver: Solver, operator: ForwardOperator, *, device: torch.device | str = "cpu") -> int:
    """Memory that a solve of one item takes at its peak, roughly, beside its measurement and what was there before it.

    The default is for a solver that runs conjugate gradients or takes gradient steps on a few volumes: some ten of
    them, or some eight measurements where these are larger (three of either are the float64 sum of their squares), and
    the larger of one call of the operator and one of its prior. One that holds more registers its own.
    """
    return held_bytes(operator, (10, 1), (9, 8)) + work_bytes(solver, operator, device=device)


def held_bytes(operator: ForwardOperator, *moments: tuple[float, float]) -> int:
    """Bytes of float32 at the fullest of some moments, each told as (volumes, measurements) that are held in it."""
    volume, data = tensor_bytes(operator.grid.size), tensor_bytes(prod(operator.data_shape))
    return int(max(volumes * volume + measurements * data for volumes, measurements in moments))


def tensor_bytes(values: int) -> float:
    """What a float32 tensor of so many values takes among others, with its share of the gaps between them."""
    return 4 * values * (GAPS if 4 * values < HEAP_BELOW else 1)


def work_bytes(
    solver: Solver, operator: ForwardOperator, *, device: torch.device | str = "cpu", gradient: bool = False
) -> int:
    """Memory of one call of the operator, or of one of the solver's prior where that takes more.

    gradient: the prior is differentiated as well.
    """
    prior, shape = getattr(solver, "prior", None), (1, 1, *operator.grid.shape)
    asked = 0 if prior is None else prior_bytes(prior, shape, device=device, gradient=gradient)
    return max(call_bytes(operator), asked)


@functools.singledispatch
def prior_bytes(
    prior: Prior, shape: tuple[int, ...], *, device: torch.device | str = "cpu", gradient: bool = False
) -> int:
    """Memory that one `denoise` of a (batch, channel, *spatial) float32 tensor takes, roughly, with what it holds.

    gradient: and the gradient through it. The default is eight volumes, three times as much for a gradient, and the
    weights of the networks among its fields. A network that takes more of a volume registers its own.
    """
    return int(8 * tensor_bytes(prod(shape)) * (3 if gradient else 1)) + weights_bytes(prior)


def weights_bytes(prior: Prior) -> int:
    """Memory of the parameters of the networks among a prior's fields."""
    fields = dataclasses.fields(prior) if dataclasses.is_dataclass(prior) else ()
    networks = [value for f in fields if isinstance(value := getattr(prior, f.name), torch.nn.Module)]
    return sum(p.numel() * p.element_size() for network in networks for p in network.parameters())


def available_bytes(device: torch.device | str = "cpu") -> int | None:
    """Memory that can still be had on a device, or None where the system does not say."""
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    known = [left for left in (_line("/proc/meminfo", "MemAvailable"), _container_bytes()) if left is not None]
    return min(known) if known else _physical_bytes()


def total_bytes() -> int | None:
    """Memory of this machine, or of the container that it is."""
    known = [limit for limit in (_line("/proc/meminfo", "MemTotal"), _number(_CGROUP / "memory.max")) if limit]
    return min(known) if known else _physical_bytes()


def own_bytes(key: str) -> int | None:
    """A line of Linux's /proc/self/status: "VmHWM" is the peak of this process, "VmData" its private memory."""
    return _line("/proc/self/status", key)


def forget_own_peak() -> None:
    """Sets "VmHWM" back to what this process takes now, where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        pass


def _line(path: str, key: str) -> int | None:
    """A line "key:  number kB", in bytes."""
    try:
        with open(path, encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{key}:"))
    except (OSError, StopIteration):
        return None


def _container_bytes() -> int | None:
    """What a container may still take: its limit less what it has, files that can be dropped not counted."""
    limit, taken = _number(_CGROUP / "memory.max"), _number(_CGROUP / "memory.current")
    if limit is None or taken is None:
        return None
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        droppable = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    except (OSError, StopIteration):
        droppable = 0
    return max(0, limit - taken + droppable)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())  # "max", where there is no limit
    except (OSError, ValueError):
        return None


def _physical_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
