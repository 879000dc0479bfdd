"""Column-separable Joseph projection: the loops, compiled by numba. Imported by `columns` only, when first used.

Volumes are (y, x, z) with z contiguous, data (view, column, row) with row contiguous. All rays to one upright panel
column cross a plane on one vertical line, so a plane costs one blend of two z columns and one 1D resampling.
A caller splits the work over threads. No voxel or ray is summed by two threads, so
the result does not depend on how many there are.
"""

from __future__ import annotations

import numpy as np

from pdframe.core.compiled import compiled

# Columns of the table that `columns.table` makes: along plane j the crossing is at in-plane index ACROSS + j ACROSS_J;
# row r is at z index Z + j Z_J + r (STEP + j STEP_J); its length per plane, in mm, is sqrt(FLAT + (RISE + r RISE_R)^2).
ACROSS, ACROSS_J, Z, Z_J, STEP, STEP_J, FLAT, RISE, RISE_R = range(9)

#: Zeros on both sides of a z column, for neighbours of voxels at the ends and for rounding there.
PAD = 3
#: Slack in rows or voxels when the range of valid rows or voxels is computed ahead of a loop.
SLACK = 1e-4
#: A step between rows is split into a multiple of 1 / GRAIN, whose products with whole numbers are exact in float32 as
#: far as 8192 voxels, and a small rest. So a position's fraction has the precision of float32 whatever its whole part:
#: errors of 2e-7 of the data, where a plain z + step * row makes 5e-6 at 128 voxels and twice that at 256.
GRAIN = 2048.0


@compiled
def _blend(low, high, a, b, out):  # noqa: ANN001, ANN202
    for z in range(np.uint64(len(low))):
        out[z] = a * low[z] + b * high[z]


@compiled
def _split(step):  # noqa: ANN001, ANN202
    """Coarse and fine part of a step."""
    coarse = np.round(step * GRAIN) / GRAIN
    return coarse, step - coarse


@compiled
def _resample(column, z, step, out):  # noqa: ANN001, ANN202
    """out[r] += column at z + step r, in float64. No position is negative, so truncation is floor."""
    kind = out.dtype.type
    whole = int(z)
    coarse, fine = _split(step)
    start, coarse, fine, step, values = kind(z - whole), kind(coarse), kind(fine), kind(step), column[whole:]
    for r in range(np.uint64(len(out))):
        row = kind(np.int32(r))
        index = np.int32(start + step * row)
        fraction = (coarse * row - kind(index)) + (start + fine * row)
        k = np.uint64(index)
        low = values[k]
        out[r] += low + fraction * (values[k + np.uint64(1)] - low)


@compiled
def _reach(z, step, first):  # noqa: ANN001, ANN202
    """The last row that does not reach voxel `first` nor any above, its z from there, and where it stops short, +1.

    Row r is at z + step r and reaches the voxels less than 1 away.
    """
    short = (first - 1 - z) / step
    row = np.floor(short)
    return int(row), z + step * row - first, short - row + 1


@compiled
def _spread(data, pad, z, step, tap, first, a, b, low, high):  # noqa: ANN001, ANN202, PLR0913
    """Transpose of `_resample` and `_blend`, by voxel, for rows number tap, tap + 1, tap + 2 of those that reach it.

    low[0] and high[0] are of voxel `first`; z and step in float64. `data` holds `pad` zeros before row 0.
    """
    kind = low.dtype.type
    row, start, offset = _reach(z, step, first)
    coarse, fine = _split(step)
    one, zero, start, offset, inverse = kind(1), kind(0), kind(start), kind(offset), kind(1 / step)
    coarse, fine, step, rows = kind(coarse), kind(fine), kind(step), data[pad + row :]
    for n in range(np.uint64(len(low))):
        voxel = kind(np.int32(n))
        k = np.int32(np.int32(voxel * inverse + offset) + tap)
        at = (coarse * kind(k) - voxel) + (start + fine * kind(k))
        k0 = np.uint64(k)
        total = rows[k0] * max(zero, one - abs(at))
        total += rows[k0 + np.uint64(1)] * max(zero, one - abs(at + step))
        total += rows[k0 + np.uint64(2)] * max(zero, one - abs(at + step + step))
        low[n] += a * total
        high[n] += b * total


