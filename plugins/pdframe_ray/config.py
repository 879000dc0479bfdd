"""The operators of this plugin as a TOML gives them: `cone_beam`, `fan_beam`, `parallel_beam`."""

from __future__ import annotations

import dataclasses
from math import radians
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pdframe.core.grid import Grid
from pdframe.ct import geometry as ct
from pdframe.ct.geometry import Bench
from pdframe.hooks import Config
from pdframe_ray.operator import ConeBeam

Pair = tuple[float, float]
Triple = tuple[float, float, float]
Form = Literal["auto", "planes"]

_PIXEL = "pixel pitch (row, column); default: voxel spacing (z, the finer of y and x) times the magnification"
_FORM = '"planes" forces the torch form; "auto" takes the fast CPU form where it applies'
_ISOCENTRE = (
    "point (z, y, x) about which the scan turns, in the frame of the grid's `centre`, (0, 0, 0) for a dataset's"
)


class ConeBeamConfig(Config):
    """A cone-beam scan: point source and flat panel turning about z."""

    orbit: Literal["circular", "short_scan", "limited", "helical"] = Field(
        "circular", description="full turn; pi plus fan angle; an arc of `arc_degrees`; a helix of `turns` turns"
    )
    views: PositiveInt = Field(20, description="number of projection views")
    source_axis_mm: PositiveFloat = Field(1000.0, description="distance from source to rotation axis")
    source_panel_mm: PositiveFloat = Field(1500.0, description="distance from source to panel")
    panel: tuple[PositiveInt, PositiveInt] | Literal["cover"] = Field(
        "cover", description='(rows, columns), or "cover" for the smallest that sees the whole volume from every angle'
    )
    pixel_mm: tuple[PositiveFloat, PositiveFloat] | None = Field(None, description=_PIXEL)
    panel_offset_mm: Pair = Field((0.0, 0.0), description="shift of the panel along its rows and columns axes (v, u)")
    start_degrees: float = Field(0.0, description="angle of the first view")
    arc_degrees: PositiveFloat | None = Field(None, description='arc of a "limited" orbit')
    pitch_mm: float | None = Field(None, description='rise per turn of a "helical" orbit')
    turns: PositiveFloat | None = Field(None, description='number of turns of a "helical" orbit; default 1')
    isocentre_mm: Triple = Field((0.0, 0.0, 0.0), description=_ISOCENTRE)
    form: Form = Field("auto", description=_FORM)

    def build(self, grid: Grid) -> ConeBeam:
        """The operator on a (z, y, x) grid."""
        turns = self.turns or 1.0
        height = abs(self.pitch_mm or 0.0) * turns / 2
        bench = _bench(self, grid, self.source_panel_mm / self.source_axis_mm)
        if self.panel == "cover":
            bench = _with_panel(bench, ct.covering_panel(bench, grid, height_mm=height))
        start = radians(self.start_degrees)
        match self.orbit:
            case "circular":
                geometry = ct.circular(bench, self.views, start_rad=start)
            case "short_scan":
                geometry = ct.short_scan(bench, self.views, start_rad=start)
            case "limited":
                geometry = ct.circular(bench, self.views, start_rad=start, arc_rad=radians(self.arc_degrees or 0))
            case "helical":
                pitch = self.pitch_mm or 0.0
                geometry = ct.helical(bench, self.views, pitch_mm=pitch, turns=turns, start_rad=start)
        return ConeBeam(geometry, grid, self.form)

    @model_validator(mode="after")
    def _orbit_has_its_settings(self) -> ConeBeamConfig:
        for name, orbit, needed in (
            ("arc_degrees", "limited", True),
            ("pitch_mm", "helical", True),
            ("turns", "helical", False),
        ):
            given = getattr(self, name) is not None
            if given and self.orbit != orbit:
                raise ValueError(f'{name} is for orbit = "{orbit}": orbit is "{self.orbit}"; leave {name} out')
            if needed and not given and self.orbit == orbit:
                raise ValueError(f'orbit = "{orbit}" needs {name}')
        return self


