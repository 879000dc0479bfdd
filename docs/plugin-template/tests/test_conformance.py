"""Every entry fulfils its contract; and what is particular to these two."""

from __future__ import annotations

import pytest
import torch
from pdframe_blur import pdframe_register

import pdframe
from pdframe.core.noise import GaussianNoise
from pdframe.testing import check_entry, report


@pytest.mark.parametrize("entry", pdframe_register(), ids=lambda entry: entry.name)
def test_every_entry_conforms(entry):
    checks = check_entry(entry)
    assert checks and all(check.passed for check in checks), report(checks)


def test_a_blurred_point_has_the_width_that_was_asked_for():
    grid = pdframe.Grid((41, 41), (1.0, 0.5), unit="1")
    point = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    point[0, 0, 20, 20] = 1
    blurred = pdframe.build("operator", "blur", grid=grid, width_mm=2.0).forward(point)[0, 0]
    for axis, spacing in enumerate(grid.spacing):
        profile = blurred.sum(1 - axis)
        at = (torch.arange(41, dtype=torch.float64) - 20) * spacing
        width = ((profile * at**2).sum() / profile.sum()).sqrt()
        assert abs(float(width) - 2.0) < 0.01


def test_landweber_undoes_a_mild_blur():
    grid = pdframe.Grid((16, 16), (1.0, 1.0), unit="1")
    operator = pdframe.build("operator", "blur", grid=grid, width_mm=0.5)
    truth = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = pdframe.Problem(operator, operator.forward(truth), GaussianNoise(1e-3))
    solution = pdframe.solve(problem, pdframe.build("solver", "landweber", steps=3000, relaxation=1.9))
    assert float((solution.x - truth).norm() / truth.norm()) < 1e-3
