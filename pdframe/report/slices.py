"""A picture of volumes without a truth: the three middle slices of each, in one HU window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pdframe.core.grid import Grid
from pdframe.ct.windows import Window
from pdframe.report.figure import PANEL_INCHES, PLANES, hounsfield, save, show, slice_of


@dataclass(frozen=True)
class Row:
    """One row of the picture: a name and a volume (1, 1, z, y, x) in 1/mm."""

    title: str
    x: Tensor


def draw_slices(path: Path, rows: Sequence[Row], grid: Grid, *, window: Window) -> None:
    """Writes a PNG, whole or not at all; axial, coronal and sagittal from left to right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * PANEL_INCHES + 0.6, len(rows) * PANEL_INCHES + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 3, squeeze=False)
    middle = [n // 2 for n in grid.shape]
    for panels, row in zip(axes, rows, strict=True):
        for panel, plane in zip(panels, PLANES, strict=True):
            image = show(panel, slice_of(hounsfield(row.x), plane, middle), grid, plane)
            image.set(cmap="gray", clim=(window.low_hu, window.high_hu))
        panels[0].set_ylabel(row.title, fontsize=8)
    for panel, plane in zip(axes[0], PLANES, strict=True):
        panel.set_title(plane[0], fontsize=9)
    figure.suptitle(f"window [{window.low_hu:g}, {window.high_hu:g}] HU", fontsize=8, x=0.99, ha="right")
    save(figure, path)
