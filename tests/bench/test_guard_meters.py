"""A method that turns a currency back on its meter, each on its own, is caught by the guard's own sums; no other is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pdframe.bench.answer import answer
from pdframe.bench.case import FrozenCase
from pdframe.bench.config import Bench
from pdframe.bench.driver import Driver, RowPlan
from pdframe.bench.guard import Guard
from pdframe.bench.job import Outcome
from pdframe.core import budget
from pdframe.core.budget import Meter, Usage
from pdframe.core.memory import forget_own_peak
from pdframe.core.solve import solve
from pdframe.testing.toys import Langevin, gaussian_toy

CURRENCIES = ("view_calls", "network_voxels", "network_flops", "undeclared_flops", "seconds")
PARTS = ("network_seconds", "operator_seconds")
METHOD = {"name": "toy_steered", "label": "trick", "how": "trick", "prior": {"name": "toy_white"}}
TOY = gaussian_toy()
Ask = Callable[..., Outcome]


@pytest.fixture
def ask(make_bench: Callable[..., Bench], case: FrozenCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """ask(trick, budget={...}): what a worker answers, in this process, to a method that plays it in its second step.

    Its prior multiplies matrices and does not say what that costs.
    """
    import bench_toys_parts as toys

    def denoise(self: Any, x: torch.Tensor, sigma: torch.Tensor, *, rng: Any = None) -> torch.Tensor:
        return x @ torch.eye(x.shape[-1])

    def ask(trick: Callable[..., None], **changes: Any) -> Outcome:
        monkeypatch.setattr(toys.White, "denoise", denoise)
        monkeypatch.setitem(toys.TRICKS, "trick", trick)
        bench = make_bench(method=[METHOD], **changes)
        plan = RowPlan(case.plan, bench.method[0].part("all"), bench.method[0].samples)
        (tmp_path / "worker").mkdir()
        return answer(Driver(bench, tmp_path / "bench", bench.executor.build()).job(plan, case), tmp_path / "worker")

    return ask


def turned_back(*names: str) -> Callable[..., None]:
    def trick(solver: Any, problem: Any, x: torch.Tensor) -> None:
        meter = problem.operator._meter
        assert all(getattr(meter.usage, name) > 0 or name == "seconds" for name in names)
        meter.usage = replace(meter.usage, **dict.fromkeys(names, 0))

    return trick


def test_a_method_that_leaves_its_meter_alone_is_left_in_peace(ask: Ask):
    outcome = ask(lambda solver, problem, x: None)
    assert outcome.status == "finished"
    assert outcome.usage[0].undeclared_flops == outcome.usage[0].network_flops == 6 * 2 * 480 * 10


@pytest.mark.parametrize("name", [*CURRENCIES, *PARTS])
def test_a_currency_that_is_turned_back_is_named(name: str, ask: Ask):
    outcome = ask(turned_back(name))
    words = outcome.reason.split()
    assert outcome.status == "unfair" and outcome.samples is None and not outcome.points
    assert (words[0], words[2], words[4:]) == ("had", "of", [f"`{name}`", "on", "its", "meter"])
    assert float(words[1]) < float(words[3])


def test_all_of_them_are_named_and_more_steps_than_the_budget_allows_are_no_gain(ask: Ask):
    outcome = ask(turned_back(*CURRENCIES), budget={"view_calls": 17})
    assert outcome.status == "unfair" and outcome.reason.count(" on its meter") == len(CURRENCIES)


def test_numbers_of_a_usage_that_is_not_meant_to_change_are_none_the_less_seen(ask: Ask):
    def trick(solver: Any, problem: Any, x: torch.Tensor) -> None:
        object.__setattr__(problem.operator._meter.usage, "view_calls", 0)

    assert ask(trick).reason == "had 0 of 16 `view_calls` on its meter"


def test_a_proxy_that_is_told_a_lower_price_is_seen(ask: Ask):
    def trick(solver: Any, problem: Any, x: torch.Tensor) -> None:
        object.__setattr__(problem.operator, "views", 0)

    assert ask(trick).reason == "had 16 of 48 `view_calls` on its meter"


def test_a_meter_that_is_taught_to_leave_out_something_is_seen(ask: Ask):
    def trick(solver: Any, problem: Any, x: torch.Tensor) -> None:
        add = Meter.add
        Meter.add = lambda meter, **amounts: add(meter, **{k: v for k, v in amounts.items() if k != "view_calls"})

    before = Meter.add, Meter.clock
    assert ask(trick).reason == "replaced Meter.add; had 16 of 48 `view_calls` on its meter"
    assert (Meter.add, Meter.clock) == before


def test_a_clock_that_is_stopped_is_seen(ask: Ask, monkeypatch: pytest.MonkeyPatch):
    def trick(solver: Any, problem: Any, x: torch.Tensor) -> None:
        monkeypatch.setattr(budget, "_now", lambda device: 0.0)

    outcome = ask(trick)
    assert outcome.status == "unfair" and "`seconds` on its meter" in outcome.reason


@contextmanager
def watched() -> Iterator[tuple[Guard, Meter]]:
    guard = Guard(TOY.problem)
    with guard.watch_calls(TOY.problem.operator, ("forward", "adjoint")):
        yield guard, Meter(torch.device("cpu"))


def test_a_meter_that_read_less_for_a_while_is_seen():
    with watched() as (guard, meter):
        for views in (None, 0, 8):
            with meter.clock("seconds"):
                meter.add(view_calls=8) if views is None else None
                meter.usage = meter.usage if views is None else replace(meter.usage, view_calls=views)
    assert guard.offence(meter.usage) == "had 0 of 8 `view_calls` on its meter"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak cannot be set back")
def test_a_peak_of_memory_that_is_forgotten_is_seen():
    with watched() as (guard, meter), meter.clock("seconds"):
        with meter.clock("operator_seconds"):
            torch.ones(2**26)
        forget_own_peak()
        meter.usage = replace(meter.usage, peak_memory_bytes=0)
    assert "`peak_memory_bytes` on its meter" in guard.offence(meter.usage)


def test_what_is_told_in_the_end_is_compared_too():
    with watched() as (guard, meter), meter.clock("seconds"):
        meter.add(network_voxels=480)
    assert not guard.offence(meter.usage) and not guard.offence(meter.usage.plus(Usage(network_voxels=1)))
    assert guard.offence(replace(meter.usage, network_voxels=1)) == "had 1 of 480 `network_voxels` on its meter"


def test_a_solve_inside_another_counts_once():
    with watched() as (guard, meter):
        with meter.clock("seconds"):
            inner = solve(TOY.problem, Langevin(TOY.prior, 0.1, 1e-4, steps=3)).usage
            assert inner.view_calls > 0
            meter.add(forward_calls=inner.forward_calls, adjoint_calls=inner.adjoint_calls, view_calls=inner.view_calls)
    assert guard.offence(meter.usage) == ""


def test_a_solve_that_goes_on_from_a_checkpoint_is_held_to_all_of_its_cost(tmp_path: Path):
    def kill(step: int, *_: Any) -> None:
        if step == 3:
            raise RuntimeError("killed")

    solver, path = Langevin(TOY.prior, 0.1, 1e-4, steps=6), tmp_path / "solve.safetensors"
    with watched(), pytest.raises(RuntimeError, match="killed"):
        solve(TOY.problem, solver, checkpoint=path, checkpoint_every_s=0.0, on_step=kill)
    with watched() as (guard, _):
        usage = solve(TOY.problem, solver, checkpoint=path).usage
    assert usage.view_calls == solve(TOY.problem, solver).usage.view_calls and guard.offence(usage) == ""
    less = replace(usage, view_calls=usage.view_calls - 1)
    assert guard.offence(less) == f"had {less.view_calls} of {usage.view_calls} `view_calls` on its meter"
