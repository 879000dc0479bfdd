"""Cutting a stack of slices into groups that are seen together: every slice in exactly one answer, for any stride.

DiffusionBlend++ (arXiv 2406.10211) takes triples, at one evaluation of neighbours, at another of every third slice;
the released code writes the first and the last triple whatever the offset. Here a group that would reach over an end
is moved inward by whole strides, and gives only the estimates that no other group gives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Groups:
    """members (groups, size): slice numbers, `stride` apart; gives (groups, size): whose estimate the group gives."""

    members: Tensor
    gives: Tensor


def group_slices(count: int, size: int, stride: int, offset: int) -> Groups:
    """Slices 0..count-1 in groups of `size`, `stride` apart, in blocks of size * stride that begin at `offset`.

    count must be at least size * stride, so that every group finds its slices inside the volume.
    """
    if count < size * stride:
        raise ValueError(
            f"groups of {size} slices, {stride} apart, need {size * stride} slices: the volume has {count}"
        )
    members, gives = [], []
    for first in range(stride):
        line = torch.arange(first, count, stride)
        shift = -((first - offset) // stride) % size  # the place in this line where a block begins
        for start in range(shift - size, len(line), size):
            inside = min(max(start, 0), len(line) - size)
            places = torch.arange(inside, inside + size)
            own = (places >= start) & (places < start + size)
            if own.any():
                members.append(line[places])
                gives.append(own)
    return Groups(torch.stack(members), torch.stack(gives))


def draw_groups(count: int, size: int, strides: tuple[int, ...], rng: torch.Generator) -> tuple[Groups, int]:
    """Groups at a random stride, of those that the volume is large enough for, and a random offset; and the stride."""
    possible = [stride for stride in strides if count >= size * stride] or [min(strides)]
    stride = possible[int(torch.randint(len(possible), (1,), generator=rng))]
    offset = int(torch.randint(size * stride, (1,), generator=rng))
    return group_slices(count, size, stride, offset), stride
