"""Joins bench folders of several machines into one; what contradicts itself is refused before a file moves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli
import tomli_w

from pdframe import runfolder
from pdframe.bench.lock import LOCK, LOG, TUNING, joined
from pdframe.bench.rows import BENCH, PAGE, ROW, ROWS, TRIED_AGAIN, sweep, whole
from pdframe.mistakes import ConfigError

CASES, TRUTH, CASE, TOML = "cases", "truth", "case.json", "bench.toml"


@dataclass(frozen=True)
class Merged:
    """A folder that others were joined into: rows that came in, and rows that were there or came twice, equal."""

    folder: Path
    added: int
    known: int


def merge(into: Path, sources: Sequence[Path]) -> Merged:
    """Copies cases, rows and tuning of `sources` into the bench folder `into`, which may be new.

    A row that is there twice with equal results is kept once; one that was lost gives way to one that ended.
    ConfigError, before anything is copied, if a folder is of another bench, if a case was measured twice to different
    values, if a method has two settings under one label, if one row has two results, or if one method was tuned twice.
    Methods that were tuned apart, by the same rules on the same cases, have one lock from then on.
    """
    with runfolder.held(into, "bench"):
        runfolder.restore(into / TUNING)
        sweep(into / ROWS)
        known = [into] if (into / BENCH).is_file() else []
        folders = [*known, *sources]
        _same_bench(folders)
        _same_cases(folders)
        tuning = joined(folders)
        rows: dict[str, Path] = {}
        count = 0
        for folder in folders:
            for name, row in _rows(folder):
                count += 1
                rows[name] = _better(rows[name], row) if name in rows else row
        _write_head(folders, into)  # the first file of all, for it says whose folder this is
        for folder in sources:
            _copy_cases(folder, into)
        if tuning is not None:
            _copy_tuning(sources, into, *tuning)
        added = [name for name, row in rows.items() if row != into / ROWS / name]
        for name in added:
            _copy_folder(rows[name], into / ROWS / name)
        if added:
            (into / PAGE).unlink(missing_ok=True)  # it told of fewer rows
    return Merged(into, len(added), count - len(added))


def _same_bench(folders: Sequence[Path]) -> None:
    first: tuple[Path, str] | None = None
    for folder in folders:
        head = runfolder.read_json(folder / BENCH)
        if head is None:
            raise ConfigError(f"{folder}: is no bench folder, it holds no {BENCH}")
        if first is not None and head["bench_sha256"] != first[1]:
            raise ConfigError(f"{folder}: is of another bench than {first[0]}: problems, scans, seeds or budget differ")
        first = first or (folder, head["bench_sha256"])


def _same_cases(folders: Sequence[Path]) -> None:
    seen: dict[str, tuple[Path, tuple[str, str]]] = {}
    for folder in folders:
        for path in whole(folder / CASES, f"*/{CASE}"):
            record = runfolder.read_json(path) or {}
            found = record["y_sha256"], record["truth_sha256"]
            where, before = seen.setdefault(record["id"], (folder, found))
            if before != found:
                raise ConfigError(
                    f"case {record['id']} has other values in {folder} than in {where}: freeze the cases on one "
                    "machine (pdframe bench run --freeze) and copy them before the rows are run"
                )


def _copy_tuning(folders: Sequence[Path], into: Path, lock: Mapping[str, Any], log: str) -> None:
    """All of it at once: a log without its lock would be a tuning that has not ended."""
    new = into / f".{TUNING}.new"
    shutil.rmtree(new, ignore_errors=True)
    if (into / TUNING).is_dir():
        shutil.copytree(into / TUNING, new)
    for folder in folders:
        for trial in whole(folder / TUNING / ROWS, f"*/*/{ROW}"):
            target = new / trial.parent.relative_to(folder / TUNING)
            if not target.exists():
                _copy_folder(trial.parent, target)
    runfolder.write(new / LOG, log)
    runfolder.write_json(new / LOCK, lock)
    runfolder.put_in_place(new, into / TUNING)


def _rows(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in whole(folder / ROWS, f"*/*/{ROW}"):
        yield f"{path.parent.parent.name}/{path.parent.name}", path.parent


def _better(a: Path, b: Path) -> Path:
    """Which of two folders of one row is kept."""
    first, second = (runfolder.read_json(folder / ROW) or {} for folder in (a, b))
    for key, what in (("config_sha256", "other settings"), ("y_sha256", "another measurement")):
        if first[key] != second[key]:
            raise ConfigError(f"{b}: was run with {what} than {a}")
    if first["status"] in TRIED_AGAIN:
        return b
    if second["status"] in TRIED_AGAIN:
        return a
    if _result(first) != _result(second):
        raise ConfigError(f"{b}: has another result than {a}: remove one of them")
    return b if second["timing"] and not first["timing"] else a


def _result(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What does not depend on the machine's speed."""
    return row["status"], [[e[key] for key in ("estimate", "metrics", "residual")] for e in row["rows"]]


def _copy_cases(folder: Path, into: Path) -> None:
    for case in whole(folder / CASES, f"*/{CASE}"):
        name = case.parent.name
        if not (into / CASES / name / CASE).is_file():
            truth = f"{name}.safetensors"
            runfolder.write(into / TRUTH / truth, (folder / TRUTH / truth).read_bytes())
            _copy_folder(case.parent, into / CASES / name)


def _copy_folder(source: Path, target: Path) -> None:
    """The target appears whole; one that is there is replaced."""
    new = target.with_name(f".{target.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, new)
    runfolder.put_in_place(new, target)


def _write_head(folders: Sequence[Path], into: Path) -> None:
    """bench.json and bench.toml of the first folder, with the methods of all."""
    heads = [runfolder.read_json(folder / BENCH) or {} for folder in folders]
    methods = list(dict.fromkeys(label for head in heads for label in head["methods"]))
    cases = list(dict.fromkeys(case for head in heads for case in head["cases"]))
    tables = [tomli.loads((folder / TOML).read_text()) for folder in folders if (folder / TOML).is_file()]
    known = {method["solver"]["label"]: method for table in reversed(tables) for method in table["method"]}
    table = {**tables[0], "method": [known[label] for label in methods if label in known]}
    runfolder.write_json(into / BENCH, {**heads[0], "methods": methods, "cases": cases})
    runfolder.write(into / TOML, tomli_w.dumps(table))
