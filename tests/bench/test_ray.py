"""`ray`: rows on a real Ray cluster of two nodes, one of which is killed; and its decisions, without Ray."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from pdframe_executors import ray as module
from pdframe_executors.ray import ClusterError, RayConfig, RayExecutor
from toy_bench import SITE, lasting, outside

from pdframe import registry
from pdframe.bench.case import FrozenCase
from pdframe.bench.config import Bench
from pdframe.bench.driver import Driver, RowPlan
from pdframe.bench.executor import Failure
from pdframe.bench.rows import read_row_files, read_rows
from pdframe.bench.run import run_bench

STORE_BYTES = 80 * 2**20
#: What this test is not about: Ray's own log reader and autoscaler, telemetry, a niceness of 15 for its workers.
QUIET = {"include_dashboard": False, "no_monitor": True, "include_log_monitor": False}
SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
linux = pytest.mark.skipif(sys.platform != "linux", reason="kills and /proc as Linux has them")


@pytest.fixture(scope="module")
def ray_with_toys(toys: None) -> Iterator[Any]:
    """Ray, whose processes, once started, find the toys."""
    found = pytest.importorskip("ray", reason="ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield found


Started = TypeVar("Started")


def started(start: Callable[[], Started]) -> Started:
    """Ray gives its own processes 15 and 30 s to come up, whatever else the machine does: three attempts."""
    for _ in range(3):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    pytest.skip("this machine is too busy: Ray's processes did not start within Ray's own time limit, three times")


@pytest.fixture
def cluster(ray_with_toys: Any) -> Iterator[Any]:
    """Two nodes of one CPU each, both on this machine, each with a raylet and an object store of its own."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": STORE_BYTES, **QUIET}
    found = started(lambda: Cluster(initialize_head=True, head_node_args={**node, "_system_config": SOON}))
    try:
        found.second = started(lambda: found.add_node(**node))
        yield found
    finally:
        found.shutdown()


