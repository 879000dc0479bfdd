"""The driver loop: honest status, budgets, counting, checkpoints that resume to the same bits, posterior samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from pdframe.core.budget import Budget, Usage
from pdframe.core.grid import Grid
from pdframe.core.noise import GaussianNoise
from pdframe.core.operator import ForwardOperator, operator_norm, pseudoinverse
from pdframe.core.prior import Prior, prior_cost, prior_on
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
        (Budget(network_flops=1), Status.finished, 10),  # this prior has no network
        (Budget(seconds=1e-9), Status.seconds, 0),
    ],
)
def test_a_spent_budget_stops_the_loop_and_is_named(budget: Budget, status: Status, steps: int):
    solution = solve(TOY.problem, _langevin(), budget=budget)
    assert solution.status is status and len(solution.trace) == steps


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ValueError, match="view_calls must be positive"):
        Budget(view_calls=0)


# Counting


@dataclasses.dataclass(frozen=True)
class Probe(Solver):
    """Calls what a test asks for, once."""

    call: object
    prior: Prior
    total_steps = 1

    def init(self, problem: Problem, rng: torch.Generator) -> dict:
        return {"x": TOY.truth, "done": False}

    def step(self, problem: Problem, state: dict, rng: torch.Generator) -> dict:
        self.call(problem, self.prior)
        return {"x": state["x"], "done": True}

    def view(self, state: dict) -> Progress:
        return Progress(state["x"], state["done"])


def _usage(call, problem: Problem = TOY.problem, prior: Prior = TOY.prior) -> Usage:
    return solve(problem, Probe(call, prior)).usage


@dataclasses.dataclass(frozen=True)
class ManyViews(ForwardOperator):
    """Scaling by 2 with a closed-form norm and inverse, as a scanner of 5 views."""

    grid: Grid
    data_shape: tuple[int, ...]
    views: int = 5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return 2 * y


@pseudoinverse.register
def _(operator: ManyViews, y: torch.Tensor) -> torch.Tensor:
    return y / 2


@operator_norm.register
def _(operator: ManyViews, *, device: torch.device | str = "cpu") -> float:
    return 2.0


def test_every_call_is_counted_for_every_item_and_view():
    operator = ManyViews(Grid((3, 4), (1.0, 1.0)), (3, 4))
    x = torch.ones(2, 3, 3, 4)

    def call(problem: Problem, prior: Prior) -> None:
        problem.operator.forward(x)
        problem.operator.adjoint(x)
        problem.operator.adjoint(x)

    usage = _usage(call, Problem(operator, x))
    assert (usage.forward_calls, usage.adjoint_calls, usage.view_calls) == (6, 12, 18 * 5)
    assert 0 < usage.operator_seconds <= usage.seconds
    assert usage.peak_memory_bytes > 0


def test_optional_powers_see_through_the_proxy_at_their_true_cost():
    special = Problem(ManyViews(Grid((3, 4), (1.0, 1.0)), (3, 4)), torch.ones(1, 1, 3, 4))
    got = {}

    def call(problem: Problem, prior: Prior) -> None:
        got["x"] = pseudoinverse(problem.operator, problem.y)
        got["norm"] = operator_norm(problem.operator)

    usage = _usage(call, special)
    assert float(got["x"].max()) == 0.5 and got["norm"] == 2.0
    assert (usage.forward_calls, usage.adjoint_calls, usage.view_calls) == (0, 1, 5)

    usage = _usage(lambda problem, prior: pseudoinverse(problem.operator, problem.y))  # the default: CGLS
    assert usage.forward_calls == 20 and usage.adjoint_calls == 20
    usage = _usage(lambda problem, prior: operator_norm(problem.operator))  # the default: power iteration
    assert usage.forward_calls == 30 and usage.adjoint_calls == 29


@dataclasses.dataclass(frozen=True)
class CostlyPrior(Prior):
    """Returns its input; costs 10 operations a voxel and says which spacing it was last brought to."""

    sigma_range: tuple[float, float] = (0.1, 10.0)
    mean: float = 0.0
    deviation: float = 1.0
    spacing: tuple[float, ...] = ()

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor, *, rng: torch.Generator | None = None) -> torch.Tensor:
        return x + (len(self.spacing) * 100)


@prior_cost.register
def _(prior: CostlyPrior, shape: tuple[int, ...]) -> dict[str, float]:
    voxels = 2.0 * torch.Size(shape).numel()
    return {"voxels": voxels, "flops": 10 * voxels}


@prior_on.register
def _(prior: CostlyPrior, grid: Grid) -> Prior:
    return dataclasses.replace(prior, spacing=grid.spacing)


def test_the_prior_is_brought_to_the_grid_and_its_cost_counted():
    x, seen = torch.zeros(2, 1, 4, 4, 4), []

    def call(problem: Problem, prior: Prior) -> None:
        seen.append(prior.denoise(x, torch.ones(2)))
        seen.append(prior_on(prior, problem.operator.grid).denoise(x, torch.ones(2)))
        assert prior_cost(prior, (1, 1, 8)) == {"voxels": 16.0, "flops": 160.0}

    usage = _usage(call, prior=CostlyPrior())
    assert float(seen[0].max()) == float(seen[1].max()) == 300.0
    assert (usage.network_calls, usage.network_voxels, usage.network_flops) == (4, 512.0, 5120.0)


def test_a_gradient_through_the_prior_is_counted_each_time_it_is_taken():
    x = torch.zeros(2, 1, 4, 4, 4)

    def call(problem: Problem, prior: Prior, gradients: int) -> None:
        with torch.enable_grad():
            noisy = x.clone().requires_grad_()
            clean = prior.denoise(noisy, torch.ones(2))
            for _ in range(gradients):
                (slope,) = torch.autograd.grad((3 * clean + 5 * noisy).sum(), noisy, retain_graph=True)
                assert float(slope.max()) == float(slope.min()) == 8.0
            torch.autograd.grad((5 * noisy).sum(), noisy)  # passes by the prior

    for gradients in (0, 1, 3):
        usage = _usage(lambda problem, prior, n=gradients: call(problem, prior, n), prior=CostlyPrior())
        passes = 1 + 2 * gradients
        assert (usage.network_calls, usage.network_voxels, usage.network_flops) == (2, 256.0 * passes, 2560.0 * passes)
        assert 0 < usage.network_seconds <= usage.seconds


def test_a_solver_meets_only_proxies_without_a_public_way_to_the_inside():
    inner = [TOY.problem.operator, TOY.prior]

    def call(problem: Problem, prior: Prior) -> None:
        for proxy in (problem.operator, prior):
            public = [getattr(proxy, name) for name in dir(proxy) if not name.startswith("_")]
            assert proxy not in inner
            assert not any(value is thing for value in public for thing in inner)
            assert repr(inner[0]) not in repr(proxy)

    _usage(call)


def test_an_operator_that_a_solver_brings_itself_is_counted_too():
    @dataclasses.dataclass(frozen=True)
    class Smuggler(Solver):
        own: ForwardOperator
        total_steps = 1

        def init(self, problem: Problem, rng: torch.Generator) -> torch.Tensor:
            return self.own.adjoint(problem.y)

        def step(self, problem: Problem, state: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
            return state

        def view(self, state: torch.Tensor) -> Progress:
            return Progress(state, False)

    assert solve(TOY.problem, Smuggler(TOY.problem.operator)).usage.adjoint_calls == 1


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


@pytest.mark.parametrize("what", ["y", "noise", "solver", "prior", "seed"])
def test_a_checkpoint_of_another_problem_is_refused_in_one_line(tmp_path: Path, what: str):
    path = tmp_path / "solve.safetensors"
    solve(TOY.problem, _langevin(), checkpoint=path, budget=Budget(steps=3))
    problem, solver, seed = TOY.problem, _langevin(), 0
    if what == "y":
        problem = dataclasses.replace(problem, y=problem.y + 1e-12)
    if what == "noise":
        problem = dataclasses.replace(problem, noise=GaussianNoise(0.051))
    if what == "solver":
        solver = _langevin(step_size=2e-4)
    if what == "prior":
        solver = _langevin(prior=GaussianPrior(1.0, smooth_covariance(problem.operator.grid, 0.6, 1.5)))
    if what == "seed":
        seed = 1
    with pytest.raises(ValueError, match="belongs to another") as error:
        solve(problem, solver, seed=seed, checkpoint=path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


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
