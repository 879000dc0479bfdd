"""Cutting into patches and putting back: every voxel once, no seam, for any shape."""

from __future__ import annotations

import itertools

import pytest
import torch
from pdframe_patch import tiling
from pdframe_patch.context import area_matrices, downsample
from pdframe_patch.network import coordinates

from pdframe.core.seeds import generator

SHAPES = [(32, 32, 32), (33, 20, 47), (5, 64, 7), (1, 1, 1)]
PATCH = 16
NO_CONTEXT = torch.zeros(0)


def identity(patches, starts, context):
    return patches


def padded(volume: torch.Tensor) -> torch.Tensor:
    return tiling.pad(volume, PATCH, torch.full([n + 2 * PATCH for n in volume.shape], -1.0))


def offsets(count: int) -> list[tuple[int, int, int]]:
    rng = generator(0, "offsets")
    return [(0, 0, 0), (PATCH - 1,) * 3, *(tiling.random_offset(PATCH, rng) for _ in range(count))]


@pytest.mark.parametrize("shape", SHAPES)
def test_each_voxel_lies_in_exactly_one_patch(shape):
    for offset in offsets(10):
        count = torch.zeros([n + 2 * PATCH for n in shape], dtype=torch.long)
        for z, y, x in (tiling.partition(shape, PATCH, offset).starts + PATCH).tolist():
            count[z : z + PATCH, y : y + PATCH, x : x + PATCH] += 1
        z, y, x = shape
        assert bool((count[PATCH : PATCH + z, PATCH : PATCH + y, PATCH : PATCH + x] == 1).all())


def test_patches_of_pure_padding_are_left_out():
    for offset, axis in itertools.product(offsets(20), range(3)):
        tiles = tiling.partition((32, 32, 32), PATCH, offset)
        assert int((tiles.starts[:, axis] + PATCH).min()) > 0 and int(tiles.starts[:, axis].max()) < 32
    assert len(tiling.partition((32, 32, 32), PATCH, (0, 0, 0)).starts) == 8
    assert len(tiling.partition((32, 32, 32), PATCH, (1, 1, 1)).starts) == 27


@pytest.mark.parametrize("shape", SHAPES)
def test_a_denoiser_that_returns_its_input_gives_the_volume_back(shape):
    volume = torch.randn(shape, generator=generator(1))
    for offset in offsets(5):
        tiles = tiling.partition(shape, PATCH, offset)
        assert torch.equal(tiling.evaluate(padded(volume), NO_CONTEXT, tiles, identity, batch=5), volume)
    blended = tiling.evaluate_blended(padded(volume), NO_CONTEXT, tiling.overlapping(shape, PATCH), identity, 5)
    torch.testing.assert_close(blended, volume)


@pytest.mark.parametrize("axis", range(3))
def test_a_denoiser_that_returns_a_coordinate_gives_the_coordinate_of_the_whole_volume(axis):
    shape = (33, 20, 47)
    n = shape[axis]
    line = (2 * torch.arange(n, dtype=torch.float32) + 1) / n - 1
    view = [1, 1, 1]
    view[axis] = n
    whole = line.reshape(view).expand(shape)

    def probe(patches, starts, context):
        return coordinates(starts, PATCH, shape)[:, axis : axis + 1]

    for offset in offsets(5):
        tiles = tiling.partition(shape, PATCH, offset)
        torch.testing.assert_close(
            tiling.evaluate(padded(torch.zeros(shape)), NO_CONTEXT, tiles, probe, batch=4), whole
        )


def test_a_denoiser_that_reads_the_context_at_its_position_gives_the_context_of_the_whole_volume():
    """Each voxel looks up the context cell that covers it: the answer is the piecewise constant context, no seam."""
    shape = (32, 48, 40)
    volume = torch.randn(shape, generator=generator(2))
    context = downsample(volume, area_matrices(shape, PATCH))

    def cells(length, position):
        return ((position + 1) / 2 * PATCH).floor().long().clamp(0, PATCH - 1)

    def probe(patches, starts, context):
        where = coordinates(starts, PATCH, shape)
        z, y, x = (cells(n, where[:, a]) for a, n in enumerate(shape))
        return context[z, y, x][:, None]

    lines = [cells(n, (2 * torch.arange(n) + 1) / n - 1) for n in shape]
    whole = context[lines[0]][:, lines[1]][:, :, lines[2]]
    for offset in offsets(5):
        tiles = tiling.partition(shape, PATCH, offset)
        assert torch.equal(tiling.evaluate(padded(volume), context, tiles, probe, batch=4), whole)
