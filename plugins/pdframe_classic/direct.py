"""Direct inversion: `fdk` for cone beams, `fbp` for parallel and fan beams."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from pdframe.core.memory import held_bytes, solve_bytes, work_bytes
from pdframe.core.operator import ForwardOperator, direct_inverse, pseudoinverse
from pdframe.core.problem import Problem
from pdframe.core.solver import Progress, Solver
from pdframe.hooks import Config


class FDKConfig(Config):
    """Settings of `fdk` (Feldkamp, Davis and Kress, J. Opt. Soc. Am. A 1984)."""

    nonnegative: bool = Field(True, description="Set negative voxels to 0.")

    def build(self, operator: ForwardOperator | None = None) -> Direct:
        if getattr(operator, "geometry", None) is not None and direct_inverse(operator) is None:
            raise ValueError("fdk needs a source that goes round a circle or an arc: use cgls, sirt or admm_tv")
        return Direct(self.nonnegative)


class FBPConfig(Config):
    """Settings of `fbp`: filtered back-projection of a beam that does not diverge along the axis."""

    nonnegative: bool = Field(True, description="Set negative voxels to 0.")

    def build(self, operator: ForwardOperator) -> Direct:
        parallel = getattr(getattr(operator, "geometry", None), "parallel", False)
        rows = operator.data_shape[1] if len(operator.data_shape) == 3 else 1
        if rows > 1 and not parallel:
            raise ValueError(f"fbp is for parallel beams and for one detector row: got a cone of {rows} rows; use fdk")
        return Direct(self.nonnegative)


@dataclass(frozen=True)
class DirectState:
    x: Tensor
    done: bool


@dataclass(frozen=True)
class Direct(Solver[DirectState]):
    """x = the operator's pseudo-inverse of y, in one step."""

    nonnegative: bool

    @property
    def total_steps(self) -> int:
        return 1

    def init(self, problem: Problem, rng: torch.Generator) -> DirectState:
        return DirectState(problem.y.new_zeros(*problem.y.shape[:2], *problem.operator.grid.shape), False)

    def step(self, problem: Problem, state: DirectState, rng: torch.Generator) -> DirectState:
        x = pseudoinverse(problem.operator, problem.y)
        return DirectState(x.clamp_min(0) if self.nonnegative else x, True)

    def view(self, state: DirectState) -> Progress:
        return Progress(state.x, state.done)


@solve_bytes.register
def _(solver: Direct, operator: ForwardOperator, *, device: torch.device | str = "cpu") -> int:
    """x before and after, and the filtered data."""
    return held_bytes(operator, (3, 2)) + work_bytes(solver, operator, device=device)
