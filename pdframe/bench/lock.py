"""The lock between tuning and testing: no test scan is opened before it is there, no tuning after a test row is.

`tuning/lock.json` holds what tuning chose for every method and problem, and the hashes of what it was chosen by: the
bench, each method's table with the rules of tuning, and the search log.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdframe import runfolder
from pdframe.bench.config import Bench, Method, Range, bench_sha256, folder_of
from pdframe.bench.rows import read_row_files
from pdframe.config import table_sha256
from pdframe.mistakes import ConfigError

TUNING = "tuning"
LOG, LOCK = "log.jsonl", "lock.json"


def read_lock(bench: Bench, folder: Path) -> dict[str, Any] | None:
    """The lock of a bench folder; None if there is none. ConfigError if it was made for another bench or edited."""
    lock = _signed(folder)
    if lock is not None and lock["bench_sha256"] != bench_sha256(bench):
        raise ConfigError(
            f"{folder / TUNING / LOCK}: was tuned for another bench; choose another folder and tune there"
        )
    return lock


def _signed(folder: Path) -> dict[str, Any] | None:
    """The lock of a folder; ConfigError if it, or the log that it was made from, was edited."""
    path = folder / TUNING / LOCK
    lock = runfolder.read_json(path)
    if lock is None:
        return None
    if lock["sha256"] != _own_sha256(lock):
        raise ConfigError(f"{path}: was edited after tuning; tune again in a new folder")
    log = folder / TUNING / LOG
    if not log.is_file() or hashlib.sha256(log.read_bytes()).hexdigest() != lock["log_sha256"]:
        raise ConfigError(f"{log}: is not the log that the lock was made from; tune again in a new folder")
    return lock


def write_lock(bench: Bench, folder: Path, chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Closes tuning: `chosen` is, for each method and problem, {"settings", "trial", "score", ...}."""
    assert bench.tuning is not None
    lock: dict[str, Any] = {
        "bench_sha256": bench_sha256(bench),
        "log_sha256": hashlib.sha256((folder / TUNING / LOG).read_bytes()).hexdigest(),
        "tuning": bench.tuning.model_dump(mode="json", exclude_none=True),
        "cases": [case.id for case in bench.cases("validation")],
        "methods": {m.label: {"rules_sha256": rules_sha256(bench, m), "chosen": chosen[m.label]} for m in bench.method},
    }
    lock["sha256"] = _own_sha256(lock)
    runfolder.write_json(folder / TUNING / LOCK, lock)
    return lock


def joined(folders: Sequence[Path]) -> tuple[dict[str, Any], str] | None:
    """One lock and one log of bench folders that were tuned apart, each for methods of its own; None if none was.

    ConfigError if they were tuned by other rules or on other cases, or if a method has two tunings.
    """
    locks = {folder: found for folder in folders if (found := _signed(folder)) is not None}
    if unfinished := [folder for folder in folders if folder not in locks and (folder / TUNING / LOG).is_file()]:
        raise ConfigError(f"{unfinished[0]}: its tuning has not ended; run `pdframe bench tune` there to its end")
    if not locks:
        return None
    first, *_ = locks
    methods: dict[str, Any] = {}
    searched = {label for folder in locks for label in _searched(folder)}
    for folder in folders:
        if folder not in locks and (loose := {row["method"] for row in _tested(folder)} & searched):
            raise ConfigError(
                f"{folder}: has rows of {', '.join(sorted(loose))} that were not tuned as in {first}: "
                "they do not compare"
            )
    for folder, lock in locks.items():
        if any(lock[key] != locks[first][key] for key in ("bench_sha256", "tuning", "cases")):
            raise ConfigError(f"{folder}: was tuned by other rules than {first}: their rows do not compare")
        for label, found in lock["methods"].items():
            if methods.setdefault(label, found) != found:
                raise ConfigError(f"{folder}: {label!r} was tuned twice, apart: its rows do not compare")
    lines = dict.fromkeys(line for folder in locks for line in (folder / TUNING / LOG).read_text().splitlines())
    log = "".join(f"{line}\n" for line in lines)
    lock = {**locks[first], "methods": methods, "log_sha256": hashlib.sha256(log.encode()).hexdigest()}
    return {**lock, "sha256": _own_sha256(lock)}, log


