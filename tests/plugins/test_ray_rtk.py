"""RTK as an independent witness: projections and a back projection that its Joseph pair computed, stored in the repo.

`tests/data/make_rtk_joseph.py` made the file from `scene` below with itk-rtk 2.7; it is needed only to make it again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pdframe_ray.operator import ConeBeam

from pdframe.core.grid import Grid
from pdframe.ct import geometry as ct

STORED = Path(__file__).parents[1] / "data" / "rtk_joseph.npz"
GRID = Grid((32, 32, 32), (2.0, 2.0, 2.0))
ANGLES_DEGREES = (10.0, 75.0, 160.0, 301.0)
BENCH = ct.Bench((20, 28), (4.5, 4.0), 200.0, 320.0, (3.0, -7.0))
SLICE = 13  # of the back projection; its two outermost voxels are left out, where RTK treats grazing rays otherwise


def scene() -> tuple[np.ndarray, np.ndarray]:
    """An off-centre volume without symmetry, zero at the border, and data of both signs; float32."""
    z, y, x = np.meshgrid(*[np.arange(32.0)] * 3, indexing="ij")
    volume = 0.02 * np.exp(-(((z - 12) / 5) ** 2) - ((y - 19) / 6) ** 2 - ((x - 17) / 4) ** 2)
    volume += 0.03 * ((z - 18) ** 2 + (y - 11) ** 2 + (x - 20) ** 2 < 25) + 0.01 * (abs(x - 10) + abs(y - 14) < 4)
    inside = (np.minimum.reduce([z, y, x]) >= 2) & (np.maximum.reduce([z, y, x]) < 30)
    view, row, column = np.meshgrid(*[np.arange(float(n)) for n in (4, 20, 28)], indexing="ij")
    data = np.sin(1.3 * view + 0.9 * row - 0.7 * column) + 0.1 * row
    return (volume * inside).astype(np.float32), data.astype(np.float32)


@pytest.mark.parametrize("form", ["auto", "planes"])
def test_agrees_with_rtk(form: str) -> None:
    volume, data = (torch.from_numpy(a)[None, None] for a in scene())
    operator = ConeBeam(ct.orbit(BENCH, np.radians(ANGLES_DEGREES)), GRID, form)
    with np.load(STORED) as stored:
        projections, back = stored["projections"], stored["back_slice"]
    ours = operator.forward(volume)[0, 0].numpy()
    assert np.linalg.norm(ours - projections) < 2e-6 * np.linalg.norm(projections)
    ours = operator.adjoint(data)[0, 0, SLICE, 2:-2, 2:-2].numpy()
    assert np.linalg.norm(ours - back) < 2e-6 * np.linalg.norm(back)
