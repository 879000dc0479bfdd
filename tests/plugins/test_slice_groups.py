"""Slices in groups: each in exactly one answer, for any number of slices, stride and offset."""

from __future__ import annotations

import pytest
import torch
from pdframe_slice.groups import draw_groups, group_slices

from pdframe.core.seeds import generator

CASES = [
    (n, size, stride) for n in (1, 2, 3, 5, 9, 10, 31) for size in (1, 3) for stride in (1, 2, 3) if size * stride <= n
]


@pytest.mark.parametrize(("count", "size", "stride"), CASES)
def test_every_slice_is_given_exactly_once(count, size, stride):
    for offset in range(size * stride):
        groups = group_slices(count, size, stride, offset)
        given = groups.members[groups.gives]
        assert given.sort().values.tolist() == list(range(count))
        assert bool(groups.gives.any(1).all())


@pytest.mark.parametrize(("count", "size", "stride"), CASES)
def test_the_slices_of_a_group_are_a_stride_apart_and_in_the_volume(count, size, stride):
    for offset in range(size * stride):
        members = group_slices(count, size, stride, offset).members
        assert bool((members.diff(dim=1) == stride).all())
        assert int(members.min()) >= 0 and int(members.max()) < count


def sets(count: int, stride: int, offset: int) -> set[tuple[int, ...]]:
    return {tuple(group) for group in group_slices(count, 3, stride, offset).members.tolist()}


def test_blocks_of_nine_are_those_of_the_paper():
    """Every third slice: {i, i + 3, i + 6} in blocks of nine. Neighbours: triples from a start of 0, 1 or 2."""
    assert sets(9, 3, 0) == {(0, 3, 6), (1, 4, 7), (2, 5, 8)}
    assert sets(18, 3, 0) == sets(9, 3, 0) | {(9, 12, 15), (10, 13, 16), (11, 14, 17)}
    assert sets(9, 1, 0) == {(0, 1, 2), (3, 4, 5), (6, 7, 8)}
    assert sets(9, 1, 2) == {(0, 1, 2), (2, 3, 4), (5, 6, 7), (6, 7, 8)}  # the ends lean inward


def test_offsets_and_strides_are_all_drawn_and_only_those_that_fit():
    rng = generator(0)
    drawn = [draw_groups(12, 3, (1, 3), rng) for _ in range(300)]
    for stride in (1, 3):
        seen = {str(groups.members.tolist()) for groups, s in drawn if s == stride}
        assert len(seen) == len({str(group_slices(12, 3, stride, o).members.tolist()) for o in range(3 * stride)})
    share = sum(stride == 1 for _, stride in drawn) / 300
    assert share == pytest.approx(0.5, abs=4 * 0.5 / 300**0.5)
    assert {stride for _, stride in (draw_groups(8, 3, (1, 3), rng) for _ in range(20))} == {1}


def test_a_single_slice_is_its_own_group():
    assert torch.equal(group_slices(5, 1, 1, 0).members, torch.arange(5)[:, None])


def test_too_few_slices_are_refused():
    with pytest.raises(ValueError, match="need 3 slices: the volume has 2"):
        draw_groups(2, 3, (1, 3), generator(0))
