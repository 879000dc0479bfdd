"""Made-up couches of a training: below the body, in air alone, and of the thickness that they are said to have."""

from __future__ import annotations

import pytest
import torch
from pdframe_patch.weights import Card

from pdframe.core.seeds import generator
from pdframe.ct.couch import _covered, with_couch

CARD = Card()
SPACING = (3.0, 2.0, 2.0)


def cylinder(rows: int = 100) -> torch.Tensor:
    """Water of 60 mm radius, its back 40 mm above the lower edge of the volume when it has 100 rows."""
    y, x = torch.meshgrid(2.0 * torch.arange(rows) - 98.0, 2.0 * torch.arange(120) - 119.0, indexing="ij")
    water = torch.where(y**2 + x**2 < 60**2, 1.0, CARD.air)
    return water.expand(4, rows, 120).contiguous()


def test_a_couch_is_drawn_below_the_body_and_changes_nothing_but_air():
    before = cylinder()
    for seed in range(20):
        after = with_couch(before, SPACING, CARD, generator(seed))
        changed = after != before
        assert changed.any() and (after >= before).all() and not changed[before > CARD.air].any()
        assert not changed[:, :30].any()  # a cradle's sides rise, but not above the patient
        assert torch.equal(changed[0], changed[-1]) and (after <= CARD.air + 1401 / CARD.scale_hu).all()


def test_the_same_generator_draws_the_same_couch_and_another_another():
    one, again, other = (with_couch(cylinder(), SPACING, CARD, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_a_volume_without_room_or_without_a_body_stays_as_it_is():
    cut = cylinder(rows=79)
    assert with_couch(cut, SPACING, CARD, generator(0)) is cut
    air = torch.full((4, 50, 50), CARD.air)
    assert with_couch(air, SPACING, CARD, generator(0)) is air


@pytest.mark.parametrize("step_mm", [0.5, 2.0, 7.0])
def test_a_shell_keeps_its_thickness_on_any_grid(step_mm: float):
    centres = (torch.arange(200) + 0.37) * step_mm
    assert float(_covered(centres, 20.0, 21.3, step_mm).sum() * step_mm) == pytest.approx(1.3, rel=1e-4)
