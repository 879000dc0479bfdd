"""Where a solver starts: at the prior's mean, at the operator's pseudo-inverse, or where another solver ends."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from pdframe.config import SolverPart
from pdframe.core.operator import pseudoinverse
from pdframe.core.prior import Prior
from pdframe.core.problem import Problem
from pdframe.core.solve import Status, solve

Start = Annotated[
    Literal["noise", "pseudoinverse"] | SolverPart,
    Field(
        description="Start from the prior's mean; or warm from the operator's pseudo-inverse of y (FDK for a cone "
        'beam), or from what another solver finds ({name = "admm_tv", weight = 5e-5}). Where the solver has noise '
        "levels, noise of the first is added: at a sigma_max of more than about 4 little of a warm start is left. What "
        "it costs is counted."
    ),
]


def starting_volume(start: Start, problem: Problem, prior: Prior, rng: torch.Generator, *, nonnegative: bool) -> Tensor:
    """The volume, without noise: (batch, channel, *grid.shape), like y in dtype and device.

    A warm start is clipped at 0 if x is to be `nonnegative`.
    """
    y = problem.y
    if start == "noise":
        return y.new_full((*y.shape[:2], *problem.operator.grid.shape), prior.mean)
    if start == "pseudoinverse":
        x = pseudoinverse(problem.operator, y)
    else:
        first = solve(problem, start.build(prior=prior), rng=rng)
        if first.status is Status.interrupted:  # half a start is no start: the solve ends here, without a result
            raise KeyboardInterrupt
        x = first.x
    return x.clamp_min(0) if nonnegative else x
