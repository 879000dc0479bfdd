"""Counting: every call of operator and prior, every gradient, optional powers at their true cost; no way around it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from pdframe.core import budget
from pdframe.core.budget import Meter, Usage
from pdframe.core.grid import Grid
from pdframe.core.linalg import LeastSquares
from pdframe.core.operator import ForwardOperator, direct_inverse, operator_norm, prox, pseudoinverse
from pdframe.core.prior import Prior, prior_cost, prior_on
from pdframe.core.problem import Problem
from pdframe.core.seeds import generator
from pdframe.core.solve import solve
from pdframe.core.solver import Progress, Solver
from pdframe.nn.unet import UNet, UNetShape
from pdframe.testing.toys import Langevin, gaussian_toy

TOY = gaussian_toy()


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


@direct_inverse.register
def _(operator: ManyViews) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda y: y / 2


@prox.register
def _(operator: ManyViews, y: torch.Tensor, *, centre: torch.Tensor, damping: float, **_: Any) -> LeastSquares:
    x = (2 * y + damping * centre) / (4 + damping)
    return LeastSquares(x, ((y - 2 * x) ** 2).flatten(1).sum(1), 1)


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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child's peak may be that of its parent")
def test_peak_memory_is_of_this_process_and_not_of_the_one_that_started_it():
    code = "import torch; from pdframe.core.budget import Meter; m = Meter(torch.device('cpu'))\n"
    code += "with m.clock('seconds'): pass\nprint(m.usage.peak_memory_bytes)"
    parent = "import subprocess, sys; fat = b'x' * 2**30; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    told = subprocess.check_output([sys.executable, "-c", parent, code], text=True)
    assert 50e6 < int(told) < 0.9e9


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak cannot be set back")
def test_peak_memory_leaves_out_what_was_freed_before_the_solve():
    code = "import torch; from pdframe.testing.toys import gaussian_toy, Langevin\n"
    code += "from pdframe.core.solve import solve; fat = torch.ones(2**28); del fat; toy = gaussian_toy()\n"
    code += "print(solve(toy.problem, Langevin(toy.prior, 0.1, 1e-4, steps=1)).usage.peak_memory_bytes)"
    assert 50e6 < int(subprocess.check_output([sys.executable, "-c", code], text=True)) < 0.9e9


def test_optional_powers_see_through_the_proxy_at_their_true_cost():
    special = Problem(ManyViews(Grid((3, 4), (1.0, 1.0)), (3, 4)), torch.ones(1, 1, 3, 4))
    got = {}

    def call(problem: Problem, prior: Prior) -> None:
        got["x"] = pseudoinverse(problem.operator, problem.y)
        got["norm"] = operator_norm(problem.operator)
        got["prox"] = prox(problem.operator, problem.y, centre=torch.zeros(1, 1, 3, 4), damping=4.0, iterations=9).x

    usage = _usage(call, special)
    assert float(got["x"].max()) == 0.5 and got["norm"] == 2.0 and float(got["prox"].max()) == 0.25
    assert (usage.forward_calls, usage.adjoint_calls, usage.view_calls) == (0, 2, 10)

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


@dataclasses.dataclass(frozen=True)
class SilentPrior(Prior):
    """A matrix as a network, which does not say what it costs."""

    weight: torch.Tensor
    sigma_range: tuple[float, float] = (0.1, 10.0)
    mean: float = 0.0
    deviation: float = 1.0

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor, *, rng: torch.Generator | None = None) -> torch.Tensor:
        return x @ self.weight


def test_a_prior_that_does_not_say_what_it_costs_is_counted_by_its_operations():
    x = torch.ones(2, 1, 3, 4)

    def call(problem: Problem, prior: Prior) -> None:
        prior.denoise(x, torch.ones(2))
        with torch.enable_grad():
            noisy = x.clone().requires_grad_()
            torch.autograd.grad(prior.denoise(noisy, torch.ones(2)).sum(), noisy)

    usage = _usage(call, prior=SilentPrior(torch.eye(4)))
    one = 2 * x.numel() * 4
    assert (usage.network_calls, usage.network_flops) == (4, one * (1 + 1 + 2))
    assert usage.network_voxels == x.numel() * (1 + 1 + 2)


@dataclasses.dataclass(frozen=True)
class SayingPrior(Prior):
    """Says of every call that it costs `says`; if it is `uneven`, one in three costs twice as much as the others."""

    says: float = 0.0
    uneven: bool = False
    network: Callable[[torch.Tensor], torch.Tensor] = lambda x: x @ torch.eye(x.shape[-1]).to(x)
    sigma_range: tuple[float, float] = (0.1, 10.0)
    mean: float = 0.0
    deviation: float = 1.0

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor, *, rng: torch.Generator | None = None) -> torch.Tensor:
        clean = checkpoint(self.network, x, use_reentrant=False) if x.requires_grad else self.network(x)
        return self.network(clean) if self.uneven and int(torch.randint(3, (), generator=rng)) == 0 else clean


@prior_cost.register
def _(prior: SayingPrior, shape: tuple[int, ...]) -> dict[str, float]:
    return {"voxels": 1.0, "flops": prior.says}


ONE = 2 * 24 * 4


@pytest.mark.parametrize(
    ("says", "charged"),
    [(0.0, ONE), (0.5 * ONE, ONE), (0.89 * ONE, ONE), (0.91 * ONE, 0.91 * ONE), (ONE, ONE), (3.0 * ONE, 3.0 * ONE)],
)
def test_a_prior_that_declares_too_little_is_charged_for_what_is_counted(says: float, charged: float):
    x = torch.ones(2, 1, 3, 4)

    def call(problem: Problem, prior: Prior) -> None:
        for _ in range(7):
            prior.denoise(x, torch.ones(2))
        with torch.enable_grad():
            noisy = x.clone().requires_grad_()
            torch.autograd.grad(prior.denoise(noisy, torch.ones(2)).sum(), noisy)

    usage = _usage(call, prior=SayingPrior(says))
    assert usage.network_flops == pytest.approx((8 + 2) * charged) and usage.network_voxels == 8 + 2
    assert usage.undeclared_flops == pytest.approx((8 + 2) * (charged - says))


def test_an_honest_prior_is_seldom_counted_and_a_later_lie_soon_found(monkeypatch: pytest.MonkeyPatch):
    counted: list[int] = []
    counting = budget._counting
    monkeypatch.setattr(budget, "_counting", lambda: counted.append(calls[-1]) or counting())
    small, large, calls = torch.ones(1, 1, 3, 4), torch.ones(1, 1, 30, 4), [0]

    def call(problem: Problem, prior: Prior, shapes: list[torch.Tensor]) -> None:
        for number, x in enumerate(shapes, 1):
            calls.append(number)
            prior.denoise(x, torch.ones(1))

    honest = SayingPrior(ONE / 2)
    usage = _usage(lambda problem, prior: call(problem, prior, [small] * 70), prior=honest)
    assert counted == [1, 4, 16, 64] and usage.undeclared_flops == 0
    counted.clear()
    usage = _usage(lambda problem, prior: call(problem, prior, [small] * 3 + [large] * 5), prior=honest)
    assert counted == [1, 4, 5, 6, 7, 8] and usage.network_flops == 3 * ONE / 2 + 5 * 5 * ONE


@pytest.mark.parametrize("killed_at", [2, 3, 4, 5, 9])
@pytest.mark.parametrize(("seed", "found"), [(0, False), (4, True)])  # in the fourth call, or not
def test_a_resumed_solve_is_charged_the_same_for_uneven_calls(seed: int, found: bool, killed_at: int, tmp_path: Path):
    def kill(step: int, *_: Any) -> None:
        if step == killed_at:
            raise RuntimeError("killed")

    solver = Langevin(SayingPrior(2 * 64 * 4, uneven=True), 0.1, 1e-4, steps=12)
    whole, path = solve(TOY.problem, solver, seed=seed), tmp_path / "solve.safetensors"
    with pytest.raises(RuntimeError, match="killed"):
        solve(TOY.problem, solver, seed=seed, checkpoint=path, checkpoint_every_s=0.0, on_step=kill)
    again = solve(TOY.problem, solver, seed=seed, checkpoint=path)
    assert torch.equal(again.x, whole.x) and (again.usage.undeclared_flops > 0) is found
    for name in ("network_flops", "undeclared_flops", "network_voxels", "view_calls"):
        assert getattr(again.usage, name) == getattr(whole.usage, name)


class Mixed(torch.nn.Module):
    """What networks are made of here: convolutions in bfloat16, the compiled norm, attention, recomputation."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            shape = UNetShape(in_channels=1, width=16, multipliers=(1, 2), blocks=1, attention=(2,), conditions=0)
            self.network = UNet(shape).requires_grad_(False).to(memory_format=torch.channels_last_3d)
            for weight in self.network.parameters():
                torch.nn.init.normal_(weight, std=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.network(x, torch.zeros(len(x)), None).float()


def test_a_call_that_is_counted_gives_the_same_bits_and_the_same_gradient():
    x, prior = torch.rand(2, 1, 8, 8, 8, generator=generator(1)), SayingPrior(network=Mixed())
    got: list[torch.Tensor] = []

    def call(problem: Problem, prior: Prior) -> None:
        got.append(prior.denoise(x, torch.ones(2)))
        with torch.enable_grad():
            noisy = x.clone().requires_grad_()
            got.extend(torch.autograd.grad(prior.denoise(noisy, torch.ones(2)).square().sum(), noisy))
        with torch.inference_mode():
            got.append(prior.denoise(x, torch.ones(2)).clone())

    usage = _usage(call, prior=prior)
    counted, got = got, []
    with torch.no_grad():
        call(TOY.problem, prior)
        with FlopCounterMode(display=False) as torchs:
            prior.denoise(x, torch.ones(2))
    assert usage.undeclared_flops == usage.network_flops == (1 + 3 + 1) * torchs.get_total_flops() > 0
    assert all(torch.equal(a, b) for a, b in zip(counted, got, strict=True))


def test_counting_loads_no_compiler():
    code = "import sys; from pdframe.core.solve import solve; from pdframe.testing.toys import *; toy = gaussian_toy();"
    code += "used = solve(toy.problem, Langevin(toy.prior, 0.1, 1e-4, steps=1)).usage.network_flops;"
    code += "sys.exit(used == 0 or 'torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_compiled_network_is_counted_and_stays_compiled():
    ran: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        return lambda *values: ran.append(1) or graph(*values)

    network = torch.compile(torch.nn.Linear(4, 4, bias=False), backend=backend)
    x, says = torch.ones(2, 1, 3, 4), 2.0 * 24 * 4

    def call(problem: Problem, prior: Prior) -> None:
        for _ in range(3):
            prior.denoise(x, torch.ones(2))

    usage = _usage(call, prior=SayingPrior(says, network=network))
    assert len(ran) == 1 and usage.network_flops == 3 * says  # the second of three calls, which hold 2, 4 and 6 items
    usage = _usage(call, prior=SayingPrior(network=network))
    assert len(ran) == 1 and usage.undeclared_flops == 3 * says


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


def test_a_meter_cannot_be_given_an_add_of_its_own():
    with pytest.raises(AttributeError):
        Meter(torch.device("cpu")).add = lambda **amounts: None
