"""Deliberately unfair solvers: each is caught and its offence named, or finds nothing; the fair one is left alone."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_bench import TABLE

import pdframe
from pdframe.bench import answer as module
from pdframe.bench import process
from pdframe.bench.answer import answer, curve_steps
from pdframe.bench.case import FrozenCase
from pdframe.bench.config import Bench
from pdframe.bench.driver import Driver, RowPlan
from pdframe.bench.job import Job, Outcome
from pdframe.bench.rows import read_rows
from pdframe.bench.run import run_bench
from pdframe.core.grid import Grid
from pdframe.core.problem import Problem
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
    "dataset": "asked for a dataset (Phantom), which may hold the truth",
    "dataset part": "asked for a dataset (Phantom), which may hold the truth",
    "dataset registered config": "asked for a dataset (Phantom), which may hold the truth",
    "dataset config": "asked for a dataset (Phantom), which may hold the truth",
    "dataset class": "asked for a dataset (Phantom), which may hold the truth",
    "dataset in silence": "asked for a dataset (Phantom), which may hold the truth",
}
SOURCES = ("collector", "stack", "folders")
STEERED = {"name": "toy_steered", "prior": {"name": "toy_white"}}
Ask = Callable[..., Outcome]


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


def test_the_shipped_scan_is_refused_as_every_dataset_and_only_until_the_row_ends(ask: Ask):
    with module._without_datasets() as asked:
        for name in ("sample", "phantom"):
            with pytest.raises(PermissionError, match="is refused: a row is solved without the truth"):
                pdframe.build("dataset", name)
        assert asked == ["Sample", "Phantom"]
    ask("dataset")
    assert pdframe.build("dataset", "phantom").names() == ("shepp_logan",)


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


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder for temporary files, beside those of the tests: the spy looks in what lies there."""
    folder = tmp_path_factory.mktemp("private")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        patch.setenv("TMPDIR", str(folder))
        yield folder


def keep(x: torch.Tensor, path: Path) -> Path:
    """The truth, in a file."""
    from safetensors.torch import save_file

    from pdframe.ct.nifti import write_nifti

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({"x": x.contiguous()}, path)
    else:
        write_nifti(path, x, Grid(tuple(x.shape[2:]), (40.0, 30.0, 24.0)))
    return path


def spied(case: FrozenCase, source: str) -> list[torch.Tensor]:
    """What the spy finds in this process."""
    from bench_toys_parts import seen

    return list(seen(Problem(case.base.operator.build(grid=case.item.grid), case.y), source))


@pytest.mark.parametrize("source", SOURCES[:2])
def test_the_spy_finds_a_truth_in_memory_where_there_is_one(source: str, case: FrozenCase, ask: Ask):
    truth = case.item.x
    assert any(torch.equal(found, truth) for found in spied(case, source))
    outcome = ask(f"spy {source}")
    assert outcome.status == "crashed" and f"LookupError: found the truth in the {source}" in outcome.reason


@pytest.mark.parametrize("name", ["t.safetensors", "t.nii.gz", "a/b/c/d/t.safetensors", "a/b/c/d/t.nii.gz"])
@pytest.mark.parametrize("told", ["by the working folder", "by the environment", "by an argument", "by a link"])
def test_the_spy_finds_a_truth_in_a_file_near_a_path_that_it_knows(
    name: str, told: str, case: FrozenCase, private: Path, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch
):
    home, other = tmp_path_factory.mktemp("planted"), tmp_path_factory.mktemp("other")
    near = home / "x" / "y"
    near.mkdir(parents=True)
    monkeypatch.chdir(near if told == "by the working folder" else other)
    if told == "by the environment":
        monkeypatch.setenv("SOME", f"/nowhere{os.pathsep}{near / 'file'}")
    if told == "by an argument":
        monkeypatch.setattr("sys.argv", [str(near)])
    if told == "by a link":
        (other / "link").symlink_to(near)
    keep(torch.ones(6, 8, 10)[None, None], home / "another.safetensors")
    assert not spied(case, "folders")
    keep(case.item.x, home / name)
    assert len(spied(case, "folders")) == 1


Rows = Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="module")
def truth() -> torch.Tensor:
    settings = {**TABLE["scan"][0]["dataset"]}
    return pdframe.build("dataset", settings.pop("name"), **settings).load("shepp_logan").x


@pytest.fixture(scope="module")
def solved(
    make_bench: Callable[..., Bench], private: Path, truth: torch.Tensor, tmp_path_factory: Any
) -> Callable[..., Rows]:
    """solved("fair", ...): rows of real workers. Each method names a file that lies near the truth."""
    if sys.platform == "win32":
        pytest.skip("needs SIGKILL and links")

    def solved(*ways: str) -> Rows:
        home = tmp_path_factory.mktemp("home")
        keep(truth, home / "data" / "test" / "t.nii.gz")
        (home / "weights").mkdir()
        (home / "weights" / "net.txt").write_text("weights")
        (home / "weights" / "latest").symlink_to("net.txt")
        file = str(home / "weights" / "latest")
        methods = [{"name": "toy_descent", "label": way, "how": way, "file": file} for way in ways]
        run_bench(make_bench(method=methods, seeds=[0]), out_dir=home / "bench")
        return {row["method"]: row for row in read_rows(home / "bench")}

    return solved


