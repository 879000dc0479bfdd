"""Volumes small enough to travel inside a page: whole HU or coarser, differences along a row, deflated, base64.

A page has room for so many bytes. What does not fit is left out by rules that the page states: other seeds first,
then HU are rounded, then scans are dropped, last of all every second voxel.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pdframe.ct.units import attenuation_to_hu

#: Room for all volumes of a page, as base64.
ROOM_BYTES = 22_000_000


@dataclass(frozen=True)
class Shown:
    """One case to look at: the truth's file and, by label, each method's; `spacing_mm` along (z, y, x)."""

    name: str
    problem: str
    scan: str
    seed: int
    truth: Path
    methods: tuple[tuple[str, Path], ...]


@dataclass(frozen=True)
class Reduction:
    """How much is kept: of how many seeds and scans (None: all), HU rounded to `step_hu`, every `stride`-th voxel."""

    seeds: int | None = None
    scans: int | None = None
    step_hu: int = 1
    stride: int = 1

    def keep(self, cases: Sequence[Shown]) -> list[Shown]:
        """The cases that are kept, by their order in each problem."""
        kept = []
        for case in cases:
            scans = list(dict.fromkeys(c.scan for c in cases if c.problem == case.problem))
            seeds = list(dict.fromkeys(c.seed for c in cases if (c.problem, c.scan) == (case.problem, case.scan)))
            if scans.index(case.scan) < (self.scans or len(scans)) and seeds.index(case.seed) < (
                self.seeds or len(seeds)
            ):
                kept.append(case)
        return kept

    @property
    def sentence(self) -> str:
        """What the page says about it."""
        cases = "every case" if not (self.seeds or self.scans) else "the first seed of each scan"
        if self.scans:
            first = "the first scan" if self.scans == 1 else f"the first {self.scans} scans"
            cases = f"the first seed of {first} of each problem"
        values = "whole HU" if self.step_hu == 1 else f"HU rounded to multiples of {self.step_hu}"
        voxels = "every voxel" if self.stride == 1 else f"every {self.stride}nd voxel along each axis, not averaged"
        return f"Kept in this page: {cases}; {voxels}; {values}. Tables and curves are of all cases in full precision."


LADDER = (
    Reduction(),
    Reduction(seeds=1),
    Reduction(seeds=1, step_hu=2),
    Reduction(seeds=1, step_hu=4),
    Reduction(seeds=1, scans=4, step_hu=4),
    Reduction(seeds=1, scans=2, step_hu=4),
    Reduction(seeds=1, scans=1, step_hu=4),
    Reduction(seeds=1, scans=1, step_hu=8),
    Reduction(seeds=1, scans=1, step_hu=8, stride=2),
)


def embed(cases: Sequence[Shown], room: int = ROOM_BYTES) -> tuple[Reduction, list[dict[str, Any]], dict[str, str]]:
    """(what was reduced, the cases as the viewer reads them, id -> packed volume), at most about `room` bytes.

    Raises FileNotFoundError if a volume is not there.
    """
    sizes = {path: _sizes(path) for path in _files(cases)}
    fits = [r for r in LADDER if sum(sizes[p][r.step_hu, r.stride] for p in _files(r.keep(cases))) <= room]
    reduction = fits[0] if fits else LADDER[-1]
    told, packed = [], {}
    for case in reduction.keep(cases):
        files = [case.truth, *(path for _, path in case.methods)]
        names = [f"v{len(packed) + i}" for i in range(len(files))]
        for name, path in zip(names, files, strict=True):
            packed[name] = pack(read_hu(path)[0], reduction)
        (hu, spacing), s = read_hu(files[-1]), reduction.stride
        told.append(
            {"problem": case.problem, "scan": case.scan, "seed": case.seed, "step_hu": reduction.step_hu,
             "shape": list(hu[::s, ::s, ::s].shape), "spacing_mm": [mm * s for mm in spacing], "truth": names[0],
             "volumes": dict(zip((label for label, _ in case.methods), names[1:], strict=True))}
        )  # fmt: skip
    return reduction, told, packed


def read_hu(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """(z, y, x) in HU, and the spacing in mm: of a NIfTI file, or of safetensors with `x` in 1/mm (spacing 1)."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load

        return attenuation_to_hu(load(path.read_bytes())["x"][0, 0]).numpy(), (1.0, 1.0, 1.0)
    from pdframe.ct.nifti import read_nifti

    item = read_nifti(path)
    return attenuation_to_hu(item.x[0, 0]).numpy(), item.grid.spacing


def pack(hu: np.ndarray, reduction: Reduction) -> str:
    """int16 in multiples of `step_hu`: differences of neighbours, sign folded in, low bytes then high bytes."""
    s = reduction.stride
    steps = np.clip(np.rint(hu[::s, ::s, ::s] / reduction.step_hu), -32768, 32767).astype("<i2").ravel()
    change = np.diff(steps, prepend=steps.dtype.type(0))  # wraps around in int16, and back again
    folded = ((change << 1) ^ (change >> 15)).astype("<u2")
    planes = np.concatenate([(folded & 255).astype(np.uint8), (folded >> 8).astype(np.uint8)])
    return base64.b64encode(zlib.compress(planes.tobytes(), 6)).decode("ascii")


def _files(cases: Sequence[Shown]) -> Iterator[Path]:
    for case in cases:
        yield case.truth
        yield from (path for _, path in case.methods)


def _sizes(path: Path) -> dict[tuple[int, int], float]:
    """(step_hu, stride) -> bytes of the packed volume, guessed from about eight of its slices."""
    hu, sizes = read_hu(path)[0], {}
    for reduction in LADDER:
        s = reduction.stride
        few = hu[:: s * max(1, len(hu) // (8 * s)), ::s, ::s]
        share = len(hu) / (s * len(few))
        sizes[reduction.step_hu, s] = share * len(pack(few, Reduction(step_hu=reduction.step_hu)))
    return sizes
