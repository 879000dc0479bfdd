"""How much memory is left, on a GPU, a machine, or in the container of a process; and how much this process takes."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")
#: What libraries say, apart from MemoryError, when they are refused memory.
_REFUSED = ("allocate memory", "out of memory", "bad_alloc")


def is_refused(error: BaseException) -> bool:
    """Whether an exception says that there was no memory left."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _REFUSED)


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
