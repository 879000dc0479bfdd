"""`local`: every job in a fresh process on this machine; with GPUs, one job on each at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from pydantic import Field

from pdframe import machine
from pdframe.bench.executor import Executor, Failure, is_lost
from pdframe.bench.process import WorkerProcess
from pdframe.hooks import Config

POLL_S = 0.02
#: Variables by which numerical libraries are told how many threads to start.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class LocalConfig(Config):
    """Processes on this machine."""

    workers: int = Field(0, ge=0, description="jobs at once; 0: one on each GPU, or a single one without")
    threads: int = Field(0, ge=0, description="threads of each job; 0: as the environment says, or cores / workers")
    attempts: int = Field(2, ge=1, description="how often a job is started whose worker was killed from outside")

    def build(self) -> Local:
        return Local(self)


@dataclass(frozen=True)
class Local(Executor):
    """Spawned processes. On a machine with GPUs, worker i computes on GPU i modulo their number."""

    settings: LocalConfig

    @property
    def workers(self) -> int:
        """Jobs at once."""
        return self.settings.workers or max(1, len(_gpus()))

    @property
    def alone(self) -> bool:
        return self.workers == 1

    def run(self, jobs: Iterable[tuple[str, bytes]], timeout_s: float) -> Iterator[tuple[str, bytes | Failure]]:
        waiting: Iterator[tuple[str, bytes, int]] = ((key, job, 1) for key, job in jobs)
        slots: dict[int, tuple[str, bytes, int, WorkerProcess]] = {}
        try:
            while True:
                for slot in range(self.workers):
                    if slot not in slots and (next_job := next(waiting, None)) is not None:
                        slots[slot] = (*next_job, WorkerProcess(next_job[1], timeout_s, self._environment(slot)))
                if not slots:
                    return
                for slot, (key, job, attempt, worker) in list(slots.items()):
                    found = worker.result()
                    if found is None:
                        continue
                    if is_lost(found) and attempt < self.settings.attempts:
                        waiting = chain([(key, job, attempt + 1)], waiting)
                    else:
                        yield key, found  # whoever asks for the next has this one safe
                        if not is_lost(found):
                            worker.forget()
                    worker.stop()
                    del slots[slot]
                time.sleep(POLL_S)
        finally:
            for *_, worker in slots.values():
                worker.stop()

    def _environment(self, slot: int) -> dict[str, str]:
        gpus = _gpus()
        told = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}
        if self.settings.threads:
            return told | dict.fromkeys(THREADS, str(self.settings.threads))
        share = str(max(1, machine.cores() // self.workers))
        return told | {name: share for name in THREADS if name not in os.environ and self.workers > 1}


def _gpus() -> list[str]:
    """Names of the GPUs that torch can use, as CUDA_VISIBLE_DEVICES takes them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else [str(i) for i in range(count)]
