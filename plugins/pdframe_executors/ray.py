"""Rows on a Ray cluster: Ray finds a node with room, there each row is the same fresh process as on one machine.

Ray's own retries are off: what is tried again, and how often, is decided here, where a row is counted once. A row that
crashes, hangs or runs out of memory fails inside its process, and its Failure comes back as an answer. A row whose
Ray worker or node is gone has no answer; it is the only one that is tried again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

import pdframe
from pdframe.bench.executor import Executor, Failure, is_lost
from pdframe.bench.process import WorkerProcess
from pdframe.hooks import Config

#: Longest that the driver waits for a result before it looks at the nodes again; how often a node looks at its row.
LOOK_S, POLL_S = 1.0, 0.05
#: Variables by which numerical libraries are told how many threads to start.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
#: Shared memory of a cluster started here, for jobs and outcomes on their way; more goes to disk.
STORE_BYTES = 512 * 2**20


class RayConfig(Config):
    """Rows on a Ray cluster: one that runs already, or one started on this machine for the bench."""

    address: str = Field(
        "",
        description='a running cluster, "host:port" or "auto"; empty: that of RAY_ADDRESS, or one started here',
    )
    cpus: float = Field(1.0, gt=0, description="CPUs that a row takes, and threads that it computes with")
    gpus: float = Field(0.0, ge=0, description="GPUs that a row takes; 0.5: two rows share one; 0: it sees none")
    memory_gib: float = Field(0.0, ge=0, description="memory that a node must have left for a row; 0: not asked")
    retries: int = Field(3, ge=0, description="how often a row is started again after its worker or node was lost")
    wait_s: float = Field(120.0, gt=0, description="how long to wait for a node with room before the bench gives up")
    alone: bool = Field(
        False, description="each row has a node to itself, so that its seconds count; `cpus` is then all of a node's"
    )

    def build(self) -> Executor:
        return RayExecutor(self)


class ClusterError(RuntimeError):
    """The cluster cannot run the rows: no node has room for one, or nodes are not what the settings say."""


@dataclass(frozen=True)
class RayExecutor(Executor):
    """Runs jobs as Ray tasks, at most twice as many at once as there is room for."""

    settings: RayConfig

    @property
    def alone(self) -> bool:
        return self.settings.alone

    def run(self, jobs: Iterable[tuple[str, bytes]], timeout_s: float) -> Iterator[tuple[str, bytes | Failure]]:
        with _session(self.settings.address) as ray:
            flight = _Flight(ray, self.settings, timeout_s)
            try:
                yield from _results(flight, iter(jobs))
            finally:
                flight.cancel()


@dataclass(frozen=True)
class _Row:
    key: str
    job: bytes
    losses: int = 0


@dataclass(frozen=True)
class _Landed:
    """A row that ended. lost: what ended it is not the row's doing, as far as can be told."""

    row: _Row
    result: bytes | Failure
    lost: bool


def _results(flight: _Flight, jobs: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Failure]]:
    """Twice as many rows as there is room for, so that no node waits and an autoscaler sees that more are wanted."""
    while True:
        free = max(1, 2 * flight.room()) - len(flight.rows)
        for key, job in islice(jobs, max(0, free)):
            flight.submit(_Row(key, job))
        if not flight.rows:
            return
        for landed in flight.landed():
            row = landed.row
            if landed.lost and row.losses < flight.settings.retries:
                flight.submit(_Row(row.key, row.job, row.losses + 1))
            else:
                yield row.key, landed.result


