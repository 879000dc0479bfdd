"""One job in one fresh process: started in a private folder, watched, stopped at its time limit, its end explained."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pdframe
from pdframe.bench.executor import Failure, is_lost
from pdframe.lock import FolderBusy, only_one

JOB, OUTCOME, LOG, FILES = "job.safetensors", "outcome.safetensors", "log.txt", "files"
#: Variables that would tell a worker where the bench was started or where the data are.
HIDDEN = ("PWD", "OLDPWD", "_", "PDFRAME_DATA")
WEEK_S = 7 * 24 * 3600.0
#: So much of a worker's log is kept where it failed.
SAID_BYTES = 20_000


class WorkerProcess:
    """A job at work. Ask `result` until it is there; `stop` ends it at once, with whatever it started.

    The folder has no neighbours, and in it is every file that the settings name: beside the originals may lie the
    truth. It is named after the job and outlives a kill, so that the same job, started again, goes on from its last
    checkpoint, until `forget`, for when the result is safe. The process ends when the one that started it does.
    environment: variables for this worker on top of ours.
    """

    def __init__(self, job: bytes, timeout_s: float, environment: Mapping[str, str] | None = None) -> None:
        self.held = contextlib.ExitStack()
        self.folder = _private_folder(hashlib.sha256(job).hexdigest(), self.held)
        self.held.callback(shutil.rmtree, self.folder / FILES, ignore_errors=True)  # the next attempt has them anew
        (self.folder / JOB).write_bytes(_with_files_at_hand(job, self.folder))
        (self.folder / OUTCOME).unlink(missing_ok=True)  # of an earlier attempt that was killed at its very end
        self.oom_kills = _oom_kills()
        self.timeout_s, self.deadline = timeout_s, time.monotonic() + timeout_s
        with open(self.folder / LOG, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-X", "faulthandler", "-m", "pdframe.bench.worker"],
                cwd=self.folder,
                env={**_environment(), **(environment or {})},
                stdin=subprocess.PIPE,  # never written to: its end tells the worker that we are gone
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def result(self) -> bytes | Failure | None:
        """The outcome, or why there is none; None while it is at work."""
        code = self.process.poll()
        if code is None and time.monotonic() < self.deadline:
            return None
        if code is None:
            self._end()
            return Failure("timeout", f"stopped at its limit of {self.timeout_s:g} s", self._said())
        outcome, lost = self.folder / OUTCOME, code in (-signal.SIGTERM, -getattr(signal, "SIGKILL", 9))
        found = outcome.read_bytes() if outcome.is_file() else self._explained(code, lost)
        self._end()
        return found

    def forget(self) -> None:
        """The folder goes, with all that another attempt could go on from; and the worker is stopped."""
        # Before it is let go of: after that, another worker on the same job may have it.
        self.held.callback(shutil.rmtree, self.folder.parent, ignore_errors=True)
        self.stop()

    def stop(self) -> None:
        """Kills the worker and every process that it started, and lets go of its folder."""
        self._end()
        self.held.close()

    def _end(self) -> None:
        assert self.process.stdin is not None
        if self.process.stdin.closed:  # it has ended, and its number may be another's by now
            return
        try:
            if sys.platform == "win32":
                self.process.kill()
            else:
                os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        self.process.stdin.close()
        self.process.wait()

    def _said(self) -> str:
        """The end of what it wrote."""
        with contextlib.suppress(FileNotFoundError), open(self.folder / LOG, "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - SAID_BYTES))
            return log.read().decode(errors="replace")
        return ""

    def _fault(self) -> str:
        """The line of Python's fault handler that names the fault; a long list of modules may come after it."""
        with contextlib.suppress(FileNotFoundError), open(self.folder / LOG, errors="replace") as log:
            return next((line.strip() for line in log if line.startswith("Fatal Python error")), "")
        return ""

    def _explained(self, code: int, lost: bool) -> Failure:
        said = self._said()
        last = next((line.strip() for line in reversed(said.split("\n")) if line.strip()), "it said nothing")[:300]
        if lost and _oom_kills() > self.oom_kills:
            return Failure("out_of_memory", "the system killed it for want of memory")
        if lost:
            return Failure("lost", f"killed from outside by {signal.Signals(-code).name}")
        if code < 0:
            return Failure("crashed", f"ended by {signal.Signals(-code).name}: {self._fault() or last}", said)
        return Failure("crashed", f"ended with exit code {code} and no outcome: {last}", said)