@compiled
def _spread_pair(data, pad, z, step, first, a, b, low, high):  # noqa: ANN001, ANN202, PLR0913
    """`_spread` where no voxel is reached by more than two rows (step >= 1)."""
    kind = low.dtype.type
    row, start, offset = _reach(z, step, first)
    coarse, fine = _split(step)
    one, zero, start, offset, inverse = kind(1), kind(0), kind(start), kind(offset), kind(1 / step)
    coarse, fine, step, rows = kind(coarse), kind(fine), kind(step), data[pad + row :]
    for n in range(np.uint64(len(low))):
        voxel = kind(np.int32(n))
        k = np.int32(voxel * inverse + offset)
        at = (coarse * kind(k) - voxel) + (start + fine * kind(k))
        k0 = np.uint64(k)
        total = rows[k0] * max(zero, one - abs(at))
        total += rows[k0 + np.uint64(1)] * max(zero, one - abs(at + step))
        low[n] += a * total
        high[n] += b * total


@compiled
def _lengths(entry, out):  # noqa: ANN001, ANN202
    """Millimetres of ray per plane for the rows of one panel column."""
    for r in range(len(out)):
        rise = entry[RISE] + r * entry[RISE_R]
        out[r] = np.sqrt(entry[FLAT] + rise * rise)


@compiled
def project(volume, layout, table, columns, out):  # noqa: ANN001, ANN202
    """out[c, row] = line integrals for the panel columns c in `columns`.

    volume: flat. layout: (planes, across, height, stride of a plane, stride across). out: (all columns, rows).
    """
    planes, across, height, plane_stride, across_stride = layout
    rows = out.shape[1]
    kind = out.dtype.type
    column = np.zeros(height + 2 * PAD, out.dtype)
    length = np.empty(rows, out.dtype)
    for c in columns:
        entry = table[c]
        total = out[c]
        total[:] = 0
        for j in range(planes):
            position = entry[ACROSS] + j * entry[ACROSS_J]
            i = int(np.floor(position))
            if i < -1 or i >= across:
                continue
            z, step = entry[Z] + j * entry[Z_J], entry[STEP] + j * entry[STEP_J]
            r0 = max(0, int(np.ceil((-1 - z) / step - SLACK)))
            r1 = min(rows, int(np.floor((height - z) / step + SLACK)) + 1)
            if r1 <= r0:
                continue
            w = position - i
            a, b = kind(0 if i < 0 else 1 - w), kind(0 if i + 1 == across else w)
            low = j * plane_stride + max(i, 0) * across_stride
            high = j * plane_stride + min(i + 1, across - 1) * across_stride
            _blend(volume[low : low + height], volume[high : high + height], a, b, column[PAD : PAD + height])
            _resample(column, z + PAD + step * r0, step, total[r0:r1])
        _lengths(entry, length)
        total *= length


@compiled
def weigh(data, table, columns, pad, out):  # noqa: ANN001, ANN202
    """out[c, pad + row] = data * length for the panel columns c in `columns`."""
    rows = data.shape[1]
    length = np.empty(rows, data.dtype)
    for c in columns:
        _lengths(table[c], length)
        out[c, pad : pad + rows] = data[c] * length


@compiled
def back_project(data, pad, layout, table, columns, planes, volume):  # noqa: ANN001, ANN202
    """Add the transpose of `project` to the planes first ... last - 1 = `planes` of `volume`.

    data: as `weigh` leaves it. The other arguments as in `project`.
    """
    _, across, height, plane_stride, across_stride = layout
    first, last = planes
    rows = data.shape[1] - 2 * pad
    kind = volume.dtype.type
    # What falls beside the volume, with weight 0: the two columns of a blend must not be one (see `compiled`).
    outside = np.zeros(height, volume.dtype)
    for c in columns:
        entry = table[c]
        for j in range(first, last):
            position = entry[ACROSS] + j * entry[ACROSS_J]
            i = int(np.floor(position))
            if i < -1 or i >= across:
                continue
            z, step = entry[Z] + j * entry[Z_J], entry[STEP] + j * entry[STEP_J]
            z0 = max(0, int(np.ceil(z - 1 - SLACK)))
            z1 = min(height, int(np.floor(z + step * (rows - 1) + 1 + SLACK)) + 1)
            if z1 <= z0:
                continue
            w = position - i
            a, b = kind(0 if i < 0 else 1 - w), kind(0 if i + 1 == across else w)
            base = j * plane_stride + i * across_stride
            low = outside[z0:z1] if i < 0 else volume[base + z0 : base + z1]
            base += across_stride
            high = outside[z0:z1] if i + 1 == across else volume[base + z0 : base + z1]
            if step >= 1:
                _spread_pair(data[c], pad, z, step, z0, a, b, low, high)
                continue
            for tap in range(0, int(np.ceil(2 / step)), 3):
                _spread(data[c], pad, z, step, np.int32(tap), z0, a, b, low, high)