class FanBeamConfig(Config):
    """A fan beam: the one-row cone in the plane of the orbit, for a grid of one slice (1, y, x)."""

    views: PositiveInt = Field(90, description="number of projection views")
    source_axis_mm: PositiveFloat = Field(1000.0, description="distance from source to rotation axis")
    source_panel_mm: PositiveFloat = Field(1500.0, description="distance from source to detector")
    columns: PositiveInt | Literal["cover"] = Field("cover", description="detector pixels, or enough for the volume")
    pixel_mm: PositiveFloat | None = Field(None, description="pixel pitch; default: voxel spacing times magnification")
    offset_mm: float = Field(0.0, description="shift of the detector along its columns")
    start_degrees: float = Field(0.0, description="angle of the first view")
    arc_degrees: PositiveFloat = Field(360.0, description="arc over which the views are spread")
    isocentre_mm: Triple = Field((0.0, 0.0, 0.0), description=_ISOCENTRE)
    form: Form = Field("auto", description=_FORM)

    def build(self, grid: Grid) -> ConeBeam:
        """The operator on a (1, y, x) grid (any number of slices is right; only the middle ones are seen)."""
        pixel = self.pixel_mm or min(grid.spacing[1:]) * self.source_panel_mm / self.source_axis_mm
        distances = (self.source_axis_mm, self.source_panel_mm)
        bench = Bench((1, 1), (pixel, pixel), *distances, (0.0, self.offset_mm), self.isocentre_mm)
        columns = ct.covering_panel(bench, grid)[1] if self.columns == "cover" else self.columns
        arc = {"start_rad": radians(self.start_degrees), "arc_rad": radians(self.arc_degrees)}
        return ConeBeam(ct.fan(_with_panel(bench, (1, columns)), self.views, **arc), grid, self.form)


class ParallelBeamConfig(Config):
    """Level parallel rays turning about z."""

    views: PositiveInt = Field(90, description="number of projection views")
    panel: tuple[PositiveInt, PositiveInt] | Literal["cover"] = Field(
        "cover", description='(rows, columns), or "cover" for the smallest that sees the whole volume from every angle'
    )
    pixel_mm: tuple[PositiveFloat, PositiveFloat] | None = Field(None, description=_PIXEL)
    panel_offset_mm: Pair = Field((0.0, 0.0), description="shift of the panel along its rows and columns axes (v, u)")
    start_degrees: float = Field(0.0, description="angle of the first view")
    arc_degrees: PositiveFloat = Field(180.0, description="arc over which the views are spread")
    isocentre_mm: Triple = Field((0.0, 0.0, 0.0), description=_ISOCENTRE)
    form: Form = Field("auto", description=_FORM)

    def build(self, grid: Grid) -> ConeBeam:
        """The operator on a (z, y, x) grid."""
        bench = _bench(self, grid, 1.0)
        if self.panel == "cover":
            bench = _with_panel(bench, ct.covering_panel(bench, grid, parallel=True))
        arc = {"start_rad": radians(self.start_degrees), "arc_rad": radians(self.arc_degrees)}
        return ConeBeam(ct.parallel(bench, self.views, **arc), grid, self.form)


def _bench(config: ConeBeamConfig | ParallelBeamConfig, grid: Grid, magnification: float) -> Bench:
    """The scanner of a config; a panel still to be sized has one pixel."""
    if len(grid.shape) != 3:
        raise ValueError(f"a scan needs a grid with axes (z, y, x): got shape {grid.shape}")
    distances = (
        (config.source_axis_mm, config.source_panel_mm) if isinstance(config, ConeBeamConfig) else (1000.0, 1500.0)
    )
    pixel = config.pixel_mm or (grid.spacing[0] * magnification, min(grid.spacing[1:]) * magnification)
    panel = (1, 1) if config.panel == "cover" else config.panel
    return Bench(panel, pixel, *distances, config.panel_offset_mm, config.isocentre_mm)


def _with_panel(bench: Bench, panel: tuple[int, int]) -> Bench:
    return dataclasses.replace(bench, panel=panel)
