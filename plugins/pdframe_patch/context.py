"""The global context: the whole noisy volume, averaged down to the size of one patch.

One function (`area_matrices` + `downsample`) serves training and sampling. It averages exactly over cells (area
weights, fractional overlaps included), so it is anti-aliased: the noise of a context voxel is that of the mean of
all the voxels it covers, sigma * sqrt(P^3 / N^3), and the context stays readable at noise levels where the patch
itself is not. Without anti-aliasing (trilinear taps) it would be 8 times noisier at 256^3 and P = 32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def area_matrices(shape: Sequence[int], patch: int, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """One (patch, n) matrix an axis: row i averages the voxels under the i-th of `patch` equal cells of the axis.

    A cell that is smaller than a voxel (n < patch) takes that voxel's value. Rows sum to 1.
    """
    matrices = []
    for n in shape:
        edges = torch.linspace(0, n, patch + 1, dtype=torch.float64)
        voxel = torch.arange(n, dtype=torch.float64)
        overlap = torch.minimum(edges[1:, None], voxel + 1) - torch.maximum(edges[:-1, None], voxel)
        matrices.append((overlap.clamp_min(0) * (patch / n)).float().to(device))
    return tuple(matrices)


def downsample(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """(..., z, y, x) -> (..., P, P, P): the separable average of `area_matrices`."""
    for axis, matrix in enumerate(matrices):
        dim = axis - len(matrices)
        x = torch.tensordot(x.movedim(dim, -1), matrix.to(x), dims=([-1], [1])).movedim(-1, dim)
    return x


def noise_gain(shape: Sequence[int], patch: int) -> float:
    """Standard deviation of a context voxel per unit of white noise in the volume (mean over voxels)."""
    gain = 1.0
    for matrix in area_matrices(shape, patch):
        gain *= float(matrix.double().square().sum(1).mean())
    return gain**0.5


class ContextNoise:
    """Exact draws of the context's noise, given the patch's own, without drawing the whole volume's.

    The context noise is D n with n white on the volume. Split the volume into the patch box and the rest: the
    first part is D applied to the patch's noise; the rest is a union of three disjoint boxes (out x all x all,
    in x out x all, in x in x out), on each of which D n is Gaussian with a covariance that is a Kronecker product
    of one (P, P) matrix an axis. So three draws of P^3 normals give the exact joint law at the cost of a patch,
    whatever the volume's size.
    """

    def __init__(self, shape: Sequence[int], patch: int) -> None:
        self.patch = patch
        self.matrices = tuple(m.double() for m in area_matrices(shape, patch))
        self.all = tuple(_root(m @ m.T) for m in self.matrices)

    def draw(self, inside: Tensor, start: Sequence[int], rng: torch.Generator) -> Tensor:
        """The (P, P, P) context noise that goes with `inside`, the patch's noise where it lies in the volume.

        `inside` has shape (nz, ny, nx) and begins at voxel `start` of the volume.
        """
        rows = [m[:, a : a + n] for m, a, n in zip(self.matrices, start, inside.shape, strict=True)]
        outside = [_root(m @ m.T - r @ r.T) for m, r in zip(self.matrices, rows, strict=True)]
        within = [torch.nn.functional.pad(r, (0, self.patch - r.shape[1])) for r in rows]
        noise = downsample(inside, [r.float() for r in rows])
        boxes = (
            (outside[0], self.all[1], self.all[2]),
            (within[0], outside[1], self.all[2]),
            (within[0], within[1], outside[2]),
        )
        for box in boxes:
            white = torch.randn((self.patch,) * 3, generator=rng)
            noise = noise + downsample(white, [factor.float() for factor in box])
        return noise


def _root(covariance: Tensor) -> Tensor:
    """F with F F' = covariance, for a positive semi-definite matrix (rank may be short: no Cholesky)."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt()
