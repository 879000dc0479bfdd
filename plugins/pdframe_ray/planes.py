"""Joseph's projection plane by plane in torch: any panel, any device, and its exact transpose.

For the rays whose main axis is a, every plane of voxel centres along a is one 2D image, sampled bilinearly where the
rays cross it. Planes go through in chunks so that scratch memory is bounded (`chunk_planes`), batch and channel ride
along as image channels. The transpose is the backward of the same sampling, called without an autograd tape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pdframe_ray.rays import MARGIN, IndexRays

#: Bound on the memory of one chunk of planes, in bytes, but at least one plane of one view. See `scratch_bytes`.
SCRATCH_BYTES = 48 * 2**20


@dataclass(frozen=True)
class _Bundle:
    """The rays of one view that share a main axis, relative to its middle plane.

    pixels: their flat pixel indices, or None if it is all of them. middle, slope: (ray, 2) as (last, first) axis of
    the plane in the normalised coordinates of `grid_sample`, in float64. length: mm of ray per plane, (ray,).
    """

    axis: int
    pixels: Tensor | None
    middle: Tensor
    slope: Tensor
    length: Tensor


def project(x: Tensor, rays: IndexRays, panel: tuple[int, int]) -> Tensor:
    """A x: (item, z, y, x) -> (item, view, row, column)."""
    y = x.new_zeros(x.shape[0], len(rays.source), panel[0] * panel[1])
    stacks: dict[int, Tensor] = {}  # (plane, item, ...) along each main axis, contiguous, made when first met
    for view in range(len(rays.source)):
        for bundle in _bundles(rays, view, panel, x):
            if bundle.axis not in stacks:
                stacks[bundle.axis] = x.movedim(1 + bundle.axis, 0).contiguous()
            total = x.new_zeros(x.shape[0], len(bundle.length))
            for planes, points in _chunks(bundle, x):
                total += _sample(stacks[bundle.axis][planes], points)[:, :, 0].sum(dim=0)
            total *= bundle.length
            if bundle.pixels is None:
                y[:, view] = total
            else:
                y[:, view, bundle.pixels] = total
    return y.unflatten(-1, panel)


def back_project(y: Tensor, rays: IndexRays, shape: tuple[int, int, int]) -> Tensor:
    """A' y, the exact transpose of `project`: (item, view, row, column) -> (item, z, y, x)."""
    panel = (y.shape[2], y.shape[3])
    x = y.new_zeros(y.shape[0], *shape)
    stacks: dict[int, Tensor] = {}
    for view in range(len(rays.source)):
        flat = y[:, view].flatten(1)
        for bundle in _bundles(rays, view, panel, x):
            if bundle.axis not in stacks:
                stacks[bundle.axis] = torch.zeros_like(
                    x.movedim(1 + bundle.axis, 0), memory_format=torch.contiguous_format
                )
            stack = stacks[bundle.axis]
            rows = (flat if bundle.pixels is None else flat[:, bundle.pixels]) * bundle.length
            for planes, points in _chunks(bundle, x):
                weight = rows[None, :, None].expand(points.shape[0], -1, -1, -1)
                stack[planes] += _spread(weight, points, stack[planes])
    for axis, stack in stacks.items():
        x += stack.movedim(0, 1 + axis)
    return x