def workers_below(pid: int) -> list[int]:
    """Processes below `pid` that work on a row."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            words = (stat.parent / "cmdline").read_text()
        except OSError:
            continue
        if parent == pid:
            found += (
                [int(stat.parent.name)] if "pdframe.bench.worker" in words else workers_below(int(stat.parent.name))
            )
    return found


def results(folder: Path) -> list[dict[str, Any]]:
    return [{**lasting(row), "timing": None} for row in read_row_files(folder)]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def until(holds: Callable[[], Any], words: str, seconds: float = 90.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, words
        time.sleep(0.02)
    return found


@linux
@pytest.mark.slow
def test_a_node_is_killed_half_way_and_the_table_is_that_of_an_undisturbed_run(
    cluster: Any, make_bench: Callable[..., Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    raylet = cluster.second.all_processes["raylet"][0].process.pid
    orphans: list[int] = []
    finish, submit = Driver._finish, module._Flight.submit
    losses: list[int] = []

    def finish_and_kill(driver: Driver, *row: Any) -> None:
        finish(driver, *row)
        if not orphans:
            orphans.extend(until(lambda: workers_below(raylet), "the second node got no row"))
            os.kill(raylet, signal.SIGKILL)

    monkeypatch.setattr(Driver, "_finish", finish_and_kill)
    monkeypatch.setattr(module._Flight, "submit", lambda self, row: (losses.append(row.losses), submit(self, row)))
    disturbed = make_bench(executor={"name": "ray", "address": cluster.address})
    assert run_bench(disturbed, out_dir=tmp_path / "disturbed").ran == 4
    assert sorted(losses) == [0, 0, 0, 0, 1]
    until(lambda: all(map(gone, orphans)), "a row outlived its node")

    monkeypatch.undo()
    run_bench(make_bench(), out_dir=tmp_path / "undisturbed")
    assert results(tmp_path / "disturbed") == results(tmp_path / "undisturbed")
    pattern = "rows/*/*/volume.nii.gz"
    volumes = [
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob(pattern)}
        for folder in (tmp_path / "disturbed", tmp_path / "undisturbed")
    ]
    assert volumes[0] == volumes[1] and len(volumes[0]) == 4


@linux
@pytest.mark.usefixtures("private")
def test_a_row_ends_when_the_raylet_of_its_node_is_gone(
    make_bench: Callable[..., Bench], case: FrozenCase, tmp_path: Path
):
    """Ray itself would let the task go on: nobody hears its answer."""
    bench = make_bench(method=[{"name": "toy_descent", "label": "hang", "how": "hang"}])
    job = Driver(bench, tmp_path, bench.executor.build()).job(RowPlan(case.plan, bench.method[0].part("all")), case)
    (tmp_path / "job").write_bytes(job.to_bytes())
    on_the_node = (
        "from importlib.metadata import version; from pathlib import Path; from pdframe_executors import ray\n"
        f"ray._on_the_node(Path({str(tmp_path / 'job')!r}).read_bytes(), 600, {{}}, version('pdframe'))"
    )
    raylet = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {on_the_node!r}])"
    parent = subprocess.Popen([sys.executable, "-c", raylet], env=outside())
    (worker,) = until(lambda: workers_below(parent.pid), "there is no worker")
    parent.kill()
    parent.wait()
    until(lambda: gone(worker), "a row outlived its raylet")


@linux
@pytest.mark.slow
def test_on_a_cluster_started_here_no_row_hurts_another(
    ray_with_toys: Any, make_bench: Callable[..., Bench], tmp_path: Path
):
    want = {"fair": "finished", "crash": "crashed", "killed": "lost", "killed once": "finished"}
    methods = [{"name": "toy_descent", "label": how, "how": how} for how in (*want, "hang")]
    bench = {"method": methods, "seeds": [0], "executor": {"name": "ray", "retries": 1}}
    with ExitStack() as stack:
        ray = started(lambda: stack.enter_context(module._session("")))  # an open session is used, and left open
        run_bench(make_bench("timeout_s=1.5", **bench), out_dir=tmp_path, only=["hang"])
        run_bench(make_bench(**bench), out_dir=tmp_path)
        assert ray.is_initialized()
    assert not ray_with_toys.is_initialized()
    rows = {row["method"]: row for row in read_rows(tmp_path)}
    assert {method: row["status"] for method, row in rows.items()} == {**want, "hang": "timeout"}
    assert "SIGSEGV" in rows["crash"]["reason"] and not rows["fair"]["timing"]
    assert rows["killed once"]["metrics"] == rows["fair"]["metrics"]


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


def test_jobs_are_read_as_there_is_room_and_a_closed_run_cancels_the_rest(monkeypatch: pytest.MonkeyPatch):
    read: list[str] = []
    jobs = ((read.append(key), (key, job))[1] for key, job in rows(100))
    fake = FakeRay(TWO_CPUS)
    monkeypatch.setattr(module, "_session", lambda address: nullcontext(fake))
    going = RayExecutor(RayConfig()).run(jobs, 1.0)
    next(going)
    assert len(read) == 4
    going.close()
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


def test_where_ray_is_required_its_absence_is_no_skip(tmp_path):
    """Nor that of what a whole file needs. tests/conftest.py sees to it."""
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path)
    skips = {"ray": "def test_it():\n    pytest.skip('Ray is not installed')", "other": "pytest.importorskip('no_x')"}
    skips |= {"odl": "pytest.skip('odl is not installed', allow_module_level=True)"}
    for name, code in skips.items():
        (tmp_path / f"test_{name}.py").write_text(f"import pytest\n{code}\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:odl_plugins", "--continue-on-collection-errors", "--color=no"]
    environment = {**os.environ, "PDFRAME_REQUIRE": "odl ray"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert "1 failed, 1 skipped, 1 error" in done.stdout
    assert "Ray is not installed (PDFRAME_REQUIRE names ray)" in done.stdout
