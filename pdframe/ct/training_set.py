"""Training volumes: scans read from files, seen at ever new grids by physical resampling."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from pdframe.core.grid import Grid
from pdframe.core.seeds import generator
from pdframe.ct.checkpoint import NetworkCard
from pdframe.ct.couch import with_couch
from pdframe.ct.nifti import read_nifti
from pdframe.ct.resample import resample
from pdframe.ct.units import attenuation_to_hu
from pdframe.hooks import Config

#: Spread of the log of the spacing of a protocol cube.
PROTOCOL_JITTER = 0.1


class ScanFile(Config):
    """One scan of a training set; `sha256` pins its bytes, `weight` says how often it is drawn."""

    file: str
    sha256: str = ""
    weight: float = Field(1.0, ge=0)
    cite: str = ""


class TrainingScans(Config):
    """What a CT denoiser is trained on: [data] of a training's TOML."""

    root: Path = Field(description="folder that holds the scans")
    scans: list[ScanFile]
    scan_count: int | None = Field(
        None, ge=1, description="train on so many of `scans` only, those of the largest weight; default: all"
    )
    validation: list[ScanFile] = Field(default=[], description="scans of other patients")

    @property
    def used(self) -> list[ScanFile]:
        """The scans that it is trained on, in the order of the list."""
        first = sorted(self.scans, key=lambda scan: -scan.weight)[: self.scan_count]
        return [scan for scan in self.scans if scan in first]


class GridRange(Config):
    """How training grids are drawn: one half like the `chest-v1` protocol (isotropic cube), one half at large."""

    protocol_share: float = Field(0.5, ge=0, le=1, description="share of isotropic cubes near `protocol_mm`")
    protocol_mm: float = Field(2.75, gt=0)
    protocol_voxels: int = Field(128, ge=16)
    spacing_mm: tuple[float, float] = Field((1.3, 4.0), description="range of the in-plane spacing")
    ratio: tuple[float, float] = Field((0.6, 2.2), description="range of z spacing over in-plane spacing")
    extent_mm: tuple[float, float] = Field((200.0, 420.0), description="range of the box edge")
    zoom: float = Field(0.12, ge=0, description="spread of the log of a pretended change of the patient's size")
    finest_z: float = Field(0.6, gt=0, description="finest z spacing, as a fraction of the scan's slice distance")
    contrast: float = Field(0.03, ge=0, description="spread of a scaling of (HU + 1000)")
    couch_share: float = Field(0.0, ge=0, le=1, description="share of volumes that get a made-up couch below the body")

    @property
    def spacing_range_mm(self) -> tuple[float, float]:
        """In-plane spacings that are drawn: those at large, or those near the protocol where it has all."""
        if self.protocol_share < 1:
            return self.spacing_mm
        return self.protocol_mm * math.exp(-PROTOCOL_JITTER), self.protocol_mm * math.exp(PROTOCOL_JITTER)

    @property
    def spacing_ratio(self) -> tuple[float, float]:
        """z spacings over in-plane spacings that are drawn; 1 near the protocol."""
        return self.ratio if self.protocol_share < 1 else (1.0, 1.0)


@dataclass(frozen=True)
class Volume:
    """A scan on one grid: (z, y, x) in network units, and the spacing that is declared for it."""

    values: Tensor
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Scan:
    """A scan at its own grid, HU as int16 to save memory."""

    hu: Tensor
    grid: Grid
    weight: float

    @cached_property
    def body_mm(self) -> tuple[tuple[float, float], ...]:
        """Extent of what is denser than -400 HU along z, y, x, in the millimetres of the grid."""
        dense = self.hu > -400
        limits = []
        for axis, (n, step) in enumerate(zip(self.grid.shape, self.grid.spacing, strict=True)):
            others = tuple(a for a in range(3) if a != axis)
            hit = torch.nonzero(dense.float().mean(dim=others) > 0.01).flatten()
            low, high = (int(hit[0]), int(hit[-1]) + 1) if len(hit) else (0, n)
            limits.append(((low - n / 2) * step, (high - n / 2) * step))
        return tuple(limits)

    def on(self, grid: Grid, card: NetworkCard) -> Tensor:
        """(z, y, x) in network units on another grid; air outside."""
        x = resample(self.hu.float()[None, None] - card.clip_hu[0], self.grid, grid, fill=0.0)[0, 0] + card.clip_hu[0]
        return (x.clamp(*card.clip_hu) - card.centre_hu) / card.scale_hu


