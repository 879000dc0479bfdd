"""What this machine is, and which libraries work on it."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pdframe import registry
from pdframe.hooks import BackendMissing
from pdframe.mistakes import ConfigError

if TYPE_CHECKING:
    import torch

    from pdframe.hooks import Entry
    from pdframe.registry import Plugin

#: Import name, what it is good for, the command that brings it, and code that proves it without harm.
LIBRARIES = (
    ("numba", "fast projector on the CPU", "pip install numba", "import numba"),
    ("odl", "projectors of ODL", 'pip install "pdframe[odl]"', "import odl"),
    (
        "astra",
        "GPU projectors of ASTRA (GPL)",
        'pip install "pdframe[astra]"',
        # Without a CUDA device ASTRA's 3D calls end the process, so nothing but this question is asked.
        "import astra; astra.use_cuda() or sys.exit('there is no CUDA device, which its 3D projectors need')",
    ),
    ("deepinv", "networks and samplers of deepinv", 'pip install "pdframe[deepinv]"', "import deepinv"),
)
CPU_FLAGS = ("avx", "avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "neon", "asimd", "sve", "bf16")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ok: yes, no, or None where there is nothing to prove, only to tell."""

    name: str
    ok: bool | None
    said: str


def provenance() -> dict[str, object]:
    """What every record says of who made it: the machine and its libraries, and the plugins."""
    return {"machine": facts(), "plugins": registry.versions()}


def cores() -> int:
    """Those that this process may use: a cluster's scheduler may have given it a part of the machine."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def facts() -> dict[str, object]:
    """Processor, memory, the libraries that compute, torch's devices."""
    import torch

    from pdframe.core.memory import available_bytes, total_bytes

    return {
        "pdframe": _installed("pdframe"),
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": cores(),
        "cpu_features": [flag for flag in CPU_FLAGS if flag in _cpu_flags()],
        "onednn_limit": os.environ.get("ONEDNN_MAX_CPU_ISA", ""),
        "memory_gib": _gib(total_bytes()),
        "memory_free_gib": _gib(available_bytes()),
        "numpy": _installed("numpy"),
        "numba": _installed("numba"),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "torch_cpu_kernels": torch.backends.cpu.get_cpu_capability(),
        "devices": devices(),
        "bfloat16": bfloat16(),
    }


def chosen(device: str) -> torch.device:
    """The device of a setting; "auto" is the GPU if torch can use one.

    ConfigError if there is no such device at all, BackendMissing if this machine or this torch has none.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ConfigError(f'device: expected "auto", "cpu", "cuda" or "cuda:1", got {device!r}') from None
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        words = str(error).strip().partition("\n")[0].rstrip(".")
        raise BackendMissing(
            f'device = "{device}": torch {torch.__version__} cannot use it here ({words}); set device = "auto", or '
            "install a torch for this device"
        ) from None
    return found


def devices() -> list[str]:
    """Every device that torch can compute on, with its memory."""
    import torch

    found = ["cpu"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)")
    return found + (["mps"] if torch.backends.mps.is_available() else [])


def bfloat16() -> str:
    """Where networks run faster in bfloat16 on this machine, and by what."""
    import torch

    from pdframe.nn.precondition import cpu_bfloat16, fast_bfloat16

    cuda = torch.cuda.is_available() and fast_bfloat16(torch.device("cuda"))
    fast = ["cuda (tensor cores)"] if cuda else []
    fast += [f"cpu ({unit})"] if (unit := cpu_bfloat16()) else []
    return ", ".join(fast) or "no unit for it: networks run in float32"


def libraries() -> list[Finding]:
    """Each optional library: works, or why not and what brings it. Each is tried in a process of its own."""
    known = {name for name, *_ in LIBRARIES}
    asked: dict[str, str] = {}
    for entry in registry.entries():
        asked |= {name: registry.install_command(entry) for name in entry.requires if name not in known}
    wanted = [*LIBRARIES, *((name, "asked for by a plugin", how, f"import {name}") for name, how in asked.items())]
    return [_library(*row) for row in wanted]


def _library(name: str, purpose: str, install: str, proof: str) -> Finding:
    if importlib.util.find_spec(name) is None:
        return Finding(name, False, f"not installed ({purpose}): {install}")
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; {proof}"], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding(name, False, f"installed, but its import did not end within 120 s ({purpose})")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Finding(name, False, f"installed, but cannot be used ({purpose}): {reason}")
    return Finding(name, True, f"{_version(name)} ({purpose})")


def untrained(plugin: Plugin, entry: Entry) -> str:
    """What to do about a prior that is trained and came without weights; "" of any other entry.

    A prior that is trained has a task of its name beside it, and what ships of it lies in its package, where
    `pdframe.ct.checkpoint` looks: `shipped/NAME.safetensors`. Only that file decides, and nothing is imported for it.
    """
    if entry.kind != "prior" or not any((e.kind, e.name) == ("task", entry.name) for e in plugin.entries):
        return ""
    if any((folder / "shipped" / f"{entry.name}.safetensors").is_file() for folder in _folders_of(entry)):
        return ""
    return f"came without weights: train your own (`pdframe train`, task {entry.name}) and set `weights` to the file"


def _folders_of(entry: Entry) -> list[Path]:
    """Where the package behind an entry lies; a plugin that names none that can be found fails elsewhere."""
    try:
        spec = importlib.util.find_spec(entry.target.partition(":")[0].partition(".")[0])
    except (ImportError, ValueError):
        return []
    return [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]


def _version(name: str) -> str:
    """Of the distribution that brings an import name."""
    from importlib.metadata import packages_distributions

    return _installed(packages_distributions().get(name, [name])[0]) or "of unknown version"


def _installed(distribution: str) -> str:
    """Its version; "" if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _cpu_name() -> str:
    return next((v for k, v in _cpuinfo() if k in ("model name", "Model")), platform.processor() or platform.machine())


def _cpu_flags() -> set[str]:
    return set(next((v for k, v in _cpuinfo() if k in ("flags", "Features")), "").split())


def _cpuinfo() -> list[tuple[str, str]]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            pairs = [line.partition(":") for line in file]
    except OSError:
        return []
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def _gib(size: int | None) -> float | None:
    return None if size is None else round(size / 2**30, 1)
