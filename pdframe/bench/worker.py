"""`python -m pdframe.bench.worker`: one job, read from and answered in the working folder, which nobody else uses."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

#: linux/prctl.h
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Runs the job of the working folder."""
    _die_with_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()  # before the libraries, whose import takes seconds
    from pdframe import runfolder
    from pdframe.bench.answer import answer
    from pdframe.bench.job import Job
    from pdframe.bench.process import JOB, OUTCOME

    folder = Path.cwd()
    job = Job.from_bytes((folder / JOB).read_bytes())
    runfolder.write(folder / OUTCOME, answer(job, folder).to_bytes())


def _die_with_parent() -> None:
    """On Linux the kernel sees to it, even where a method hangs in a library and no thread of Python's can run."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with_parent() -> None:
    """The pipe to whoever started this process ends when they do; then there is nobody to work for. What the method
    started goes too: the worker leads a group of its own."""
    sys.stdin.buffer.read()
    if sys.platform != "win32" and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(3)


if __name__ == "__main__":
    main()
