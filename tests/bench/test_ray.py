"""`ray`: rows on a real Ray cluster of two nodes, one of which is killed; and its decisions, without Ray."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pdframe_executors import ray as module
from pdframe_executors.local import LocalConfig
from pdframe_executors.ray import ClusterError, RayConfig, RayExecutor

from pdframe import registry
from pdframe.bench.executor import Failure
from pdframe.bench.job import Job, Outcome
from pdframe.core.grid import Grid
from pdframe.measure import digest

STORE_BYTES = 80 * 2**20

#: A solver of a third party: it descends slowly, or ends its process, or never ends.
ACME = """
import os, signal, time
from dataclasses import dataclass
from pdframe.core.solver import Progress, Solver
from pdframe.hooks import Config, Entry, hookimpl

@hookimpl
def pdframe_register():
    return [Entry("solver", "acme", "acme:AcmeConfig", "for a test")]

class AcmeConfig(Config):
    steps: int = 4
    sleep_s: float = 0.0
    crash: bool = False
    def build(self):
        return Acme(self)

@dataclass(frozen=True)
class Acme(Solver):
    settings: AcmeConfig
    @property
    def total_steps(self):
        return self.settings.steps
    def init(self, problem, rng):
        return 0, problem.operator.adjoint(problem.y) * 0
    def step(self, problem, state, rng):
        import torch
        time.sleep(self.settings.sleep_s)
        if self.settings.crash:
            os.kill(os.getpid(), signal.SIGSEGV)
        i, x = state
        gradient = problem.operator.adjoint(problem.operator.forward(x) - problem.y)
        return i + 1, x - 1e-4 * gradient + 1e-6 * torch.randn(x.shape, generator=rng)
    def view(self, state):
        return Progress(state[1], state[0] >= self.settings.steps)
"""


def job(seed: int = 0, **settings: Any) -> bytes:
    grid = Grid((4, 12, 10), (20.0, 20.0, 24.0))
    table = {"name": "parallel_beam", "views": 6}
    shape = registry.build("operator", "parallel_beam", grid=grid, views=6).data_shape
    y = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(seed))
    return Job(y, digest(y), grid, table, None, {"name": "acme", **settings}, seed, device="cpu").to_bytes()


def told(result: bytes | Failure) -> Any:
    """What a table would tell of a row, apart from seconds and the machine."""
    if isinstance(result, Failure):
        return result.kind
    outcome = Outcome.from_bytes(result)
    return outcome.status, outcome.reason, outcome.samples.numpy().tobytes(), outcome.usage[0].view_calls


@pytest.fixture(scope="module")
def acme(tmp_path_factory) -> Iterator[None]:
    """The third party's solver, for this process and for every process that is started from here on."""
    site = tmp_path_factory.mktemp("site")
    info = site / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pdframe]\nacme = acme\n")
    (site / "acme.py").write_text(ACME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # Ray's own choice is 15, which starves on a machine that does more
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.syspath_prepend(str(site))
        registry.refresh()
        yield
    registry.refresh()


@pytest.fixture
def cluster(acme) -> Iterator[Any]:
    """Two nodes of one CPU each, both on this machine, each with a raylet and an object store of its own."""
    utils = pytest.importorskip("ray.cluster_utils", reason="ray is not installed")
    node = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    node |= {"no_monitor": True, "include_log_monitor": False}  # neither autoscaling nor logs: two processes less each
    found = utils.Cluster(initialize_head=True, head_node_args=node)
    found.second = found.add_node(**node)
    yield found
    found.shutdown()


@pytest.mark.slow
def test_a_node_is_killed_half_way_and_the_table_is_that_of_an_undisturbed_run(cluster, monkeypatch):
    jobs = [(f"row {seed}", job(seed, sleep_s=0.3)) for seed in range(4)]
    losses: list[int] = []
    submit = module._Flight.submit
    monkeypatch.setattr(module._Flight, "submit", lambda self, row: (losses.append(row.losses), submit(self, row)))

    results = []
    for key, result in RayExecutor(RayConfig(address=cluster.address)).run(iter(jobs), timeout_s=100):
        results.append((key, told(result)))
        if len(results) == 1:
            os.kill(cluster.second.all_processes["raylet"][0].process.pid, signal.SIGKILL)

    assert any(losses), "no row was on the node that was killed"
    assert Counter(key for key, _ in results) == Counter(key for key, _ in jobs)
    undisturbed = {key: told(result) for key, result in LocalConfig(threads=1).build().run(jobs, timeout_s=100)}
    assert dict(results) == undisturbed
    assert {status for status, *_ in undisturbed.values()} == {"finished"}


@pytest.mark.slow
def test_a_cluster_is_started_here_and_a_crash_or_a_hang_hurts_no_other_row(acme):
    ray = pytest.importorskip("ray", reason="ray is not installed")
    executor = RayExecutor(RayConfig(retries=0))
    jobs = [("crash", job(crash=True)), ("hang", job(sleep_s=1000.0)), ("fine", job(1))]
    found = dict(executor.run(jobs, timeout_s=25))
    assert not ray.is_initialized()
    assert {key: told(result) for key, result in found.items() if key != "fine"} == {
        "crash": "crashed",
        "hang": "timeout",
    }
    assert "SIGSEGV" in found["crash"].reason
    assert told(found["fine"])[0] == "finished"


class FakeRay:
    """As much of Ray as the executor asks for. Tasks end in any order; `loses` says which are lost instead."""

    class exceptions:
        RayError = type("RayError", (Exception,), {})
        OutOfMemoryError = type("OutOfMemoryError", (RayError,), {})

    def __init__(self, *nodes: dict[str, float], loses=lambda: None) -> None:
        self.alive = [{"Alive": True, "Resources": node} for node in nodes]
        self.loses, self.random = loses, random.Random(0)
        self.ends: dict[object, Any] = {}
        self.most, self.cancelled = 0, 0

    def nodes(self):
        return self.alive

    def remote(self, function):
        def submit(job, *more):
            ref = object()
            self.ends[ref] = self.loses() or job.upper()
            self.most = max(self.most, len(self.ends))
            return ref

        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=submit))

    def wait(self, refs, num_returns, timeout):
        return [self.random.choice(refs)], []

    def get(self, ref):
        end = self.ends.pop(ref)
        if isinstance(end, Exception):
            raise end
        return end

    def cancel(self, ref, force):
        self.cancelled += 1


