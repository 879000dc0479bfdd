"""The driver loop: honest status, budgets, counting, checkpoints that resume to the same bits, posterior samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from pdframe.core.budget import Budget, Usage
from pdframe.core.noise import GaussianNoise
from pdframe.core.prior import Prior
from pdframe.core.problem import Problem
from pdframe.core.seeds import generator
from pdframe.core.solve import Status, posterior, solve
from pdframe.core.solver import Progress, Solver
from pdframe.testing.toys import GaussianPrior, Langevin, gaussian_toy, smooth_covariance

TOY = gaussian_toy()


def _langevin(**changes: object) -> Langevin:
    return dataclasses.replace(Langevin(TOY.prior, sigma=0.05, step_size=1e-4, steps=10), **changes)


class Killed(Exception):
    pass


def _kill_at(k: int):
    def on_step(step: int, progress: Progress, usage: Usage) -> None:
        if step == k:
            raise Killed

    return on_step


def _without_seconds(trace):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in trace]


# Status and loop


def test_a_finished_solve_says_so_and_traces_each_step():
    seen = []
    solution = solve(TOY.problem, _langevin(), on_step=lambda k, p, u: seen.append((k, float(p.x.mean()))))
    assert solution.status is Status.finished
    assert [k for k, _ in seen] == [row["step"] for row in solution.trace] == list(range(1, 11))
    assert [m for _, m in seen] == [row["mean"] for row in solution.trace]


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    first, again, other = (solve(TOY.problem, _langevin(), seed=s).x for s in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first, solve(TOY.problem, _langevin(), rng=generator(3, "solve")).x)


def test_nan_stops_the_loop():
    solution = solve(TOY.problem, _langevin(step_size=1e300, steps=50))
    assert solution.status is Status.nonfinite
    assert len(solution.trace) < 50


def test_a_solver_that_never_says_done_stops_at_its_total_steps():
    @dataclasses.dataclass(frozen=True)
    class Endless(Solver):
        total_steps = 7

        def init(self, problem: Problem, rng: torch.Generator):
            return torch.zeros(1, 1, *problem.operator.grid.shape)

        def step(self, problem: Problem, state: torch.Tensor, rng: torch.Generator):
            return state + 1

        def view(self, state: torch.Tensor) -> Progress:
            return Progress(state, False)

    solution = solve(TOY.problem, Endless())
    assert solution.status is Status.step_limit and float(solution.x.max()) == 7


def test_steps_run_without_autograd():
    y = TOY.problem.y.clone().requires_grad_()
    assert not solve(dataclasses.replace(TOY.problem, y=y), _langevin()).x.requires_grad


# Budgets


@pytest.mark.parametrize(
    ("budget", "status", "steps"),
    [
        (Budget(steps=4), Status.step_limit, 4),
        (Budget(view_calls=6), Status.view_calls, 3),
        (Budget(view_calls=5), Status.view_calls, 3),
        (Budget(network_voxels=2 * 64), Status.network_voxels, 2),
        (Budget(network_flops=1), Status.network_flops, 1),  # torch counts its products
        (Budget(seconds=1e-9), Status.seconds, 0),
    ],
)
def test_a_spent_budget_stops_the_loop_and_is_named(budget: Budget, status: Status, steps: int):
    solution = solve(TOY.problem, _langevin(), budget=budget)
    assert solution.status is status and len(solution.trace) == steps


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ValueError, match="view_calls must be positive"):
        Budget(view_calls=0)


# Checkpoints


@pytest.mark.parametrize("k", [1, 6, 9])
def test_a_killed_solve_resumes_to_the_same_bits(tmp_path: Path, k: int):
    path = tmp_path / "solve.safetensors"
    straight = solve(TOY.problem, _langevin(), seed=1)
    with pytest.raises(Killed):
        solve(TOY.problem, _langevin(), seed=1, checkpoint=path, checkpoint_every_s=0, on_step=_kill_at(k + 1))
    steps = []
    resumed = solve(TOY.problem, _langevin(), seed=1, checkpoint=path, on_step=lambda step, p, u: steps.append(step))
    assert steps == list(range(k + 1, 11))
    assert torch.equal(resumed.x, straight.x) and resumed.status is Status.finished
    assert _without_seconds(resumed.trace) == _without_seconds(straight.trace)
    assert resumed.usage.view_calls == straight.usage.view_calls
    assert list(tmp_path.iterdir()) == []


def test_a_solve_out_of_budget_goes_on_with_a_larger_one(tmp_path: Path):
    path = tmp_path / "solve.safetensors"
    part = solve(TOY.problem, _langevin(), checkpoint=path, budget=Budget(steps=3))
    assert part.status is Status.step_limit and path.exists()
    whole = solve(TOY.problem, _langevin(), checkpoint=path)
    assert torch.equal(whole.x, solve(TOY.problem, _langevin()).x)


def test_an_interrupt_keeps_the_last_whole_step(tmp_path: Path):
    path = tmp_path / "solve.safetensors"

    @dataclasses.dataclass(frozen=True)
    class Fragile(Prior):
        inner: GaussianPrior
        left: list
        mean: float = 1.0
        deviation: float = 0.5
        sigma_range: tuple[float, float] = (0.01, 10.0)

        def denoise(self, x: torch.Tensor, sigma: torch.Tensor, *, rng: torch.Generator | None = None):
            torch.randn(3, generator=rng)
            self.left[0] -= 1
            if self.left[0] == 0:
                raise KeyboardInterrupt
            return self.inner.denoise(x, sigma)

    # The countdown is the test's, not a setting: an equal object on both sides, changed in place.
    solver = _langevin(prior=Fragile(TOY.prior, countdown := [6]))
    countdown[0] = 6
    stopped = solve(TOY.problem, solver, checkpoint=path)
    assert stopped.status is Status.interrupted and len(stopped.trace) == 5
    countdown[0] = 6
    resumed = solve(TOY.problem, solver, checkpoint=path)
    countdown[0] = 100
    assert torch.equal(resumed.x, solve(TOY.problem, solver).x)


@pytest.mark.parametrize("what", ["y", "noise", "operator", "solver", "prior", "seed"])
def test_a_checkpoint_of_another_problem_is_refused_in_one_line(tmp_path: Path, what: str):
    path = tmp_path / "solve.safetensors"
    solve(TOY.problem, _langevin(), checkpoint=path, budget=Budget(steps=3))
    problem, solver, seed = TOY.problem, _langevin(), 0
    if what == "y":
        problem = dataclasses.replace(problem, y=problem.y + 1e-12)
    if what == "noise":
        problem = dataclasses.replace(problem, noise=GaussianNoise(0.051))
    if what == "operator":
        turned = dataclasses.replace(problem.operator, matrix=problem.operator.matrix.flip(0))
        problem = dataclasses.replace(problem, operator=turned)
    if what == "solver":
        solver = _langevin(step_size=2e-4)
    if what == "prior":
        solver = _langevin(prior=GaussianPrior(1.0, smooth_covariance(problem.operator.grid, 0.6, 1.5)))
    if what == "seed":
        seed = 1
    with pytest.raises(ValueError, match="belongs to another") as error:
        solve(problem, solver, seed=seed, checkpoint=path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_solver_whose_fields_cannot_be_counted_is_refused():
    class Plain(Solver):
        total_steps = 1

        def init(self, problem: Problem, rng: torch.Generator) -> torch.Tensor:
            return problem.y

        def step(self, problem: Problem, state: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
            return state

        def view(self, state: torch.Tensor) -> Progress:
            return Progress(state, True)

    with pytest.raises(TypeError, match="must be a dataclass .* Plain is none"):
        solve(TOY.problem, Plain())


def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path):
    path = tmp_path / "solve.safetensors"
    path.write_bytes(b"not a checkpoint at all")
    with pytest.raises(ValueError, match="is not the checkpoint of a solve"):
        solve(TOY.problem, _langevin(), checkpoint=path)


def test_nested_states_survive_and_odd_ones_are_refused(tmp_path: Path):
    from pdframe.core.checkpoint import Snapshot, load, save
    from pdframe.testing.toys import LangevinState

    x = torch.randn(2, 3, generator=generator(0))
    state = {"a": [LangevinState(x.T, 3), (x, None)], "b": {"flag": True, "n": float("inf"), "s": "s"}, "same": x}
    rng = generator(5)
    path = tmp_path / "deep" / "c.safetensors"
    save(path, Snapshot(2, state, rng.get_state(), Usage(), ({"step": 1},)), "key")
    back = load(path, "key", torch.device("cpu"))
    assert torch.equal(back.state["a"][0].x, x.T) and back.state["a"][0].step == 3
    assert torch.equal(back.state["a"][1][0], x) and back.state["a"][1][1] is None
    assert back.state["b"] == state["b"] and torch.equal(back.rng_state, rng.get_state())
    with pytest.raises(TypeError, match="state.a is a set"):
        save(path, Snapshot(2, {"a": {1}}, rng.get_state(), Usage(), ()), "key")
    assert [p.name for p in path.parent.iterdir()] == ["c.safetensors"]


# Posterior samples


def test_a_sample_does_not_depend_on_how_many_are_drawn():
    few = posterior(TOY.problem, _langevin(), samples=2, seed=5)
    many = posterior(TOY.problem, _langevin(), samples=4, seed=5)
    assert torch.equal(few.samples, many.samples[:2])
    assert not torch.equal(many.samples[0], many.samples[1])
    torch.testing.assert_close(many.mean, many.samples.mean(0))
    torch.testing.assert_close(many.deviation, many.samples.std(0))
    assert many.usage.network_calls == 2 * few.usage.network_calls == 40
    assert posterior(TOY.problem, _langevin(), samples=1).deviation.isnan().all()
    with pytest.raises(ValueError, match="at least 1"):
        posterior(TOY.problem, _langevin(), samples=0)