def tuned(bench: Bench, folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Method -> problem -> the settings that tuning chose; every method and problem of the bench is in it.

    To be called before a test scan is opened. Of a bench without [tuning] all are {}. Raises ConfigError where tuning
    has not ended, or where a method that could be tuned was not, or was changed since.
    """
    nothing = {m.label: {p.label: {} for p in bench.problem} for m in bench.method}
    if bench.tuning is None:
        if (folder / TUNING / LOG).is_file():
            raise ConfigError(
                f"{folder}: was tuned, or tuning began there, and the bench has no [tuning] now: put it back, "
                "or choose another folder (--out)"
            )
        return nothing
    lock = read_lock(bench, folder)
    if lock is None:
        raise ConfigError(
            f"{folder}: the bench has a [tuning] table, and tuning has not ended: the test split stays closed. "
            "Run `pdframe bench tune` first"
        )
    for method in bench.method:
        known = lock["methods"].get(method.label)
        if known is None and not method.search:
            continue  # there is nothing about it to tune
        if known is None or known["rules_sha256"] != rules_sha256(bench, method):
            what = "is not in the lock" if known is None else "or the [tuning] table was changed after tuning"
            raise ConfigError(
                f"method {method.label!r} {what}: tune a new bench folder, or give it settings without `search`"
            )
        for problem, found in known["chosen"].items():
            nothing[method.label][problem] = as_written(method, found["settings"])
    return nothing


@dataclass(frozen=True)
class Effort:
    """trials: that a method's settings on a problem come from, 0 if they are as written. untuned: why there were not as
    many as for the others, "" if there were."""

    trials: int = 0
    untuned: str = ""


def efforts(bench: Bench, folder: Path) -> dict[tuple[str, str], Effort]:
    """(method, problem) -> what was spent on tuning it."""
    lock = read_lock(bench, folder) if bench.tuning else None
    known = lock["methods"] if lock else {}
    found: dict[tuple[str, str], Effort] = {}
    for method in bench.method:
        for problem in bench.problem:
            tried = known[method.label]["chosen"][problem.label] if method.search and method.label in known else {}
            lacked = tried.get("cannot_run", "")
            untuned = f"could not run when the others were tuned ({lacked}): tune in a new folder" if lacked else ""
            found[method.label, problem.label] = Effort(tried.get("trials", 0), untuned)
    return found


def as_written(method: Method, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings out of a JSON file as the choices that the bench's TOML wrote: a path knows its folder again."""
    found = {}
    for key, value in settings.items():
        choices = method.search[key]
        found[key] = value if isinstance(choices, Range) else choices[choices.index(value)]
    return found


def _tested(folder: Path) -> list[dict[str, Any]]:
    """The rows of the test split."""
    return [row for row in read_row_files(folder) if row["split"] == "test"]


def _searched(folder: Path) -> set[str]:
    """Labels of the methods that had trials."""
    return {json.loads(line)["method"] for line in (folder / TUNING / LOG).read_text().splitlines()}


def refuse_after_test(folder: Path) -> None:
    """ConfigError if the folder has a row of the test split, finished or failed."""
    if seen := _tested(folder):
        raise ConfigError(
            f"{folder}: the test split was opened, {len(seen)} of its rows are here: nothing is tuned after that. "
            "Choose another folder"
        )


def rules_sha256(bench: Bench, method: Method) -> str:
    """Of all that a method's settings come from beside the bench: [tuning], `tuned_as`, and its whole table."""
    assert bench.tuning is not None
    tables = {"tuning": bench.tuning, "method": method}
    told = {name: table.model_dump(mode="python", exclude_none=True, by_alias=True) for name, table in tables.items()}
    if tuned_as := {problem.label: problem.tuned_as for problem in bench.problem if problem.tuned_as}:
        told["tuned_as"] = tuned_as
    return table_sha256(told, folder_of(bench))


def _own_sha256(lock: Mapping[str, Any]) -> str:
    return table_sha256({key: value for key, value in lock.items() if key != "sha256"}, Path())