def scratch_bytes(items: int, panel: tuple[int, int], shape: tuple[int, int, int], itemsize: int) -> int:
    """Upper bound on the scratch memory of `project` and `back_project`, in bytes."""
    rays, size = panel[0] * panel[1], shape[0] * shape[1] * shape[2]
    chunk = max(SCRATCH_BYTES, _plane_bytes(items, rays, size // min(shape), itemsize))
    return chunk + rays * (24 * 8 + 9 * itemsize + 2 * items * itemsize) + 2 * items * size * itemsize


def chunk_planes(items: int, rays: int, plane: int, itemsize: int) -> int:
    """How many planes go through at once; 16 is as fast as more, and stays in cache."""
    return max(1, min(16, SCRATCH_BYTES // _plane_bytes(items, rays, plane, itemsize)))


def _plane_bytes(items: int, rays: int, plane: int, itemsize: int) -> int:
    return itemsize * (rays * (2 + items) + 2 * items * plane)


def _bundles(rays: IndexRays, view: int, panel: tuple[int, int], x: Tensor) -> Iterator[_Bundle]:
    """The rays of a view, one bundle for each main axis that occurs."""
    start, step = _pixel_rays(rays, view, panel, x)
    handicap = step.new_tensor([1 - 2 * MARGIN, 1.0, 1 - MARGIN])
    axis = (step.abs() * handicap).argmax(dim=-1)
    for a in axis.unique().tolist():
        pixels = (axis == a).nonzero()[:, 0]
        everything = len(pixels) == len(axis)
        p, d = (start, step) if everything else (start[pixels], step[pixels])
        slope = d / d[:, a : a + 1]
        middle = p + ((x.shape[1 + a] - 1) / 2 - p[:, a : a + 1]) * slope
        length = (slope * slope.new_tensor(rays.spacing)).norm(dim=-1)
        others = [b for b in (2, 1, 0) if b != a]
        half = step.new_tensor([x.shape[1 + b] for b in others]) / 2
        middle, slope = (middle[:, others] + 0.5) / half - 1, slope[:, others] / half
        yield _Bundle(a, None if everything else pixels.to(x.device), middle, slope, length.to(x))


def _pixel_rays(rays: IndexRays, view: int, panel: tuple[int, int], x: Tensor) -> tuple[Tensor, Tensor]:
    """A point and a direction for every pixel of a view, (ray, 3) each, in float64."""
    device = "cpu" if x.device.type == "mps" else x.device  # Metal has no float64
    vectors = (rays.source, rays.corner, rays.u, rays.v)
    source, corner, u, v = (torch.from_numpy(a[view].copy()).to(device) for a in vectors)
    row = torch.arange(panel[0], dtype=torch.float64, device=device)[:, None, None]
    column = torch.arange(panel[1], dtype=torch.float64, device=device)[:, None]
    pixel = (corner + row * v + column * u).flatten(0, 1)
    return (pixel, source.expand_as(pixel)) if rays.parallel else (source.expand_as(pixel), pixel - source)


def _chunks(bundle: _Bundle, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Consecutive planes, and where the rays cross them: (plane, 1, ray, 2), overwritten by the next chunk.

    `grid_sample` adds 1 to a coordinate before it scales it, and loses bits there. So the coordinates are made with 1
    added, from an exact place at the chunk's first plane, and rounded once; taking the 1 off again costs nothing.
    """
    count, items = x.shape[1 + bundle.axis], x.shape[0]
    size = chunk_planes(items, len(bundle.length), x[0].numel() // count, x.element_size())
    slope = bundle.slope.to(x)
    room = x.new_empty(size, *slope.shape)
    for first in range(0, count, size):
        planes = slice(first, min(first + size, count))
        exact = torch.add(bundle.middle + 1, bundle.slope, alpha=first - (count - 1) / 2)
        base = exact.to(x)
        rest = (exact - base.to(exact)).to(x)
        step = torch.arange(planes.stop - first, dtype=x.dtype, device=x.device)
        points = torch.addcmul(rest, step[:, None, None], slope, out=room[: len(step)])
        yield planes, points.add_(base).sub_(1)[:, None]


def _sample(image: Tensor, points: Tensor) -> Tensor:
    """Bilinear, zero outside: (plane, item, h, w) at (plane, 1, ray, 2) -> (plane, item, 1, ray)."""
    return torch.ops.aten.grid_sampler_2d(image, points, 0, 0, False)


def _spread(weight: Tensor, points: Tensor, like: Tensor) -> Tensor:
    """The transpose of `_sample`, for images shaped like `like`."""
    image = weight.new_empty(1).expand(like.shape)
    return torch.ops.aten.grid_sampler_2d_backward(weight.contiguous(), image, points, 0, 0, False, [True, False])[0]
