"""`python -m pdframe.bench.worker`: one job, read from and answered in the working folder, which nobody else uses."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path


def main() -> None:
    """Runs the job of the working folder."""
    threading.Thread(target=_end_with_parent, daemon=True).start()  # before the libraries, whose import takes seconds
    from pdframe import runfolder
    from pdframe.bench.answer import answer
    from pdframe.bench.job import Job
    from pdframe.bench.process import JOB, OUTCOME

    folder = Path.cwd()
    job = Job.from_bytes((folder / JOB).read_bytes())
    runfolder.write(folder / OUTCOME, answer(job, folder).to_bytes())


def _end_with_parent() -> None:
    """The pipe to whoever started this process ends when they do; then there is nobody to work for."""
    sys.stdin.buffer.read()
    os._exit(3)


if __name__ == "__main__":
    main()