def in_fresh_process(
    job: bytes, timeout_s: float, environment: Mapping[str, str] | None = None, *, attempts: int = 2
) -> bytes | Failure:
    """Runs a job to its end and returns its outcome; a worker that was lost is started again, `attempts` in all."""
    found: bytes | Failure | None = None
    for _ in range(attempts):
        worker = WorkerProcess(job, timeout_s, environment)
        try:
            while (found := worker.result()) is None:
                time.sleep(0.05)
            if not is_lost(found):
                worker.forget()
                break
        finally:
            worker.stop()
    assert found is not None
    return found


def _private_folder(name: str, held: contextlib.ExitStack) -> Path:
    """An only child, outside of any bench, in a folder that only this user can read; held against a second worker on
    the same job. From its parent a method gets to no other job's files."""
    user = str(os.getuid()) if sys.platform != "win32" else os.environ.get("USERNAME", "user")
    temp, prefix = Path(tempfile.gettempdir()), f"pdframe-bench-{user}-"
    home = temp / f"{prefix}{name[:32]}"
    _sweep(temp, f"{prefix}*", home)
    home.mkdir(mode=0o700, exist_ok=True)
    if sys.platform != "win32" and home.lstat().st_uid != os.getuid():
        raise PermissionError(f"{home} belongs to another user: set TMPDIR to a folder of your own")
    try:
        held.enter_context(only_one(home))
    except FolderBusy:
        home = Path(tempfile.mkdtemp(prefix=prefix, dir=temp))
    (home / "row").mkdir(exist_ok=True)
    return home / "row"


def _sweep(temp: Path, pattern: str, home: Path) -> None:
    """Removes what killed jobs left that nobody started again within a week."""
    for old in temp.glob(pattern):
        with contextlib.suppress(OSError):  # another bench removes it too
            last = max(path.stat().st_mtime for path in (old, *old.iterdir()))
            if old != home and time.time() - last > WEEK_S:
                shutil.rmtree(old, ignore_errors=True)


def _with_files_at_hand(job: bytes, folder: Path) -> bytes:
    """The job, its settings naming copies in `folder` of the files that they named.

    The new names are relative, so that they are the same wherever the job runs. Only the head of the bytes is read.
    """
    shutil.rmtree(folder / FILES, ignore_errors=True)
    end = 8 + int.from_bytes(job[:8], "little")
    head = json.loads(job[8:end])
    told = json.loads(head["__metadata__"]["pdframe_bench"])
    numbers = itertools.count()
    told |= {kind: _brought(told[kind], folder, numbers) for kind in ("solver", "operator", "noise")}
    head["__metadata__"]["pdframe_bench"] = json.dumps(told, sort_keys=True)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)  # what follows starts at a multiple of 8, as the format wants it
    return len(text).to_bytes(8, "little") + text + job[end:]


def _brought(settings: Any, folder: Path, numbers: Iterator[int]) -> Any:
    """Settings, with each path in them brought into `folder` and named from there."""
    if isinstance(settings, dict):
        return {key: _brought(value, folder, numbers) for key, value in settings.items()}
    if isinstance(settings, list):
        return [_brought(value, folder, numbers) for value in settings]
    if not (isinstance(settings, str) and _is_a_path(settings, folder)):
        return settings
    copy = folder / FILES / str(next(numbers)) / Path(settings).name
    copy.parent.mkdir(parents=True)
    if os.path.isdir(settings):
        shutil.copytree(settings, copy, ignore_dangling_symlinks=True)
    elif os.path.isfile(settings):  # else it is missing in the worker too
        shutil.copy(settings, copy)
    return copy.relative_to(folder).as_posix()


def _is_a_path(text: str, folder: Path) -> bool:
    """Of a file or folder, or of one that is missing from a folder; but not of a folder that `folder` itself is in."""
    if not os.path.isabs(text) or os.path.realpath(text) in map(str, folder.resolve().parents):
        return False
    missing = not os.path.exists(text) and len(Path(text).parts) > 2 and os.path.isdir(os.path.dirname(text))
    return os.path.isfile(text) or os.path.isdir(text) or missing


def _environment() -> dict[str, str]:
    """Ours, less what names the folder that we were started in; the worker imports from where we do."""
    here = os.getcwd()
    told = {k: v for k, v in os.environ.items() if k not in HIDDEN and (v != here or k == "HOME")}
    needed = {*os.environ.get("PYTHONPATH", "").split(os.pathsep), str(Path(pdframe.__file__).parents[1])}
    paths = [path for path in sys.path if path and (path != here or path in needed)]
    return {**told, "PYTHONPATH": os.pathsep.join(paths)}


def _oom_kills() -> int:
    """How many processes this system has killed for want of memory; 0 where it does not say."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0
