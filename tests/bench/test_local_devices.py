"""`local`: which GPU and how many threads a job is told to take, without a GPU and without a process."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from pdframe_executors import local as module
from pdframe_executors.local import THREADS, Local, LocalConfig

from pdframe.bench.executor import Failure

#: Two GPUs out of more, as CUDA_VISIBLE_DEVICES may name them.
GPUS = ["3", "GPU-5f0a"]
#: Cores that this process may use, of twelve; only Linux tells them apart.
CORES = 8 if sys.platform == "linux" else 12


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that says nothing of threads or devices."""
    for name in (*THREADS, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12 - CORES, 12)), raising=False)


def local(monkeypatch: pytest.MonkeyPatch, gpus: list[str], **settings: int) -> Local:
    monkeypatch.setattr(module, "_gpus", lambda: gpus)
    return LocalConfig(**settings).build()


def test_each_worker_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch):
    executor = local(monkeypatch, GPUS)
    assert executor.workers == 2 and not executor.alone
    assert [executor._environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == GPUS
    one = local(monkeypatch, GPUS[:1])
    assert one.alone and one._environment(0) == {"CUDA_VISIBLE_DEVICES": "3"}


def test_more_workers_than_gpus_take_turns_and_fewer_leave_some_free(monkeypatch: pytest.MonkeyPatch):
    executor = local(monkeypatch, GPUS, workers=5)
    told = [executor._environment(slot)["CUDA_VISIBLE_DEVICES"] for slot in range(5)]
    assert told == ["3", "GPU-5f0a", "3", "GPU-5f0a", "3"]
    assert local(monkeypatch, GPUS, workers=1).alone


def test_without_a_gpu_there_is_one_worker_and_nothing_is_said_of_devices(monkeypatch: pytest.MonkeyPatch):
    executor = local(monkeypatch, [])
    assert executor.alone and executor._environment(0) == {}
    assert "CUDA_VISIBLE_DEVICES" not in local(monkeypatch, [], workers=2)._environment(1)


def test_threads_are_as_set_or_as_the_environment_says_or_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch):
    assert local(monkeypatch, [], workers=2, threads=3)._environment(1) == dict.fromkeys(THREADS, "3")
    assert local(monkeypatch, [], workers=1, threads=3)._environment(0) == dict.fromkeys(THREADS, "3")
    assert local(monkeypatch, [], workers=100)._environment(0) == dict.fromkeys(THREADS, "1")
    shared = local(monkeypatch, GPUS)._environment(1)
    assert shared == {"CUDA_VISIBLE_DEVICES": "GPU-5f0a", **dict.fromkeys(THREADS, str(CORES // 2))}
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert local(monkeypatch, [], workers=2)._environment(0) == dict.fromkeys(THREADS[1:], str(CORES // 2))
    assert local(monkeypatch, [], workers=2, threads=3)._environment(0)["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("visible", "usable", "names"),
    [
        (None, 2, ["0", "1"]),
        (None, 0, []),
        ("5,2", 2, ["5", "2"]),
        ("GPU-5f0a,MIG-77", 2, ["GPU-5f0a", "MIG-77"]),
        ("1,-1,2", 1, ["1"]),  # CUDA reads up to the first that is none
        ("", 0, []),
    ],
)
def test_gpus_have_the_names_that_the_environment_knows_them_by(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, usable: int, names: list[str]
):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: usable)
    assert module._gpus() == names


class FakeWorker:
    """A job that ends after as many looks at it as its bytes are long; it knows its GPU and those of the others."""

    at_work: list[FakeWorker] = []
    started: list[FakeWorker] = []
    forgotten: list[bytes] = []
    lost: set[bytes] = set()

    def __init__(self, job: bytes, timeout_s: float, environment: dict[str, str]) -> None:
        self.job, self.gpu, self.looks = job, environment["CUDA_VISIBLE_DEVICES"], len(job)
        self.beside = [worker.gpu for worker in self.at_work]
        self.at_work.append(self)
        self.started.append(self)

    def result(self) -> bytes | Failure | None:
        self.looks -= 1
        if self.looks:
            return None
        self.at_work.remove(self)
        if self.job in self.lost:
            self.lost.remove(self.job)
            return Failure("lost", "killed")
        return self.gpu.encode()

    def stop(self) -> None:
        if self in self.at_work:
            self.at_work.remove(self)

    def forget(self) -> None:
        self.forgotten.append(self.job)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    monkeypatch.setattr(module, "WorkerProcess", FakeWorker)
    monkeypatch.setattr(module, "POLL_S", 0.0)
    monkeypatch.setattr(FakeWorker, "at_work", [])
    monkeypatch.setattr(FakeWorker, "started", [])
    monkeypatch.setattr(FakeWorker, "forgotten", [])
    monkeypatch.setattr(FakeWorker, "lost", set())
    return FakeWorker


def test_a_job_gets_the_gpu_that_is_free_and_never_one_that_is_taken(
    monkeypatch: pytest.MonkeyPatch, fakes: type[FakeWorker]
):
    jobs = [(f"row {i}", b"x" * length) for i, length in enumerate((9, 2, 2, 2, 1, 5, 1))]
    fakes.lost.add(b"x" * 5)
    found = dict(local(monkeypatch, GPUS).run(jobs, 1.0))
    assert found.keys() == dict(jobs).keys()
    assert all(worker.gpu not in worker.beside for worker in fakes.started)
    assert found["row 0"] == b"3" and {found[f"row {i}"] for i in range(1, 5)} == {b"GPU-5f0a"}
    assert len(fakes.started) == len(jobs) + 1 and not fakes.at_work


def test_a_run_that_is_closed_stops_the_jobs_on_every_gpu(monkeypatch: pytest.MonkeyPatch, fakes: type[FakeWorker]):
    running = local(monkeypatch, GPUS).run([(f"row {i}", b"x" * (1 + 8 * i)) for i in range(4)], 1.0)
    assert next(running) == ("row 0", b"3")
    assert len(fakes.at_work) == 1
    running.close()
    assert not fakes.at_work


def test_what_a_worker_left_goes_when_its_result_is_safe_and_not_before(
    monkeypatch: pytest.MonkeyPatch, fakes: type[FakeWorker]
):
    """A bench that is killed while it judges finds the solve again."""
    running = local(monkeypatch, GPUS[:1]).run([("a", b"x"), ("b", b"xx"), ("c", b"xxx")], 1.0)
    assert next(running)[0] == "a" and not fakes.forgotten
    assert next(running)[0] == "b" and fakes.forgotten == [b"x"]
    running.close()
    assert fakes.forgotten == [b"x"]
