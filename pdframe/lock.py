"""One process at a time in a folder of results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


class FolderBusy(RuntimeError):
    """Another process is at work in the folder."""


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Holds `folder` (made if need be) until the block ends; FolderBusy at once if another process holds it.

    The system lets go of the lock however the process ends, so none is left behind by a kill.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    file = _hold(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is let go of: whoever opens it from now on opens a new one
        file.close()


def _hold(path: Path) -> IO[str]:
    while True:
        file = open(path, "a+", encoding="ascii")  # noqa: SIM115 (it stays open as long as it is held)
        if not _locked(file):
            file.seek(0)
            owner = file.read().strip()
            file.close()
            raise FolderBusy(f"{path.parent} is in use by another process{owner and f' ({owner})'}: wait for its end")
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # its holder removed it between our opening and locking it
    file.truncate(0)
    file.write(f"process {os.getpid()}")
    file.flush()
    return file


def _locked(file: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows has no advisory locks: its own forbids others to open what is locked
        import msvcrt

        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