def read_scans(root: Path, listed: Sequence[ScanFile]) -> list[Scan]:
    """Reads the scans and checks their hashes; one clear line if a file is missing or another."""
    scans = []
    for entry in listed:
        path = root / entry.file
        if not path.is_file():
            raise FileNotFoundError(f"training scan {path} is missing: point data at it with --set data.root=FOLDER")
        if entry.sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != entry.sha256:
            raise ValueError(f"{path} is not the file that the TOML lists (SHA-256 differs)")
        item = read_nifti(path)
        hu = attenuation_to_hu(item.x[0, 0]).round().to(torch.int16)
        scans.append(Scan(hu, item.grid, entry.weight))
    return scans


Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class Shelf(Generic[Prepared]):
    """A number of volumes in memory, each replaced by a new draw every `refresh` steps, one at a time.

    What stands on the shelf is a function of (seed, step): a resumed training sees the same volumes. `prepare` makes
    of a new volume what every draw from it needs.
    """

    scans: Sequence[Scan]
    grids: GridRange
    card: NetworkCard
    seed: int
    prepare: Callable[[Volume], Prepared]
    slots: int = 24
    refresh: int = 480
    _held: dict[int, tuple[int, Prepared]] = field(default_factory=dict, repr=False)

    def volume(self, slot: int, step: int) -> Prepared:
        generation = (step + slot * self.refresh // self.slots) // self.refresh
        held = self._held.get(slot)
        if held is None or held[0] != generation:
            rng = generator(self.seed, "volume", slot, generation)
            self._held[slot] = (generation, self.prepare(draw_volume(self.scans, self.grids, self.card, rng)))
        return self._held[slot][1]


def draw_volume(scans: Sequence[Scan], grids: GridRange, card: NetworkCard, rng: torch.Generator) -> Volume:
    """A random scan on a random grid, perhaps mirrored left to right, a little larger or smaller than it is."""
    weights = torch.tensor([scan.weight for scan in scans])
    scan = scans[int(torch.multinomial(weights, 1, generator=rng))]
    grid, declared = draw_grid(scan, grids, rng)
    values = scan.on(grid, card)
    stretch = 1 + grids.contrast * (2 * float(_uniform(rng)) - 1)
    values = (values - card.air) * stretch + card.air
    if grids.couch_share and _uniform(rng) < grids.couch_share:
        values = with_couch(values, declared, card, rng)
    if _uniform(rng) < 0.5:
        values = values.flip(-1)
    return Volume(values.contiguous(), declared)


def draw_grid(scan: Scan, grids: GridRange, rng: torch.Generator) -> tuple[Grid, tuple[float, float, float]]:
    """A random grid over a scan, and the spacing (z, y, x) that is declared for it: its own times a random zoom.

    The scan is sampled at what is declared over the zoom, as if the patient were larger by it.
    """
    zoom = float(torch.exp(grids.zoom * (2 * _uniform(rng) - 1)))
    spacing, extent = _draw_box(grids, rng)
    native = scan.grid.spacing
    floors = (grids.finest_z * native[0], 0.9 * native[1], 0.9 * native[2])
    sampled = _in_ratio([max(s / zoom, floor) for s, floor in zip(spacing, floors, strict=True)], grids.spacing_ratio)
    declared = tuple(s * zoom for s in sampled)
    height = scan.body_mm[0][1] - scan.body_mm[0][0]
    if height < 0.8 * extent[0] / zoom or _uniform(rng) < 0.5:
        extent[0] = min(extent[0], height * zoom * 1.08)
    shape = tuple(int(min(256, max(8, round(e / d)))) for e, d in zip(extent, declared, strict=True))
    centre = tuple(
        _place(low, high, n * s, rng) for (low, high), n, s in zip(scan.body_mm, shape, sampled, strict=True)
    )
    centre = tuple(c + o for c, o in zip(centre, scan.grid.centre, strict=True))
    return Grid(shape, tuple(sampled), centre), declared


def _in_ratio(spacing: Sequence[float], ratio: tuple[float, float]) -> list[float]:
    """The spacing (z, y, x), made coarser where z lies outside the range of ratios to the spacing in plane.

    Coarser, since finer would be finer than the scan; what lies in the range is kept to the bit.
    """
    z, *plane = spacing
    plane = [max(width, z / ratio[1]) for width in plane]
    return [max(z, ratio[0] * max(plane)), *plane]


def protocol_volume(scan: Scan, grids: GridRange, card: NetworkCard) -> Volume:
    """The scan as it is, on the protocol's grid around the body."""
    centre = [(low + high) / 2 + c for (low, high), c in zip(scan.body_mm, scan.grid.centre, strict=True)]
    grid = Grid((grids.protocol_voxels,) * 3, (grids.protocol_mm,) * 3, tuple(centre))
    return Volume(scan.on(grid, card), grid.spacing)


def _draw_box(grids: GridRange, rng: torch.Generator) -> tuple[list[float], list[float]]:
    """Spacing and box edges in mm, (z, y, x)."""
    if _uniform(rng) < grids.protocol_share:
        spacing = grids.protocol_mm * float(torch.exp(PROTOCOL_JITTER * (2 * _uniform(rng) - 1)))
        return [spacing] * 3, [grids.protocol_mm * grids.protocol_voxels] * 3
    low, high = (torch.tensor(v).log() for v in grids.spacing_mm)
    plane = float(torch.exp(low + (high - low) * _uniform(rng)))
    low, high = (torch.tensor(v).log() for v in grids.ratio)
    across = plane * float(torch.exp(low + (high - low) * _uniform(rng)))
    low, high = grids.extent_mm
    edges = [low + (high - low) * float(_uniform(rng)) for _ in range(2)]
    return [across, plane, plane], [edges[0], edges[1], edges[1]]


def _place(low: float, high: float, length: float, rng: torch.Generator) -> float:
    """Centre of a box of `length` over the body [low, high]: anywhere inside it, or around it with some play."""
    middle, slack = (low + high) / 2, abs((high - low) - length) / 2
    play = slack if high - low > length else min(slack, 0.1 * length)
    return middle + play * float(2 * _uniform(rng) - 1)


def _uniform(rng: torch.Generator) -> Tensor:
    return torch.rand((), generator=rng)