@pytest.fixture(scope="module")
def rows(solved: Callable[..., Rows], private: Path, truth: torch.Tensor) -> Rows:
    """Fair and spying methods, while another job's folder holds what explains their data."""
    with ExitStack() as held:
        neighbour = process._private_folder("0" * 64, held)
        keep(truth, neighbour / "solution_0.safetensors")
        found = solved("fair", "killed once", "dataset in silence", *(f"spy {source}" for source in SOURCES))
    assert [path.name for path in private.iterdir()] == [neighbour.parent.name], "a job left its folder behind"
    shutil.rmtree(neighbour.parent)
    return found


@pytest.mark.parametrize("source", SOURCES)
def test_in_its_worker_the_spy_finds_nothing(source: str, rows: Rows):
    assert (rows[f"spy {source}"]["status"], rows["fair"]["status"]) == ("finished", "finished")
    assert rows[f"spy {source}"]["metrics"] == rows["fair"]["metrics"]


def test_in_its_worker_too_a_dataset_is_refused(rows: Rows):
    row = rows["dataset in silence"]
    assert (row["status"], row["reason"]) == ("unfair", UNFAIR["dataset in silence"]) and not row["metrics"]


def test_a_file_that_a_method_names_is_there_and_the_row_tells_the_original(rows: Rows):
    for row in rows.values():
        assert Path(row["config"]["file"]).read_text() == "weights" and Path(row["config"]["file"]).is_absolute()
    assert rows["killed once"]["metrics"] == rows["fair"]["metrics"]
    assert rows["killed once"]["usage"]["view_calls"] == 48


@pytest.mark.parametrize("leak", ["a path beside the truth", "a folder beside that of another job"])
def test_in_a_worker_that_is_told_more_the_spy_finds_the_truth(
    leak: str, solved: Callable[..., Rows], private: Path, truth: torch.Tensor, monkeypatch: pytest.MonkeyPatch
):
    if leak == "a path beside the truth":
        monkeypatch.setattr(process, "_with_files_at_hand", lambda job, folder: job)
    else:
        keep(truth, private / "shared" / "another" / "solution_0.safetensors")
        own = private / "shared" / "own"
        own.mkdir()
        monkeypatch.setattr(process, "_private_folder", lambda name, held: own)
    row = solved("spy folders")["spy folders"]
    assert row["status"] == "crashed" and "LookupError: found the truth in the folders" in row["reason"]


def test_every_job_has_a_folder_without_neighbours_and_old_ones_go(private: Path):
    with ExitStack() as first, ExitStack() as second:
        folders = [
            process._private_folder(name * 64, held) for name, held in (("1", first), ("1", second), ("2", first))
        ]
        assert len({folder.parent for folder in folders}) == 3 == len(list(private.iterdir()))
        for folder in folders:
            assert folder.parent.parent == private and [p for p in folder.parent.iterdir() if p.is_dir()] == [folder]
            assert folder.parent.stat().st_mode & 0o077 == 0 or os.name == "nt"
    for path in (folders[1].parent, *folders[1].parent.iterdir()):
        os.utime(path, (0, time.time() - process.WEEK_S - 60))
    with ExitStack() as again:
        assert process._private_folder("1" * 64, again) == folders[0]
    assert {path.name for path in private.iterdir()} == {folders[0].parent.name, folders[2].parent.name}
    for folder in (folders[0], folders[2]):
        shutil.rmtree(folder.parent)


def test_files_that_settings_name_are_brought_along(tmp_path: Path):
    here, there = tmp_path / "job" / "row", tmp_path / "there"
    here.mkdir(parents=True)
    (there / "net" / "parts").mkdir(parents=True)
    for name in ("a.pt", "net/parts/b.pt"):
        (there / name).write_text(name)
    (there / "latest").symlink_to("a.pt")
    (there / "net" / "dangling").symlink_to("nowhere")
    as_they_are = {"weights": "shipped", "root": "/", "above": str(tmp_path), "unit": "/mm", "near": "a/b.pt", "n": 3}
    solver = {"prior": {"file": str(there / "a.pt"), "many": [str(there / "latest"), str(there / "net") + "/"]}}
    job = Job(torch.arange(3.0), "", Grid((1, 1, 1), (1.0, 1.0, 1.0)), {"f": str(there / "lost.pt")}, None,
              {**solver, **as_they_are}, 0)  # fmt: skip
    for _ in range(2):  # a second attempt finds what the first left
        got = Job.from_bytes(process._with_files_at_hand(job.to_bytes(), here))
        prior = {"file": "files/0/a.pt", "many": ["files/1/latest", "files/2/net"]}
        assert got.solver == {"prior": prior, **as_they_are} and got.operator == {"f": "files/3/lost.pt"}
        assert torch.equal(got.y, job.y) and got.grid == job.grid and got.noise is None
        (here / "files/0/a.pt").write_text("what a method writes there")
        assert (there / "a.pt").read_text() == "a.pt"
        assert (here / "files/1/latest").read_text() == "a.pt" and not (here / "files/1/latest").is_symlink()
        assert (here / "files/2/net/parts/b.pt").read_text() == "net/parts/b.pt"
        assert not (here / "files/3/lost.pt").exists()
        assert str(there).encode() not in process._with_files_at_hand(job.to_bytes(), here)
