"""Resampling keeps integrals, constants and lines; the body mask keeps the body."""

import math

import pytest
import torch

from pdframe.core.grid import Grid
from pdframe.ct.body import body_mask
from pdframe.ct.resample import axis_positions, fit_grid, resample
from pdframe.ct.units import WATER

OLD = Grid((12, 10, 9), (1.5, 2.0, 1.0), (0.3, -0.2, 0.1))


def coordinates(grid: Grid) -> list[torch.Tensor]:
    return torch.meshgrid(*(axis_positions(grid, a) for a in range(3)), indexing="ij")


def test_the_same_grid_returns_the_same_volume():
    x = torch.rand(2, 1, *OLD.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resample(x, OLD, OLD), x)


def test_whole_cells_average_exactly():
    x = torch.rand(1, 1, *OLD.shape, generator=torch.Generator().manual_seed(1)).double()
    new = Grid((4, 5, 3), (4.5, 4.0, 3.0), OLD.centre)
    expected = x.reshape(4, 3, 5, 2, 3, 3).mean((1, 3, 5))
    assert torch.allclose(resample(x, OLD, new)[0, 0], expected, atol=1e-12)


def test_mass_is_kept_by_any_coarser_grid_that_covers_the_volume():
    x = torch.rand(1, 1, *OLD.shape, generator=torch.Generator().manual_seed(2)).double()
    new = Grid((11, 9, 13), (2.3, 3.1, 1.7), (0.9, 0.4, -1.0))
    mass = [float(v.sum()) * math.prod(g.spacing) for v, g in ((x, OLD), (resample(x, OLD, new), new))]
    assert mass[1] == pytest.approx(mass[0], rel=1e-12)


@pytest.mark.parametrize("spacing", [(0.7, 1.1, 0.4), (1.5, 2.0, 1.0), (2.0, 2.5, 1.9)])
def test_a_linear_ramp_stays_the_same_ramp_inside(spacing):
    new = Grid((3, 4, 3), spacing, (0.7, 0.1, -0.4))
    old, want = (1.0 + 2.0 * z - 0.5 * y + 3.0 * x for z, y, x in (coordinates(OLD), coordinates(new)))
    ratio = [n / o for n, o in zip(spacing, OLD.spacing, strict=True)]
    got = resample(old[None, None], OLD, new)[0, 0]
    # Linear interpolation is exact; a box mean of whole and part cells treats each cell as constant, so a ramp is
    # off by less than a quarter of a cell step along each axis that gets coarser.
    slack = sum(abs(s) * o / 4 for s, o, r in zip((2.0, -0.5, 3.0), OLD.spacing, ratio, strict=True) if r > 1)
    assert float((got - want).abs().max()) <= slack + 1e-9


def test_outside_is_fill_or_the_edge():
    x = torch.full((1, 1, *OLD.shape), 2.0)
    far = Grid((3, 3, 3), (1.0, 1.0, 1.0), (100.0, 0.0, 0.0))
    assert torch.equal(resample(x, OLD, far, fill=-1.0), torch.full((1, 1, 3, 3, 3), -1.0))
    assert torch.allclose(resample(x, OLD, far, fill=None), torch.full((1, 1, 3, 3, 3), 2.0))


def test_wrong_shape_is_one_clear_error():
    with pytest.raises(ValueError, match="must have shape"):
        resample(torch.zeros(1, 1, 3, 3, 3), OLD, OLD)


def body_with_couch() -> tuple[torch.Tensor, torch.Tensor, Grid]:
    """A water ellipsoid with an air hole, a thin couch below it, and what the mask should be."""
    grid = Grid((20, 48, 56), (3.0, 3.0, 3.0))
    z, y, x = coordinates(grid)
    body = (y / 45) ** 2 + (x / 60) ** 2 < 1
    lung = ((y / 20) ** 2 + ((x - 20) / 15) ** 2 < 1) & (z.abs() < 20)
    couch = (y > 51) & (y < 54)
    return (WATER * ((body & ~lung) | couch)).float()[None, None], body[None, None], grid


def test_body_mask_takes_the_body_with_its_lungs_and_leaves_the_couch():
    x, body, grid = body_with_couch()
    assert torch.equal(body_mask(x, grid), body)
    assert not body_mask(torch.zeros_like(x), grid).any()


def test_fit_grid_centres_on_the_body_and_crops_or_pads():
    x, body, grid = body_with_couch()
    moved = Grid(grid.shape, grid.spacing, (5.0, -7.0, 11.0))
    for shape in ((10, 12, 14), (60, 60, 60)):
        new = fit_grid(moved, body, shape, (3.0,) * 3)
        assert new.centre == pytest.approx(moved.centre) and new.shape == shape
    shift = (0, 3, -4)
    aside = body.roll(shift, (2, 3, 4))
    assert not any(aside.movedim(axis, 0)[[0, -1]].any() for axis in (3, 4))  # it did not go round the edge
    for axis, centre in enumerate(fit_grid(moved, aside, (10, 12, 14), (3.0,) * 3).centre):
        assert centre == pytest.approx(moved.centre[axis] + shift[axis] * moved.spacing[axis])
    with pytest.raises(ValueError, match="marks nothing"):
        fit_grid(grid, torch.zeros_like(body), (8, 8, 8), (1.0,) * 3)
