"""The picture of a run: which slices, which way up, which grey, and what stands beside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pdframe.core.grid import Grid
from pdframe.ct.units import hu_to_attenuation
from pdframe.ct.windows import Window
from pdframe.report.figure import PLANES, Shown, _draw, _middle, slice_of

GRID = Grid((6, 8, 10), (3.0, 2.0, 1.0))
MIDDLE = [3, 4, 5]


def volume(fill: float = 0.0) -> torch.Tensor:
    hu = torch.full((1, 1, *GRID.shape), fill)
    hu[0, 0, 5, 4, 5] = 500.0  # towards the head
    hu[0, 0, 3, 0, 5] = 600.0  # the front
    hu[0, 0, 3, 4, 9] = 700.0  # the patient's left
    return hu_to_attenuation(hu)


@pytest.mark.parametrize(
    ("plane", "marks"),
    [
        (PLANES[0], {600.0: (0, 5), 700.0: (4, 9)}),  # front above, left on the right
        (PLANES[1], {500.0: (0, 5), 700.0: (2, 9)}),  # head above, left on the right
        (PLANES[2], {500.0: (0, 4), 600.0: (2, 0)}),  # head above, front on the left
    ],
    ids=[p[0] for p in PLANES],
)
def test_each_plane_is_the_right_way_up(plane, marks):
    hu = np.zeros(GRID.shape)
    hu[5, 4, 5], hu[3, 0, 5], hu[3, 4, 9] = 500.0, 600.0, 700.0
    image = slice_of(hu, plane, MIDDLE)
    assert {float(image[i, k]): (i, k) for i, k in np.argwhere(image > 0).tolist()} == marks


def test_the_slices_go_through_the_middle_of_what_is_marked():
    mask = torch.zeros(1, 1, *GRID.shape, dtype=torch.bool)
    assert _middle(None, GRID) == _middle(mask, GRID) == [3, 4, 5]
    mask[0, 0, 1:4, 5, 2:9] = True
    assert _middle(mask, GRID) == [2, 5, 5]


def test_truth_methods_and_errors_are_drawn_in_their_windows():
    shown = [Shown("FDK", volume(45.0), "PSNR 20 dB"), Shown("ours", volume(8.0), "PSNR 30 dB")]
    figure = _draw(volume(), shown, GRID, Window(-160, 240), MIDDLE, "a title")
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 3 * 3 + 3 * 2  # truth and two methods, then two error maps, in three planes
    grey = [axes.images[0] for axes in panels if axes.images[0].get_cmap().name == "gray"]
    heat = [axes.images[0] for axes in panels if axes.images[0].get_cmap().name == "RdBu_r"]
    assert {image.get_clim() for image in grey} == {(-160, 240)} and len(grey) == 9
    assert {image.get_clim() for image in heat} == {(-10, 10)}  # holds the better method; the worse may saturate
    assert [float(np.median(np.asarray(i.get_array()))) for i in grey] == pytest.approx([0, 45, 8] * 3, abs=0.01)
    assert [float(np.median(np.asarray(i.get_array()))) for i in heat] == pytest.approx([45, 8] * 3, abs=0.01)
    words = " ".join(text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text")))
    for text in ("FDK", "ours", "PSNR 30 dB", "axial", "sagittal", "window [-160, 240] HU", "a title"):
        assert text in words