class _Flight:
    """The rows that are with Ray now."""

    def __init__(self, ray: Any, settings: RayConfig, timeout_s: float) -> None:
        self.ray, self.settings, self.timeout_s = ray, settings, timeout_s
        self.rows: dict[Any, _Row] = {}
        self.room_seen = time.monotonic()
        asked: dict[str, Any] = {"num_cpus": settings.cpus, "num_gpus": settings.gpus}
        if settings.memory_gib:
            asked["memory"] = int(settings.memory_gib * 2**30)
        self.task = ray.remote(_on_the_node).options(**asked, max_retries=0, scheduling_strategy="SPREAD")

    def submit(self, row: _Row) -> None:
        self.rows[self.task.remote(row.job, self.timeout_s, _environment(self.settings), version("pdframe"))] = row

    def room(self) -> int:
        """How many rows the living nodes can hold. ClusterError if that has been none for too long."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        fits = [_fits(node, self.settings) for node in nodes]
        if self.settings.alone and max(fits, default=0) > 1:
            raise ClusterError(
                f"executor.alone is set, but a node has room for {max(fits)} rows; set executor.cpus (or gpus) to all "
                "that each node has"
            )
        if any(fits):
            self.room_seen = time.monotonic()
        elif time.monotonic() - self.room_seen > self.settings.wait_s:
            have = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
            raise ClusterError(
                f"no node of the Ray cluster had room for a row within {self.settings.wait_s:g} s: a row takes "
                f"{self.settings.cpus:g} CPUs, {self.settings.gpus:g} GPUs and {self.settings.memory_gib:g} GiB, its "
                f"nodes have {have or 'nothing'}. What is finished is kept; run the bench again when there is one"
            )
        return sum(fits)

    def landed(self) -> Iterator[_Landed]:
        """The rows that have ended within a moment."""
        done, _ = self.ray.wait(list(self.rows), num_returns=1, timeout=LOOK_S)
        for ref in done:
            row = self.rows.pop(ref)
            try:
                result = self.ray.get(ref)
            except self.ray.exceptions.RayError as error:
                kind = "out_of_memory" if isinstance(error, self.ray.exceptions.OutOfMemoryError) else "lost"
                words = " ".join(str(error).split())[:300]
                yield _Landed(row, Failure(kind, f"{type(error).__name__}: {words}"), lost=True)
            else:
                yield _Landed(row, result, lost=is_lost(result))

    def cancel(self) -> None:
        for ref in self.rows:
            self.ray.cancel(ref, force=True)


def _fits(node: Mapping[str, float], settings: RayConfig) -> int:
    """How many rows a node holds when it has nothing else to do."""
    asked = {"CPU": settings.cpus, "GPU": settings.gpus, "memory": settings.memory_gib * 2**30}
    return int(min(node.get(name, 0.0) / amount for name, amount in asked.items() if amount))


def _environment(settings: RayConfig) -> dict[str, str]:
    """The same number of threads on every node, for the same bits; a row that has no GPU sees none."""
    told = dict.fromkeys(THREADS, str(max(1, int(settings.cpus))))
    return told if settings.gpus else told | {"CUDA_VISIBLE_DEVICES": ""}


def _on_the_node(job: bytes, timeout_s: float, environment: dict[str, str], wanted: str) -> bytes | Failure:
    """One row, in a process below this Ray worker.

    Ray's own paths and those of the driver, which Ray adds to `sys.path`, are kept from it. When the raylet that
    started this worker is gone, nobody hears the answer, and Ray ends a worker only between tasks: it ends itself.
    """
    if version("pdframe") != wanted:
        return Failure("lost", f"a node has pdframe {version('pdframe')}, the bench is run with {wanted}")
    raylet = os.getppid()
    package = str(Path(pdframe.__file__).parents[1])
    paths = dict.fromkeys([*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), package])
    worker = WorkerProcess(job, timeout_s, environment | {"PYTHONPATH": os.pathsep.join(paths)})
    try:
        while (found := worker.result()) is None:
            if os.getppid() != raylet:
                worker.stop()
                os._exit(1)
            time.sleep(POLL_S)
        if not is_lost(found):
            worker.forget()  # the node cannot know when the answer is safe; a row that was given up starts afresh
    finally:
        worker.stop()
    return found


@contextmanager
def _session(address: str) -> Iterator[Any]:
    """Ray, connected. A session that is open already is used and left open."""
    import ray

    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS", "")
    quiet = {"log_to_driver": False, "logging_level": "error"}
    if not address:
        # Read by the processes that are started next: no telemetry; workers are not nicer than other processes.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")
        quiet |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        ray.init(address=address or "local", **quiet)
    except Exception as error:  # Ray raises Exception itself when its processes are too slow to start
        ray.shutdown()
        found = f"no Ray cluster answers at {address!r}" if address else "no Ray cluster could be started here"
        raise ClusterError(f"{found}: {' '.join(str(error).split())[:300]}") from error
    try:
        yield ray
    finally:
        ray.shutdown()
