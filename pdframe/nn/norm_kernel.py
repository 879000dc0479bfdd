"""GroupNorm and SiLU of bfloat16 in one loop, compiled by numba. Imported by `norm` only, when first used.

numba knows no bfloat16: values come and go as the upper half of a float32's bits, in uint16.
"""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from pdframe.core.compiled import compiled

LOG2_E = np.float32(1.4426950408889634)
#: Added and taken away again it rounds a float32 below 2^22 to a whole number, which its lowest bits then hold.
ROUND = np.float32(1.5 * 2**23)


@intrinsic
def _as_float(context, bits):  # noqa: ANN001, ANN202
    def build(target, builder, signature, arguments):  # noqa: ANN001, ANN202
        return builder.bitcast(arguments[0], ir.FloatType())

    return numba.float32(numba.uint32), build


@intrinsic
def _as_bits(context, value):  # noqa: ANN001, ANN202
    def build(target, builder, signature, arguments):  # noqa: ANN001, ANN202
        return builder.bitcast(arguments[0], ir.IntType(32))

    return numba.uint32(numba.float32), build


@compiled
def _widen(half):  # noqa: ANN001, ANN202
    return _as_float(np.uint32(half) << np.uint32(16))


@compiled
def _narrow(value):  # noqa: ANN001, ANN202
    """To the nearest, to even where two are as near."""
    bits = _as_bits(value)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@compiled
def _exp2(t):  # noqa: ANN001, ANN202
    """2^t within 3e-6 for |t| < 126, without a call, so that the loop around it can be vectorised."""
    t = min(max(t, np.float32(-126.0)), np.float32(126.0))
    shifted = t + ROUND
    f = t - (shifted - ROUND)
    # Taylor's polynomial of 2^f, |f| <= 1/2: powers of log 2 over factorials.
    p = np.float32(1.3333558e-3)
    p = p * f + np.float32(9.6181291e-3)
    p = p * f + np.float32(5.5504109e-2)
    p = p * f + np.float32(2.4022651e-1)
    p = p * f + np.float32(6.9314718e-1)
    p = p * f + np.float32(1.0)
    return _as_float(_as_bits(p) + (_as_bits(shifted) << np.uint32(23)))


@compiled
def _line(x, weight, bias, groups, eps, slope, offset):  # noqa: ANN001, ANN202
    """For each channel what the norm multiplies by, and what it then adds."""
    positions, channels = x.shape
    width = channels // groups
    total, square = np.zeros_like(slope), np.zeros_like(slope)
    for s in range(positions):
        row = x[s]
        for c in range(np.uint64(channels)):
            value = _widen(row[c])
            total[c] += value
            square[c] += value * value
    for g in range(groups):
        mean, power = 0.0, 0.0
        for c in range(g * width, (g + 1) * width):
            mean += total[c]
            power += square[c]
        mean /= positions * width
        scale = 1 / np.sqrt(max(power / (positions * width) - mean * mean, 0.0) + eps)
        for c in range(g * width, (g + 1) * width):
            slope[c] = scale * weight[c]
            offset[c] = bias[c] - mean * scale * weight[c]


@compiled
def _affine_of(x, slope, offset, out):  # noqa: ANN001, ANN202
    for s in range(len(x)):
        row, into = x[s], out[s]
        for c in range(np.uint64(len(slope))):
            into[c] = _narrow(_widen(row[c]) * slope[c] + offset[c])


@compiled
def _silu_of(x, slope, offset, out):  # noqa: ANN001, ANN202
    for s in range(len(x)):
        row, into = x[s], out[s]
        for c in range(np.uint64(len(slope))):
            y = _widen(row[c]) * slope[c] + offset[c]
            into[c] = _narrow(y / (np.float32(1) + _exp2(-LOG2_E * y)))


@compiled
def normalise(x, weight, bias, groups, eps, activate, out):  # noqa: ANN001, ANN202
    """GroupNorm of x, (item, position, channel), into out; SiLU behind it if `activate`."""
    slope, offset = np.empty_like(weight), np.empty_like(weight)
    for n in range(len(x)):
        _line(x[n], weight, bias, groups, eps, slope, offset)
        if activate:
            _silu_of(x[n], slope, offset, out[n])
        else:
            _affine_of(x[n], slope, offset, out[n])
