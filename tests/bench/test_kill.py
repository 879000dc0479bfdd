"""The command is killed, and two workers with it, in the middle of their rows; given again, it ends as if it were not.

A third party's solver notes every step that it takes and stands still at a given one until a gate is opened, so that
the kill comes at the same place however busy the machine is.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from toy_bench import TABLE, lasting, outside

from pdframe.bench.rows import read_row_files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs SIGKILL, and looks processes up in /proc")

PLUGIN = """
import functools
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from pdframe import Config, Problem, Progress, Solver, solutions
from pdframe.core.solve import solve
from pdframe.hooks import Entry, hookimpl

STEPS = 6


@hookimpl
def pdframe_register():
    return [Entry("solver", "slow", "acme_slow:SlowConfig", "Gradient descent that can be made to wait")]


class SlowConfig(Config):
    rate: float = 5e-7
    stops_at: int = -1

    def build(self):
        solutions.solve = functools.partial(solve, checkpoint_every_s=0.0)  # left alone, the first comes after 30 s
        return Slow(self, os.environ["ACME_NOTES"], os.environ["ACME_GATE"])


@dataclass(frozen=True)
class Slow(Solver):
    settings: SlowConfig
    notes: str
    gate: str
    total_steps = STEPS

    def init(self, problem: Problem, rng):
        return 0, torch.full((1, 1, *problem.operator.grid.shape), 0.01)

    def step(self, problem: Problem, state, rng):
        i, x = state
        with open(self.notes, "a") as file:
            file.write(json.dumps({**self.settings.model_dump(), "step": i, "pid": os.getpid()}) + "\\n")
        while i == self.settings.stops_at and not Path(self.gate).exists():
            time.sleep(0.01)
        slope = problem.operator.adjoint(problem.y - problem.operator.forward(x))
        return i + 1, x + self.settings.rate * slope + 1e-5 * torch.randn(x.shape, generator=rng)

    def view(self, state):
        return Progress(state[1], state[0] == STEPS)
