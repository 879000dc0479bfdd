"""Deliberately unfair solvers: each is caught and its offence named; the fair one is not. What a job may fail of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pdframe.bench import answer as module
from pdframe.bench.answer import answer, curve_steps
from pdframe.bench.case import FrozenCase, freeze, open_case
from pdframe.bench.config import Bench
from pdframe.bench.driver import Driver, RowPlan
from pdframe.bench.job import Job, Outcome
from pdframe.hooks import BackendMissing

UNFAIR = {
    "random": "changed the global random state of random",
    "numpy": "changed the global random state of numpy",
    "torch": "changed the global random state of torch",
    "buffers": "wrote into the operator",
    "buffers put back": "wrote into the operator",
    "buffers through numpy": "wrote into the operator",
    "answer": "replaced Matrix.adjoint",
    "measurement": "wrote into the measurement",
    "behind": "called Matrix.forward behind the counting proxy (1 times)",
    "inner": "called Matrix.adjoint behind the counting proxy (1 times)",
    "rebuilt": "called Matrix.forward behind the counting proxy (1 times)",
    "meter": "was charged for 4 of 6 calls of `forward`; was charged for 4 of 6 calls of `adjoint`",
    "prior": "called White.denoise behind the counting proxy (1 times)",
}
STEERED = {"name": "toy_steered", "prior": {"name": "toy_white"}}
Ask = Callable[..., Outcome]


@pytest.fixture
def case(make_bench: Callable[..., Bench], tmp_path: Path) -> FrozenCase:
    bench = make_bench()
    plan = bench.cases()[0]
    freeze(bench, plan, tmp_path / "bench")
    return open_case(bench, plan, tmp_path / "bench")


@pytest.fixture
def ask(make_bench: Callable[..., Bench], case: FrozenCase, tmp_path: Path, streams: None) -> Ask:
    """ask("fair", budget={...}): what the worker answers, in this process."""

    def ask(how: str, settings: dict[str, Any] | None = None, **changes: Any) -> Outcome:
        method = {"name": "toy_descent", "label": how, "how": how, **(STEERED if how == "prior" else settings or {})}
        bench = make_bench(method=[method], **changes)
        plan = RowPlan(case.plan, bench.method[0].part("all"), bench.method[0].samples)
        job = Driver(bench, tmp_path / "bench", bench.executor.build()).job(plan, case)
        (tmp_path / "worker").mkdir(exist_ok=True)
        return answer(Job.from_bytes(job.to_bytes()), tmp_path / "worker")

    return ask


def test_a_fair_method_is_left_in_peace(ask: Ask):
    outcome = ask("fair")
    assert (outcome.status, outcome.usage[0].forward_calls) == ("finished", 6)
    assert outcome.samples is not None and outcome.samples.shape == (1, 1, 1, 6, 8, 10)
    assert [p.step for p in outcome.points] == [1, 2, 3, 4, 5, 6]
    assert torch.equal(outcome.points[-1].x, outcome.samples[0])
    assert outcome.points[1].usage.view_calls == 16 and outcome.machine["torch"] == torch.__version__


def test_a_fair_method_with_a_prior_and_several_samples_is_too(ask: Ask):
    outcome = ask("fair", {**STEERED, "samples": 3})
    assert outcome.status == "finished" and len(outcome.usage) == 3 and len(outcome.prior_sha256) == 64
    assert outcome.samples is not None and not torch.equal(outcome.samples[0], outcome.samples[1])
    assert outcome.usage[2].network_calls == 6


@pytest.mark.parametrize("how", UNFAIR)
def test_an_unfair_method_is_caught_and_its_offence_named(how: str, ask: Ask):
    outcome = ask(how)
    assert (outcome.status, outcome.reason) == ("unfair", UNFAIR[how])
    assert outcome.samples is None and not outcome.points


def test_watching_leaves_no_trace_on_the_operator(ask: Ask):
    from bench_toys_parts import Matrix

    before = Matrix.forward
    ask("behind")
    assert Matrix.forward is before


@pytest.mark.parametrize(
    ("how", "status", "reason"),
    [
        ("nan", "nonfinite", "The volume holds NaN"),
        ("raise", "crashed", r"ArithmeticError: the step is too long \(bench_toys_parts.py:\d+\)"),
        ("exit", "crashed", "SystemExit: 0"),
    ],
)
def test_a_failure_is_an_outcome_with_its_reason(how: str, status: str, reason: str, ask: Ask):
    import re

    outcome = ask(how)
    assert outcome.status == status and re.match(reason, outcome.reason) and outcome.samples is None


@pytest.mark.parametrize(
    ("limit", "steps"),
    [({"steps": 2}, 2), ({"view_calls": 17}, 3), ({"network_voxels": 481}, 2), ({"network_flops": 1}, 6)],
)
def test_a_budget_stops_in_its_own_currency(limit: dict[str, int], steps: int, ask: Ask):
    outcome = ask("fair", STEERED, budget=limit)
    (name,) = limit
    whole = name == "network_flops"  # this prior has no network
    assert outcome.status == ("finished" if whole else "step_limit" if name == "steps" else name)
    assert len(outcome.traces[0]) == steps
    assert outcome.usage[0].view_calls == 8 * steps and outcome.usage[0].network_voxels == 480 * steps


@pytest.mark.parametrize("limit", [{"seconds": 1e-9}, {"peak_memory_bytes": 1}])
def test_seconds_and_memory_stop_too(limit: dict[str, float], ask: Ask):
    outcome = ask("fair", budget=limit)
    assert outcome.status == next(iter(limit)) and not outcome.traces[0]
    assert outcome.samples is not None and bool(outcome.samples.isfinite().all())


def test_a_missing_library_is_an_outcome_too(case: FrozenCase, ask: Ask, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise BackendMissing("needs no_such_library")

    monkeypatch.setattr(module.solutions, "draw", refuse)
    outcome = ask("fair")
    assert (outcome.status, outcome.reason) == ("backend_missing", "BackendMissing: needs no_such_library")


def test_a_job_says_nothing_of_the_truth(case: FrozenCase, make_bench: Callable[..., Bench], tmp_path: Path):
    bench = make_bench()
    plan = RowPlan(case.plan, bench.method[0].part("all"))
    data = Driver(bench, tmp_path / "bench", bench.executor.build()).job(plan, case).to_bytes()
    assert data == Driver(bench, tmp_path / "elsewhere", bench.executor.build()).job(plan, case).to_bytes()
    for secret in (case.item.x.numpy().tobytes(), str(tmp_path).encode(), b"phantom", b"head", b"shepp"):
        assert secret not in data


def test_points_of_a_curve_are_dense_where_much_happens_and_end_at_the_end():
    assert curve_steps(0, 100) == curve_steps(8, 0) == frozenset()
    assert curve_steps(16, 1) == {1}
    steps = sorted(curve_steps(16, 1000))
    assert steps[:3] == [2, 6, 13] and steps[-1] == 1000 and len(steps) <= 16 and 500 in steps
