"""How good the solutions of a case are: metrics, the data residual, and the cost of each estimate made from them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pdframe.core.budget import Usage
from pdframe.core.noise import Noise
from pdframe.core.operator import ForwardOperator
from pdframe.core.problem import Item, Metric, Problem
from pdframe.core.solve import Solution


@dataclass(frozen=True)
class Judge:
    """Who knows the truth of one problem. All tensors are on one device."""

    problem: Problem
    item: Item
    metric: Metric | None

    def estimates(self, solutions: Sequence[Solution]) -> list[dict[str, Any]]:
        """The first sample at its own cost and, of several, their mean at the cost of all.

        Each is a dict with samples (how many were averaged), metrics, residual, usage; nothing is told of a NaN.
        """
        first = {"samples": 1, **self.judged(solutions[0].x), "usage": dataclasses.asdict(solutions[0].usage)}
        if len(solutions) == 1:
            return [first]
        total = Usage()
        for solution in solutions:
            total = total.plus(solution.usage)
        mean = torch.stack([s.x for s in solutions]).mean(0)
        return [first, {"samples": len(solutions), **self.judged(mean), "usage": dataclasses.asdict(total)}]

    def judged(self, x: Tensor) -> dict[str, Any]:
        """Metrics and the data residual of one volume; None for a residual that overflows."""
        if not bool(x.isfinite().all()):
            return {"metrics": {}, "residual": None}
        residual = data_residual(self.problem.operator, x, self.problem.y, self.problem.noise)
        return {"metrics": self.metrics(x), "residual": residual if math.isfinite(residual) else None}

    def metrics(self, x: Tensor) -> dict[str, float]:
        """On the whole volume and, with the name of the mask before it (`body_psnr_db`), in every mask."""
        if self.metric is None:
            return {}
        metrics = dict(self.metric.measure(x, self.item.x))
        for name, mask in self.item.masks.items():
            if bool(mask.any()):
                inside = self.metric.measure(x, self.item.x, mask)
                metrics |= {f"{name}_{key}": value for key, value in inside.items()}
        return metrics


def data_residual(operator: ForwardOperator, x: Tensor, y: Tensor, noise: Noise) -> float:
    """|sqrt(W) (A x - y)| / sqrt(n), W the inverse variance of y: about 1 for the truth and a right model."""
    gap = (operator.forward(x) - y).double()
    return float((noise.inverse_variance(y).double() * gap**2).mean().sqrt())
