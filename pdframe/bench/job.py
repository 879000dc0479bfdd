"""What travels to a worker and back, as bytes: a `Job` (a measurement and settings; no truth) and its `Outcome`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pdframe.core.budget import Usage
from pdframe.core.grid import Grid

Table = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """One method on one case: everything that a worker may know.

    y: the frozen measurement, (1, channel, *data_shape), float32; y_sha256: its hash (`pdframe.measure.digest`).
    operator, noise, solver: tables as a TOML holds them, resolved; the solver's has its `prior` inside.
    budget: limits of each sample by name (`pdframe.core.budget.Budget`), only those that are set.
    samples: independent solves, streams keyed by (seed, "sample", i).
    curve_points: about how many snapshots of the first sample to keep; 0 keeps none.
    memory_limit_bytes: most address space that the worker may take on top of what it starts with; None: no limit.
    timed: whether its seconds are to be compared. Such a job goes on from no attempt that ran beside others.
    """

    y: Tensor
    y_sha256: str
    grid: Grid
    operator: Table
    noise: Table | None
    solver: Table
    seed: int
    budget: Table = field(default_factory=dict)
    samples: int = 1
    device: str = "auto"
    curve_points: int = 0
    memory_limit_bytes: int | None = None
    timed: bool = False

    def to_bytes(self) -> bytes:
        """Equal jobs give equal bytes, on every machine."""
        told = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("y", "grid")}
        return _packed({"y": self.y}, {**told, "grid": dataclasses.asdict(self.grid)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Job:
        tensors, told = _unpacked(data)
        return cls(y=tensors["y"], grid=Grid(**told.pop("grid")), **told)


@dataclass(frozen=True)
class Point:
    """The first sample's estimate after some step, and what it had cost by then."""

    step: int
    usage: Usage
    x: Tensor


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    status: name of a `pdframe.core.solve.Status`, or "unfair", "crashed", "out_of_memory", "backend_missing".
    reason: one line; of a status of `solve`, its sentence.
    samples: (sample, 1, channel, *spatial), or None where there is no usable volume.
    usage, traces: of each sample. points: for curves, by step. prior_sha256: of the prior's content, "" without one.
    machine: facts of the machine that it ran on (`pdframe.machine.facts`), its load when the job began, the device and
    the plugins. details: of a crash, the traceback.
    """

    status: str
    reason: str
    samples: Tensor | None = None
    usage: tuple[Usage, ...] = ()
    traces: tuple[tuple[dict[str, float], ...], ...] = ()
    points: tuple[Point, ...] = ()
    prior_sha256: str = ""
    machine: Table = field(default_factory=dict)
    details: str = ""

    def to_bytes(self) -> bytes:
        tensors = {} if self.samples is None else {"samples": self.samples}
        tensors |= {f"point_{i}": point.x for i, point in enumerate(self.points)}
        told = {
            "status": self.status,
            "reason": self.reason,
            "usage": [dataclasses.asdict(u) for u in self.usage],
            "traces": self.traces,
            "points": [{"step": p.step, "usage": dataclasses.asdict(p.usage)} for p in self.points],
            "prior_sha256": self.prior_sha256,
            "machine": self.machine,
            "details": self.details,
        }
        return _packed(tensors, told)

    @classmethod
    def from_bytes(cls, data: bytes) -> Outcome:
        tensors, told = _unpacked(data)
        points = tuple(
            Point(p["step"], Usage(**p["usage"]), tensors[f"point_{i}"]) for i, p in enumerate(told.pop("points"))
        )
        usage = tuple(Usage(**u) for u in told.pop("usage"))
        traces = tuple(tuple(t) for t in told.pop("traces"))
        return cls(**told, samples=tensors.get("samples"), usage=usage, traces=traces, points=points)


def _packed(tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> bytes:
    from safetensors.torch import save

    plain = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    return save(plain, metadata={"pdframe_bench": json.dumps(told, sort_keys=True)})


def _unpacked(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and the rest; ValueError if these are no bytes of this file's making."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        length = int.from_bytes(data[:8], "little")
        told = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["pdframe_bench"])
        return load(data), told
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError("these bytes are neither a job nor an outcome of a bench") from error