TWO_CPUS = {"CPU": 2.0, "memory": 8 * 2**30}


def flight(fake: FakeRay, **settings: Any) -> module._Flight:
    return module._Flight(fake, RayConfig(**settings), timeout_s=1.0)


def rows(count: int) -> list[tuple[str, bytes]]:
    return [(f"row {i}", b"job %d" % i) for i in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_lost_each_row_comes_once(seed):
    rng = random.Random(seed)
    errors = [
        FakeRay.exceptions.RayError("gone"),
        FakeRay.exceptions.OutOfMemoryError("full"),
        Failure("lost", "killed"),
    ]
    fake = FakeRay(TWO_CPUS, {"CPU": 1.0}, loses=lambda: rng.choice(errors) if rng.random() < 0.4 else None)
    found = list(module._results(flight(fake, retries=100), iter(rows(40))))
    assert Counter(key for key, _ in found) == Counter(key for key, _ in rows(40))
    assert dict(found) == {key: job.upper() for key, job in rows(40)}
    assert fake.most <= 2 * 3


def test_a_row_that_is_lost_too_often_is_a_failure_with_its_kind():
    for error, kind in (
        (FakeRay.exceptions.RayError("node\n died"), "lost"),
        (FakeRay.exceptions.OutOfMemoryError("full"), "out_of_memory"),
        (Failure("lost", "killed"), "lost"),
    ):
        tried: list[int] = []
        fake = FakeRay(TWO_CPUS, loses=lambda error=error, tried=tried: (tried.append(1), error)[1])
        ((key, failure),) = module._results(flight(fake, retries=2), iter(rows(1)))
        assert (key, failure.kind, len(tried)) == ("row 0", kind, 3)
        assert "\n" not in failure.reason


def test_a_failure_of_the_row_itself_is_not_tried_again():
    tried: list[int] = []
    fake = FakeRay(TWO_CPUS, loses=lambda: (tried.append(1), Failure("timeout", "slow"))[1])
    assert list(module._results(flight(fake), iter(rows(1)))) == [("row 0", Failure("timeout", "slow"))]
    assert len(tried) == 1


def test_jobs_are_read_as_there_is_room_and_a_closed_run_cancels_the_rest():
    read: list[str] = []
    jobs = ((read.append(key), (key, job))[1] for key, job in rows(100))
    fake = FakeRay(TWO_CPUS)
    going = flight(fake)
    results = module._results(going, jobs)
    next(results)
    assert len(read) == 4
    results.close()
    going.cancel()
    assert fake.cancelled == 3


def test_a_cluster_without_room_for_a_row_is_told_apart_from_a_slow_one():
    wide = flight(FakeRay(TWO_CPUS), gpus=1, wait_s=0.01)
    wide.room_seen -= 1
    with pytest.raises(
        ClusterError, match="had room for a row within 0.01 s: a row takes 1 CPUs, 1 GPUs .* 2 CPUs, 0 GPUs"
    ):
        wide.room()
    assert flight(FakeRay(TWO_CPUS), gpus=1).room() == 0
    assert flight(FakeRay(TWO_CPUS, {"CPU": 4.0}), memory_gib=3.0).room() == 2
    assert flight(FakeRay({"CPU": 8.0, "GPU": 2.0}), gpus=0.5).room() == 4


def test_alone_needs_nodes_that_hold_one_row():
    with pytest.raises(ClusterError, match="room for 2 rows"):
        flight(FakeRay(TWO_CPUS), alone=True).room()
    assert flight(FakeRay(TWO_CPUS, TWO_CPUS), cpus=2, alone=True).room() == 2
    assert RayExecutor(RayConfig(alone=True)).alone and not RayExecutor(RayConfig()).alone


def test_a_row_has_as_many_threads_as_cpus_and_sees_a_gpu_only_if_it_has_one():
    assert module._environment(RayConfig(cpus=4))["OMP_NUM_THREADS"] == "4"
    assert module._environment(RayConfig(cpus=0.5))["OMP_NUM_THREADS"] == "1"
    assert module._environment(RayConfig())["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in module._environment(RayConfig(gpus=1))


def test_a_node_with_another_version_gives_the_row_back():
    lost = module._on_the_node(b"", 1.0, {}, "0.0.0")
    assert lost.kind == "lost" and "0.0.0" in lost.reason


def test_without_ray_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(registry, "_importable", lambda name: name != "ray")
    with pytest.raises(registry.BackendMissing, match=r'pip install "pdframe\[ray\]"'):
        registry.build("executor", "ray")
