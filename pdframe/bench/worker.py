"""`python -m pdframe.bench.worker`: one job, read from and answered in the working folder, which nobody else uses."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path


def main() -> None:
    """Runs the job of the working folder."""
    _end_with_parent()  # before the libraries, whose import takes seconds
    from pdframe import runfolder
    from pdframe.bench.answer import answer
    from pdframe.bench.job import Job
    from pdframe.bench.process import JOB, OUTCOME

    folder = Path.cwd()
    job = Job.from_bytes((folder / JOB).read_bytes())
    runfolder.write(folder / OUTCOME, answer(job, folder).to_bytes())


def _end_with_parent() -> None:
    """The pipe to whoever started this process ends when they do; then it goes, with all that it started.

    A shell in its group waits for that: a method that hangs in a library lets no thread of Python run.
    """
    if sys.platform != "win32" and os.getpgrp() == os.getpid():
        subprocess.Popen(["/bin/sh", "-c", "read -r _; kill -9 0"])
    else:
        threading.Thread(target=_exit_at_the_end_of_the_pipe, daemon=True).start()


def _exit_at_the_end_of_the_pipe() -> None:
    sys.stdin.buffer.read()
    os._exit(3)


if __name__ == "__main__":
    main()
