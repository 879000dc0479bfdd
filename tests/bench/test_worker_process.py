"""One worker: it ends with whoever started it, and its folder stays until its result is safe."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from toy_bench import outside

from pdframe.bench.case import FrozenCase
from pdframe.bench.config import Bench
from pdframe.bench.driver import Driver, RowPlan
from pdframe.bench.job import Job
from pdframe.bench.process import WorkerProcess

Make = Callable[..., Bench]
pytestmark = pytest.mark.usefixtures("private")


@pytest.mark.skipif(sys.platform != "linux", reason="needs SIGKILL, and looks processes up in /proc")
def test_a_worker_ends_with_whoever_started_it_and_takes_along_what_it_started(
    make_bench: Make, case: FrozenCase, tmp_path: Path
):
    """Though it hangs in a library that holds Python's lock, so that none of its threads can run."""
    bench = make_bench(method=[{"name": "toy_descent", "label": "hang", "how": "hang in C"}])
    plan = RowPlan(case.plan, bench.method[0].part("all"))
    job: Job = Driver(bench, tmp_path, bench.executor.build()).job(plan, case)
    (tmp_path / "job").write_bytes(job.to_bytes())
    code = (
        "import sys, time; from pathlib import Path; from pdframe.bench.process import WorkerProcess\n"
        f"w = WorkerProcess(Path({str(tmp_path / 'job')!r}).read_bytes(), 600); print(w.process.pid, flush=True)\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=outside())
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    deadline = time.monotonic() + 120
    while "sleep" not in _group(worker):
        assert time.monotonic() < deadline, "the method did not start its process"
        time.sleep(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 60
    while _group(worker):
        assert time.monotonic() < deadline, f"{_group(worker)} outlived their parent"
        time.sleep(0.05)
    WorkerProcess(job.to_bytes(), 600).forget()


def _group(leader: int) -> list[str]:
    """Names of the living processes of a group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            head, _, told = stat.read_text().rpartition(")")
            state, _, group = told.split()[:3]
            if int(group) == leader and state != "Z":
                found.append(head.partition("(")[2])
    return found


def test_a_worker_keeps_its_folder_until_its_result_is_safe(make_bench: Make, case: FrozenCase, tmp_path: Path):
    bench = make_bench()
    plan = RowPlan(case.plan, bench.method[1].part("all"))
    job = Driver(bench, tmp_path, bench.executor.build()).job(plan, case)
    assert job.timed  # an attempt beside others is another job, in another folder
    beside = replace(job, timed=False)
    workers = [WorkerProcess(one.to_bytes(), 600) for one in (job, beside)]
    assert workers[0].folder.parent != workers[1].folder.parent
    for worker in workers:
        while worker.result() is None:
            time.sleep(0.02)
        assert any(worker.folder.glob("solution_*")) and isinstance(worker.result(), bytes)
    workers[0].forget()
    workers[1].stop()
    assert [worker.folder.parent.exists() for worker in workers] == [False, True]
    again = WorkerProcess(beside.to_bytes(), 60)  # as a bench would that was killed while it judged
    assert again.folder == workers[1].folder and any(again.folder.glob("solution_*"))
    again.forget()
