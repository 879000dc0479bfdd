"""A solver that starts from another one is one solve: its steps, budget, checkpoint and stopping are those of both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dense import TOY
from pdframe_solvers.dds import DDS, DDSConfig
from pdframe_solvers.start import Relay

import pdframe
from pdframe.bench.answer import _Keeper
from pdframe.core.budget import Budget
from pdframe.core.linalg import cgls
from pdframe.core.operator import pseudoinverse
from pdframe.core.seeds import generator
from pdframe.core.solve import Solution, Status, solve
from pdframe.core.solver import Leg, Progress, Solver

CGLS = {"name": "cgls", "iterations": 5, "nonnegative": False}
WEIGHTS = TOY.problem.noise.inverse_variance(TOY.problem.y)


def _built(name: str = "dds", **settings: object) -> Solver:
    few = {"start": CGLS, "steps": 3, "sigma_max": 1.0, "nonnegative": False}
    return pdframe.build("solver", name, prior=TOY.prior, **{**few, **settings})


def _cgls(iterations: int) -> torch.Tensor:
    return cgls(TOY.problem.operator, TOY.problem.y, iterations=iterations, weights=WEIGHTS).x


def _solve(solver: Solver, **more: object) -> tuple[Solution, list[Progress]]:
    seen: list[Progress] = []
    solution = solve(TOY.problem, solver, rng=generator(0, "test"), on_step=lambda k, p, usage: seen.append(p), **more)
    return solution, seen


def test_it_begins_at_the_pseudoinverse():
    solver = DDSConfig(start="pseudoinverse", sigma_max=0.5, temperature=1.0).build(prior=TOY.prior)
    state = solver.init(TOY.problem, generator(0))
    want = pseudoinverse(TOY.problem.operator, TOY.problem.y).clamp_min(0)
    torch.testing.assert_close(state.x0, want)
    assert float((state.x - want).std()) == pytest.approx(0.5 * TOY.prior.deviation, rel=0.4)


@pytest.mark.parametrize("name", ["admm", "daps", "dds", "dds_ztv", "diffpir", "dps", "red_diff"])
def test_every_solver_begins_where_the_other_ends_clipped_if_asked(name: str):
    for nonnegative in (False, True):
        solver = _built(name, nonnegative=nonnegative)
        _, seen = _solve(solver, budget=Budget(steps=5))
        want = _cgls(5).clamp_min(0) if nonnegative else _cgls(5)
        torch.testing.assert_close(seen[-1].x, want)
        torch.testing.assert_close(seen[3].x, _cgls(4))


def test_the_steps_are_those_of_both_and_tell_where_they_are():
    solver = _built()
    solution, seen = _solve(solver)
    assert isinstance(solver, Relay) and solver.total_steps == 8 == len(solution.trace)
    legs = [Leg("start", k, 5) for k in (1, 2, 3, 4)] + [Leg("", k, 3) for k in (0, 1, 2, 3)]
    assert [p.leg for p in seen] == legs
    assert solution.status is Status.finished and solution.usage.network_calls == 4  # two tilings at the last level


def test_a_bench_keeps_points_of_both_and_the_one_where_the_first_ends(tmp_path: Path):
    keep = _Keeper(tmp_path, 4, _built().total_steps)
    found = solve(TOY.problem, _built(), rng=generator(0, "test"), on_step=lambda k, p, usage: keep(0, k, p, usage))
    assert [point.step for point in keep.points(found)] == [2, 5, 7, 8]
    torch.testing.assert_close(keep.points(found)[1].x, _cgls(5))


def test_a_solver_alone_refuses_to_start_from_another():
    with pytest.raises(ValueError, match="comes from the `build` of its settings"):
        solve(TOY.problem, DDS(TOY.prior, DDSConfig(start=CGLS)))


def test_the_second_draws_as_if_it_had_been_given_the_volume():
    alone = DDSConfig(start="noise", steps=3, sigma_max=1.0, nonnegative=False).build(prior=TOY.prior)
    rng = generator(0, "test")
    state = alone.begin(TOY.problem, _cgls(5), rng)
    for _ in range(3):
        state = alone.step(TOY.problem, state, rng)
    torch.testing.assert_close(_solve(_built())[0].x, state.x0, rtol=0, atol=1e-12)


def test_one_that_stops_early_leaves_the_second_no_more_steps_than_its_own():
    settled = {"name": "admm_tv", "steps": 500, "tolerance": 0.3, "weight": 1.0}
    solution, seen = _solve(_built("admm", start=settled, steps=4, anneal=2, tolerance=1e-12))
    assert len(seen) < 500 and seen[-1].leg == Leg("", 4, 4) and solution.status is Status.step_limit
    solution, _ = _solve(_built("admm", steps=4, anneal=2, tolerance=1e-12))  # CGLS takes all of its own
    assert solution.status is Status.step_limit


def test_a_budget_holds_for_both_together():
    """CGLS takes one forward and one adjoint call a step, of one view each; 7 calls are 4 steps, and none of DDS."""
    solution, _ = _solve(_built(start={**CGLS, "iterations": 50}), budget=Budget(view_calls=7))
    assert solution.status is Status.view_calls and len(solution.trace) == 4
    assert (solution.usage.forward_calls, solution.usage.adjoint_calls, solution.usage.network_calls) == (4, 4, 0)
    torch.testing.assert_close(solution.x, _cgls(4))


@pytest.mark.parametrize("after", [2, 5, 7])
def test_it_goes_on_to_the_same_bits_from_before_at_and_after_the_hand_over(tmp_path: Path, after: int):
    path, whole = tmp_path / "checkpoint.safetensors", _solve(_built())[0]
    stopped, _ = _solve(_built(), budget=Budget(steps=after), checkpoint=path)
    assert stopped.status is Status.step_limit and len(stopped.trace) == after and path.exists()
    resumed, seen = _solve(_built(), checkpoint=path)
    assert len(seen) == 8 - after and torch.equal(resumed.x, whole.x)
