"""The picture of a run: three slices of the truth and of every method in one HU window, and their errors below."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pdframe.core.grid import Grid
from pdframe.ct.units import attenuation_to_hu
from pdframe.ct.windows import Window

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

#: Name of the plane, the axis that it is at right angles to, and whether its first axis points up (z towards the head).
PLANES = (("axial", 0, False), ("coronal", 1, True), ("sagittal", 2, True))
PANEL_INCHES = 2.5
SCALE_BAR_MM = 50.0


@dataclass(frozen=True)
class Shown:
    """One column of the picture: a volume (1, 1, z, y, x) in 1/mm, its name, and lines of text below the name."""

    title: str
    x: Tensor
    text: str = ""


def draw(
    path: Path,
    truth: Tensor,
    shown: Sequence[Shown],
    grid: Grid,
    *,
    window: Window,
    mask: Tensor | None = None,
    title: str = "",
) -> None:
    """Writes a PNG, whole or not at all; at least one method. Slices pass the middle of `mask`, else of the grid."""
    import matplotlib as mpl

    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 9, "savefig.facecolor": "white"}):
        figure = _draw(truth, shown, grid, window, _middle(mask, grid), title)
        save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """The PNG appears whole under its name, or does not appear."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    figure.savefig(part, format="png", dpi=130, metadata={"Software": None})
    os.replace(part, path)


def _draw(
    truth: Tensor, shown: Sequence[Shown], grid: Grid, window: Window, middle: Sequence[int], title: str
) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    reference = hounsfield(truth)
    volumes = [hounsfield(s.x) for s in shown]
    errors = [v - reference for v in volumes]
    span = _error_span(errors)
    heights = _row_heights(grid)
    size = (PANEL_INCHES * (1 + len(shown)) + 0.4, PANEL_INCHES * 2 * sum(heights) + 1.3)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    title_share = 0.32 / size[1] if title else 0.0
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0, rect=(0, 0, 1, 1 - title_share))
    figure.text(0.01, 1 - 0.3 * title_share, title, fontsize=12, va="top", parse_math=False)
    axes = figure.subplots(6, 1 + len(shown), squeeze=False, height_ratios=heights * 2)
    for plane, row, error_row in zip(PLANES, axes[:3], axes[3:], strict=True):
        for panel, volume in zip(row, [reference, *volumes], strict=True):
            grey = show(panel, slice_of(volume, plane, middle), grid, plane)
            grey.set(cmap="gray", clim=(window.low_hu, window.high_hu))
        for panel, error in zip(error_row[1:], errors, strict=True):
            heat = show(panel, slice_of(error, plane, middle), grid, plane)
            heat.set(cmap="RdBu_r", clim=(-span, span))
        row[0].set_ylabel(plane[0])
        error_row[0].set(ylabel=f"{plane[0]} error", xticks=[], yticks=[])
        error_row[0].spines[:].set_visible(False)
    _head(axes[0], shown)
    _scale_bar(axes[0][0])
    _bar(axes[3][0], grey, f"window [{window.low_hu:g}, {window.high_hu:g}] HU")
    _bar(axes[4][0], heat, f"method - truth, \u00b1{span:g} HU")
    return figure


def hounsfield(x: Tensor) -> np.ndarray:
    """(1, 1, z, y, x) in 1/mm -> (z, y, x) in HU."""
    return attenuation_to_hu(x[0, 0].float().cpu()).numpy()


def slice_of(volume: np.ndarray, plane: tuple[str, int, bool], middle: Sequence[int]) -> np.ndarray:
    """As radiologists look at it: the patient's left on the right, the head or the front above."""
    _, axis, up = plane
    image = volume.take(middle[axis], axis=axis)
    return image[::-1] if up else image


def show(panel: Axes, image: np.ndarray, grid: Grid, plane: tuple[str, int, bool]) -> AxesImage:
    """One slice, its sides in millimetres."""
    height_mm, width_mm = (e for axis, e in enumerate(grid.extent) if axis != plane[1])
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
    return panel.imshow(image, extent=(0, width_mm, height_mm, 0), interpolation="nearest", aspect="equal")


def _row_heights(grid: Grid) -> list[float]:
    """Heights of the axial, coronal and sagittal rows as shares of the widest slice."""
    z, y, x = grid.extent
    return [y / max(x, y), z / max(x, y), z / max(x, y)]


def _middle(mask: Tensor | None, grid: Grid) -> list[int]:
    """Index of the voxel in the middle of what is marked."""
    if mask is None or not bool(mask.any()):
        return [n // 2 for n in grid.shape]
    marked = torch.nonzero(mask.reshape(-1, *grid.shape).any(0))
    return [int(round((float(lo) + float(hi)) / 2)) for lo, hi in zip(marked.amin(0), marked.amax(0), strict=True)]


def _error_span(errors: Sequence[np.ndarray]) -> float:
    """A round number of HU that 98 % of the middle method's errors stay below: the worst one may saturate."""
    quantiles = sorted(float(np.quantile(np.abs(e[:: max(1, len(e) // 32)]), 0.98)) for e in errors)
    typical = quantiles[(len(quantiles) - 1) // 2]
    return next((n for n in (10, 20, 50, 100, 150, 200, 300, 400, 500) if n >= typical), 500.0)


def _head(row: Sequence[Axes], shown: Sequence[Shown]) -> None:
    """Names in bold, numbers below them."""
    for panel, name, text in zip(
        row, ["truth", *(s.title for s in shown)], ["", *(s.text for s in shown)], strict=True
    ):
        lines = len(text.splitlines())
        panel.set_title(name, fontsize=10, fontweight="bold", loc="left", pad=5 + 11 * lines, parse_math=False)
        panel.annotate(
            text, (0, 1), (0, 3), xycoords="axes fraction", textcoords="offset points", fontsize=8, va="bottom"
        )


def _scale_bar(panel: Axes) -> None:
    low, high = panel.get_xlim()
    bottom = panel.get_ylim()[0]
    start, y = low + 0.05 * (high - low), 0.94 * bottom
    panel.plot([start, start + SCALE_BAR_MM], [y, y], color="white", lw=2, solid_capstyle="butt")
    panel.text(start, 0.915 * bottom, f"{SCALE_BAR_MM:g} mm", color="white", fontsize=7, va="bottom")


def _bar(panel: Axes, image: AxesImage, label: str) -> None:
    """A colour bar across an empty panel."""
    inner = panel.inset_axes((0.04, 0.5, 0.88, 0.07))
    panel.figure.colorbar(image, cax=inner, orientation="horizontal", extend="both")
    inner.tick_params(labelsize=7)
    inner.set_title(label, fontsize=7.5, loc="left")
