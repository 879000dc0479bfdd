"""The grids that priors are trained on keep to the spacings that their cards declare."""

from __future__ import annotations

import pytest
import torch
from pdframe_volume.training import VolumeTrainingConfig

from pdframe.core.grid import Grid
from pdframe.core.seeds import generator
from pdframe.ct.training_set import GridRange, Scan, _in_ratio, draw_grid

#: z and in-plane spacing of every scan in benchmarks/quality/train_scans.toml, in mm.
NATIVE = {
    (0.8, 0.6445), (1.0, 0.7598), (1.0, 0.7812), (1.0, 0.8008), (1.0, 1.0), (1.0, 1.562), (1.25, 1.363), (2.5, 0.6641),
    (2.5, 1.797), (2.5, 1.953), (3.0, 1.953), (5.0, 1.406), (5.0, 1.594), (5.0, 1.609), (5.0, 1.613), (5.0, 1.719),
    (8.0, 1.391),
}  # fmt: skip
GRIDS = {
    "at large and near the protocol": GridRange(),
    "at large": GridRange(protocol_share=0.0),
    "near the protocol": GridRange(protocol_share=1.0),
    "whole volumes": VolumeTrainingConfig.model_fields["grids"].default,
    "small whole volumes": GridRange(protocol_share=1.0, protocol_mm=4.0, protocol_voxels=64),
}


def scan(z_mm: float, plane_mm: float) -> Scan:
    return Scan(torch.zeros(16, 16, 16, dtype=torch.int16), Grid((16, 16, 16), (z_mm, plane_mm, plane_mm)), 1.0)


@pytest.mark.parametrize("name", GRIDS)
def test_no_draw_leaves_the_declared_ratio_of_spacings(name):
    grids = GRIDS[name]
    (flattest, tallest), (finest, coarsest) = grids.spacing_ratio, grids.spacing_range_mm
    for native in sorted(NATIVE):
        of_body, rng = scan(*native), generator(5, name, *map(str, native))
        for _ in range(300):
            grid, (z, y, x) = draw_grid(of_body, grids, rng)
            assert 0.999 * flattest <= z / y <= 1.001 * tallest and y == x
            assert finest * 0.999 <= y and (y <= coarsest * 1.001 or grids.protocol_share == 1)
            zoom = z / grid.spacing[0]
            assert (y, x) == pytest.approx((zoom * grid.spacing[1], zoom * grid.spacing[2]))
            assert grid.spacing[0] >= 0.999 * grids.finest_z * native[0]


def test_a_spacing_within_the_ratio_stays_as_it_was_drawn():
    """To the bit, so that a training's other draws are what they were; one outside is made coarser, never finer."""
    for spacing in ([2.0, 1.7, 1.7], [1.1, 1.7, 1.6], [3.7, 1.7, 1.7]):
        assert _in_ratio(spacing, (0.6, 2.2)) == _in_ratio(spacing, (0.5, 3.0)) == spacing
    assert _in_ratio([4.8, 1.3, 1.3], (0.6, 2.2)) == pytest.approx([4.8, 4.8 / 2.2, 4.8 / 2.2])
    assert _in_ratio([0.8, 2.0, 2.0], (0.6, 2.2)) == pytest.approx([1.2, 2.0, 2.0])
