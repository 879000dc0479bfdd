"""How far a CT reconstruction is from the truth: PSNR, SSIM and RMSE in an explicit window of Hounsfield units."""

from __future__ import annotations

from math import log10, prod, sqrt

import torch
from torch import Tensor

from pdframe.ct.windows import METRIC, Window

#: SSIM of Wang et al. 2004: Gaussian of 1.5 samples cut at 3.5 deviations, K1 = 0.01, K2 = 0.03.
_SIGMA, _RADIUS, _K1, _K2 = 1.5, 5, 0.01, 0.03


def psnr_db(x: Tensor, truth: Tensor, mask: Tensor | None = None, *, window: Window = METRIC) -> float:
    """10 log10(range^2 / mean square error), the range being the window's width; inf for equal volumes."""
    error = rmse_hu(x, truth, mask, window=window)
    return 20.0 * log10(window.width_hu / error) if error > 0 else float("inf")


def rmse_hu(x: Tensor, truth: Tensor, mask: Tensor | None = None, *, window: Window = METRIC) -> float:
    """Root mean square error in HU, both clipped to the window first. x, truth: attenuation in 1/mm, one shape."""
    square = (window.clip(x).double() - window.clip(truth).double()) ** 2
    return sqrt(_mean(square, mask))


def ssim(
    x: Tensor,
    truth: Tensor,
    mask: Tensor | None = None,
    *,
    window: Window = METRIC,
    axes: tuple[int, ...] | None = None,
) -> float:
    """Mean structural similarity, both clipped to the window, whose width is the data range; 1 for equal volumes.

    x, truth: (1, channel, *spatial), 1/mm. axes: spatial axes that the Gaussian covers, all by default; (1, 2) of a
    volume gives the mean over axial slices. As `skimage.metrics.structural_similarity(gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False)`: samples nearer than 5 to the border along those axes do not count,
    unless that would leave none.
    """
    axes = tuple(range(x.ndim - 2)) if axes is None else axes
    similarity = _similarity(window.clip(x).double(), window.clip(truth).double(), window.width_hu, axes)
    for axis in axes:
        n = x.shape[axis + 2]
        if n > 2 * _RADIUS:
            similarity = similarity.narrow(axis + 2, _RADIUS, n - 2 * _RADIUS)
            mask = mask if mask is None else mask.narrow(axis + 2, _RADIUS, n - 2 * _RADIUS)
    return _mean(similarity, mask)


def _similarity(a: Tensor, b: Tensor, span: float, axes: tuple[int, ...]) -> Tensor:
    mean_a, mean_b = _blur(a, axes), _blur(b, axes)
    var_a = _blur(a * a, axes) - mean_a**2
    var_b = _blur(b * b, axes) - mean_b**2
    covariance = _blur(a * b, axes) - mean_a * mean_b
    c1, c2 = (_K1 * span) ** 2, (_K2 * span) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


def _blur(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Separable Gaussian; beyond the border the samples are mirrored, the last one repeated."""
    offsets = range(-_RADIUS, _RADIUS + 1)
    weights = torch.exp(torch.tensor([-0.5 * (k / _SIGMA) ** 2 for k in offsets], dtype=torch.float64))
    weights = (weights / weights.sum()).tolist()
    for axis in axes:
        n, dim = x.shape[axis + 2], axis + 2
        index = torch.arange(-_RADIUS, n + _RADIUS, device=x.device) % (2 * n)
        padded = x.index_select(dim, torch.minimum(index, 2 * n - 1 - index))
        x = torch.zeros_like(x)
        for k, weight in enumerate(weights):
            x.add_(padded.narrow(dim, k, n), alpha=weight)
    return x


def _mean(values: Tensor, mask: Tensor | None) -> float:
    if mask is None:
        return float(values.mean())
    if mask.shape != values.shape:
        raise ValueError(f"the mask must have the shape of the volume, {tuple(values.shape)}: got {tuple(mask.shape)}")
    chosen = values[mask.to(values.device)]
    if chosen.numel() == 0:
        raise ValueError(f"the mask marks none of the {prod(values.shape)} voxels that count: is it of this volume?")
    return float(chosen.mean())
