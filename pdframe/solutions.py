"""Independent solves of one problem, each kept in a file as it ends: what runs and benches do with a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pdframe import runfolder
from pdframe.core.budget import Budget, Usage
from pdframe.core.problem import Problem
from pdframe.core.seeds import generator
from pdframe.core.solve import Solution, Status, solve
from pdframe.core.solver import Progress, Solver

#: Called with (sample, steps done, Progress, Usage) after each step.
OnStep = Callable[[int, int, Progress, Usage], None]


def draw(
    problem: Problem,
    solver: Solver,
    folder: Path,
    y_sha256: str,
    *,
    count: int = 1,
    seed: int = 0,
    budget: Budget | None = None,
    on_step: OnStep | None = None,
) -> list[Solution]:
    """`count` solves; sample i has the stream of (seed, "sample", i) and does not depend on how many there are.

    folder: holds a checkpoint of the one at work and each finished one, so that the same call goes on after a kill, to
    the same bits; `forget` removes both. y_sha256: hash of problem.y; files of other data are not taken for these.
    Raises KeyboardInterrupt after it was interrupted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    solutions = []
    for i in range(count):
        kept = folder / f"solution_{i}.safetensors"
        solution = runfolder.load_solution(kept, y_sha256)
        if solution is None:
            solution = solve(
                problem,
                solver,
                rng=generator(seed, "sample", i),
                budget=budget,
                on_step=on_step and (lambda *told, i=i: on_step(i, *told)),
                checkpoint=folder / f"checkpoint_{i}.safetensors",
            )
            if solution.status is Status.interrupted:
                raise KeyboardInterrupt
            runfolder.save_solution(kept, solution, y_sha256)
        solutions.append(replace(solution, x=solution.x.to(problem.y)))
    return solutions


def forget(folder: Path) -> None:
    """Removes what `draw` left in a folder."""
    for pattern in ("checkpoint_[0-9]*.safetensors", "solution_[0-9]*.safetensors"):
        for path in folder.glob(pattern):
            path.unlink()