"""
STEPS = 6
#: What workers leave among the temporary files.
LEFT = "pdframe-bench-*/*"
ELLIPSOIDS = {**TABLE["scan"][0]["dataset"], "figure": "ellipsoids"}
TWO_AT_ONCE = {**TABLE, "seeds": [0], "executor": {"name": "local", "workers": 2, "threads": 1}}
#: "Short" ends; the others are where they wait when the kill comes.
RUN = {
    **TWO_AT_ONCE,
    "method": [
        {"name": "slow", "label": "Short"},
        {"name": "slow", "label": "Early", "rate": 4e-7, "stops_at": 2},
        {"name": "slow", "label": "Late", "rate": 3e-7, "stops_at": 3},
    ],
}
#: The second trial of "Waits" is at work when the kill comes, that of "Free", its last, has ended.
TUNE = {
    **TWO_AT_ONCE,
    "scan": [*TABLE["scan"], {"label": "v", "split": "validation", "dataset": ELLIPSOIDS}],
    "method": [
        {"name": "slow", "label": "Free", "search": {"rate": [6e-7]}},
        {"name": "slow", "label": "Waits", "search": {"rate": {"low": 1e-7, "high": 9e-7}, "stops_at": [2, 3]}},
    ],
    "tuning": {"trials": 3},
}


@dataclass(frozen=True)
class Stage:
    """A bench folder, the notes of its workers and the gate that they wait at, apart from every other stage."""

    root: Path
    site: Path

    @property
    def folder(self) -> Path:
        return self.root / "bench"

    def start(self, command: str, table: dict[str, Any]) -> subprocess.Popen[bytes]:
        """`pdframe bench <command>` in a process of its own."""
        (self.root / "toys.toml").write_text(tomli_w.dumps(table))
        told = {"ACME_NOTES": str(self.root / "notes"), "ACME_GATE": str(self.root / "gate")}
        return subprocess.Popen(
            [sys.executable, "-m", "pdframe", "bench", command, str(self.root / "toys.toml"), "--out", self.folder],
            env={**outside(self.site), **told, "TMPDIR": str(self.root / "private")},
            stdout=subprocess.DEVNULL,
        )

    def finish(self, command: str, table: dict[str, Any]) -> None:
        """Runs the command to its end with the gate open; nothing is left of its workers."""
        (self.root / "gate").touch()
        assert self.start(command, table).wait() == 0
        assert not list((self.root / "private").glob(LEFT))

    def kill(self, command: str, table: dict[str, Any], ready: Callable[[], bool]) -> None:
        """Kills the command when it is `ready`; the workers, of which nobody takes care any more, end by themselves."""
        driver = self.start(command, table)
        try:
            until(lambda: driver.poll() is not None or ready(), "it did not get to where it was to be killed")
            assert driver.poll() is None, "it ended before it could be killed"
        finally:
            driver.kill()
            driver.wait()
        until(lambda: all(gone(note["pid"]) for note in self.notes()), "a worker outlived its driver")
        assert list((self.root / "private").glob(LEFT))  # to go on from

    def notes(self) -> list[dict[str, Any]]:
        path = self.root / "notes"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def steps(self, **settings: Any) -> list[int]:
        """The steps that were begun with these settings, in the order of time."""
        return [note["step"] for note in self.notes() if settings.items() <= note.items()]

    def waits(self, **settings: Any) -> bool:
        """Whether a worker with these settings stands at the gate."""
        return any(note["step"] == note["stops_at"] for note in self.notes() if settings.items() <= note.items())

    def rows(self, under: str = "rows") -> dict[str, tuple[int, bytes]]:
        """Every file of every row: when it was written, and what."""
        files = (path for path in (self.folder / under).rglob("*") if path.is_file())
        return {str(p.relative_to(self.folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def until(holds: Callable[[], Any], words: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, words
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture
def stages(foreign: Callable[..., Path], tmp_path: Path) -> Iterator[tuple[Stage, Stage]]:
    """One that nothing happens to, and one that is killed."""
    site = foreign("acme-slow", {"acme_slow": PLUGIN}, entry="slow")
    found = Stage(tmp_path / "whole", site), Stage(tmp_path / "torn", site)
    for stage in found:
        (stage.root / "private").mkdir(parents=True)
    yield found
    for stage in found:
        (stage.root / "gate").touch()  # of a test that failed: nobody is left waiting


def untimed(path: Path) -> list[dict[str, str]]:
    """A CSV table without what no second run can repeat."""
    with path.open() as file:
        lines = list(csv.DictReader(file))
    return [{k: v for k, v in line.items() if not k.startswith(("seconds", "peak_gb"))} for line in lines]


def test_rows_that_two_workers_were_killed_in_go_on_to_the_table_of_an_undisturbed_run(stages: tuple[Stage, Stage]):
    whole, torn = stages
    whole.finish("run", RUN)
    short = torn.folder / "rows" / "all--head--s0" / "short" / "row.json"
    torn.kill("run", RUN, lambda: short.is_file() and torn.waits(stops_at=2) and torn.waits(stops_at=3))
    before = torn.rows()
    assert {Path(name).parent.name for name in before} == {"short"}
    assert len({note["pid"] for note in torn.notes()}) == 3

    torn.finish("run", RUN)
    assert before.items() <= torn.rows().items()
    assert torn.steps(stops_at=-1) == [0, 1, 2, 3, 4, 5]
    assert torn.steps(stops_at=2) == [0, 1, 2, 2, 3, 4, 5]  # no step that was checkpointed is taken again
    assert torn.steps(stops_at=3) == [0, 1, 2, 3, 3, 4, 5]

    assert [lasting(row) for row in read_row_files(torn.folder)] == [lasting(r) for r in read_row_files(whole.folder)]
    for table in ("table.csv", "cases.csv"):
        assert untimed(torn.folder / table) == untimed(whole.folder / table)
    volumes = [{k: v for k, (_, v) in stage.rows().items() if k.endswith("volume.nii.gz")} for stage in stages]
    assert len(volumes[0]) == 3 and volumes[0] == volumes[1]


def chosen(stage: Stage) -> dict[str, Any]:
    """The lock without seconds, and without hashes of what holds seconds."""

    def lasting_part(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: lasting_part(v) for k, v in value.items() if k not in ("seconds", "log_sha256", "sha256")}
        return value

    return lasting_part(json.loads((stage.folder / "tuning" / "lock.json").read_text()))


def test_a_tuning_killed_in_a_trial_goes_on_to_the_lock_of_an_undisturbed_one(stages: tuple[Stage, Stage]):
    whole, torn = stages
    whole.finish("tune", TUNE)
    under, case = "tuning/rows", "all--v--s0"
    ended = torn.folder / under / case / "free-trial-1" / "row.json"
    torn.kill("tune", TUNE, lambda: ended.is_file() and any(torn.waits(stops_at=i) for i in (2, 3)))
    before = torn.rows(under)
    assert {Path(name).parent.name for name in before} == {"free-trial-0", "waits-trial-0", "free-trial-1"}
    assert not (torn.folder / "tuning" / "lock.json").exists()
    (at_work,) = {note["stops_at"] for note in torn.notes()} - {-1}
    taken = torn.notes()

    torn.finish("tune", TUNE)
    assert before.items() <= torn.rows(under).items()
    later = [note["step"] for note in torn.notes()[len(taken) :]]
    assert later == [*range(at_work, STEPS), *range(STEPS)]  # of the trial that was at work, and of one more
    assert chosen(torn) == chosen(whole)
    trials = {label: found["chosen"]["all"]["trials"] for label, found in chosen(torn)["methods"].items()}
    assert trials == {"Free": 2, "Waits": 3}
    assert torn.rows(under).keys() == whole.rows(under).keys()
