"""Whether posterior samples are as uncertain as they are wrong: ranks, coverage, CRPS, error against deviation.

All three hold exactly in expectation for any number of samples k >= 2 if truth and samples come from one distribution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Bins of the curve of error against predicted deviation, with equally many voxels each.
BINS = 10


def calibrate(samples: Tensor, truth: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
    """Calibration as JSON numbers, in the unit of the volumes.

    samples: (k, *shape), k >= 2, independent draws. truth: (*shape). mask: (*shape), bool, voxels that count.

    ranks: how often the truth has rank 0..k among the samples (k + 1 fractions; flat if calibrated; ties shared).
    coverage: of each central interval between order statistics, `nominal` = (k + 1 - 2i) / (k + 1) and `observed`.
    crps: fair estimate of the continuous ranked probability score (Ferro, QJRMS 140, 2014), mean over voxels.
    rmse, deviation, spread_skill: error of the samples' mean less what k draws alone add, root-mean-square predicted
        deviation, and deviation / error (1 if calibrated, below 1 if too sure; Fortin et al., JHM 15, 2014).
    error_by_deviation: the same pair in bins of predicted deviation. From k = 4 on, one half of the samples chooses
        the bin and the other half gives its deviation, or chance would make the calibrated look too sure at the top.
    """
    k = len(samples)
    if k < 2 or samples.shape[1:] != truth.shape:
        raise ValueError(f"expected (k >= 2, *{tuple(truth.shape)}) samples of the truth, got {tuple(samples.shape)}")
    where = torch.ones_like(truth, dtype=torch.bool) if mask is None else mask.bool().expand_as(truth)
    if not bool(where.any()):
        raise ValueError("the mask is empty: no voxel to calibrate on")
    drawn, true = samples[:, where].double(), truth[where].double()
    ranks = _ranks(drawn, true)
    square_error, variance = _square_error(drawn, true).mean(), drawn.var(0).mean()
    return {
        "samples": k,
        "voxels": int(where.sum()),
        "ranks": ranks,
        "coverage": [
            {"nominal": (k + 1 - 2 * i) / (k + 1), "observed": sum(ranks[i : k + 1 - i])} for i in range(1, k // 2 + 1)
        ],
        "crps": float(_crps(drawn, true)),
        "rmse": float(square_error.sqrt()),
        "deviation": float(variance.sqrt()),
        "spread_skill": float((variance / square_error).sqrt()) if square_error > 0 else None,
        "error_by_deviation": _error_by_deviation(drawn, true),
    }


def _ranks(samples: Tensor, truth: Tensor) -> list[float]:
    """Fraction of voxels at each rank; a truth that equals m samples is shared by the m + 1 ranks it may have."""
    below = (samples < truth).sum(0)
    ties = (samples == truth).sum(0)
    share = 1.0 / (ties + 1.0)
    return [
        float((share * ((below <= rank) & (rank <= below + ties))).mean(dtype=torch.float64))
        for rank in range(len(samples) + 1)
    ]


def _crps(samples: Tensor, truth: Tensor) -> Tensor:
    """E|X - y| - E|X - X'| / 2 over pairs of different samples; sorted, sum_ij |x_i - x_j| = 2 sum (2i - k - 1) x_i."""
    k = len(samples)
    ordered = samples.sort(0).values
    weights = 2.0 * torch.arange(1, k + 1, dtype=ordered.dtype, device=ordered.device) - k - 1.0
    spread = torch.tensordot(weights, ordered, dims=1) / (k * (k - 1))
    return ((samples - truth).abs().mean(0) - spread).mean()


def _square_error(samples: Tensor, truth: Tensor) -> Tensor:
    """Squared error of the mean of k samples; k / (k + 1) takes out what the samples' own scatter adds."""
    k = len(samples)
    return k / (k + 1) * (samples.mean(0) - truth) ** 2


def _error_by_deviation(samples: Tensor, truth: Tensor) -> list[dict[str, float]]:
    k = len(samples)
    if k < 4:
        return []
    chooser, predicted = samples[: k // 2].var(0), samples[k // 2 :].var(0)
    error = _square_error(samples, truth)
    bins = chooser.argsort().tensor_split(min(BINS, len(truth)))
    return [
        {"deviation": float(predicted[b].mean().sqrt()), "rmse": float(error[b].mean().sqrt()), "voxels": len(b)}
        for b in bins
    ]
