"""The contract of an executor: it carries jobs to worker processes, and their outcomes or failures back."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from pdframe.core.interface import Interface

FailureKind = Literal["crashed", "timeout", "out_of_memory", "lost"]


@dataclass(frozen=True)
class Failure:
    """Why a job has no outcome.

    kind: "crashed": the worker ended by itself, or of a fault, without an outcome; "timeout": it was stopped at its
        time limit; "out_of_memory": it was refused memory, or the system killed it for want of it; "lost": it vanished
        for a reason that is not the job's (killed from outside, its machine gone), more often than it is tried.
    reason: one line for the table. details: the end of what the worker wrote.
    """

    kind: FailureKind
    reason: str
    details: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(FailureKind):
            raise ValueError(f"a failure is one of {', '.join(get_args(FailureKind))}: got {self.kind!r}")


def is_lost(found: bytes | Failure | None) -> bool:
    """Whether a job vanished for a reason that is not its own, and is worth another attempt."""
    return isinstance(found, Failure) and found.kind == "lost"


class Executor(Interface):
    """Runs jobs, each in a fresh process of its own (`pdframe.bench.process`), wherever it has room.

    A job and its outcome are bytes (`pdframe.bench.job`): nothing else travels, no truth and no path of the bench.

    Fields that a final class must supply:
        alone: whether a job has its machine to itself, so that its seconds may be compared with others'.
    """

    alone: bool

    @abc.abstractmethod
    def run(self, jobs: Iterable[tuple[str, bytes]], timeout_s: float) -> Iterator[tuple[str, bytes | Failure]]:
        """Yields (key, outcome or Failure) of each (key, job), once, as they end, in any order.

        `jobs` is read as there is room for them, since making one may cost time and memory. A job that takes longer
        than `timeout_s` of wall clock is stopped. A crash, a hang or a want of memory of one job is its Failure and
        hurts no other; a job that was lost is tried again before it is given up. Closing the iterator stops every
        worker that is still at work.
        """
