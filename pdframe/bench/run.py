"""`pdframe bench run`: the rows of the test split. The bench folder is the state; what is there is not run again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import tomli_w

from pdframe import registry, runfolder
from pdframe.bench.config import Bench, CasePlan, Method, Split, bench_sha256, folder_of
from pdframe.bench.driver import Driver, RowPlan, freeze_cases
from pdframe.bench.lock import efforts, read_lock, tuned
from pdframe.bench.rows import BENCH
from pdframe.mistakes import ConfigError
from pdframe.part import Part, PartOf
from pdframe.report.progress import Progress, Silent, on_console

TOML = "bench.toml"


@dataclass(frozen=True)
class BenchResult:
    """A bench folder, how many rows this call ran, and how many there are in all that it was asked for."""

    folder: Path
    ran: int
    rows: int


def run_bench(
    bench: Bench,
    *,
    out_dir: Path | None = None,
    variant: str = "",
    only: Sequence[str] = (),
    timing: bool = False,
    retry: bool = False,
    console: bool = False,
    overrides: Sequence[str] = (),
) -> BenchResult:
    """Runs the rows of the test split that are not there yet.

    out_dir: the bench folder; default runs/<name of the TOML>[-<variant>]. only: patterns; rows are run whose id
    (case/method) or whose method's label matches one. timing: one row at a time, and those again that ran beside
    others. retry: rows that failed again. overrides: what `bench` was loaded with, for the command that a row says it
    can be repeated by. ConfigError if the folder belongs to another bench, or if tuning has not ended; FolderBusy if
    another process works in it.
    """
    folder = out_dir or default_folder(bench, variant)
    progress = on_console() if console else Silent()
    with runfolder.held(folder, "bench"):
        check_only(bench, only)
        plans = _opened(bench, folder, progress)
        asked = [plan for plan in plans if not only or any(_matches(pattern, plan) for pattern in only)]
        part = alone(bench.executor) if timing else bench.executor
        registry.require(part.entry)
        command = _command(bench, variant, overrides, timing, folder)
        options = {"timing": timing, "retry": retry, "command": command, "progress": progress}
        driver = Driver(bench, folder, part.build(), **options)
        driver.check(plans)
        write_head(bench, folder)
        ran = driver.run(asked)
        progress.say(f"{ran} rows run" if ran else f"all {len(asked)} rows were done before: nothing to do")
    return BenchResult(folder, ran, len(asked))


def _command(bench: Bench, variant: str, overrides: Sequence[str], timing: bool, folder: Path) -> str:
    """What runs rows of this bench, as it is typed in the folder of the TOML."""
    options = [f"--{variant}"] if variant else []
    options += [word for text in overrides for word in ("--set", text)]
    options += ["--timing"] if timing else []
    try:
        there = os.path.relpath(folder, folder_of(bench))
    except ValueError:  # another drive of Windows
        there = str(folder.absolute())
    options += ["--out", there]
    return shlex.join(["pdframe", "bench", "run", bench.source.name if bench.source else "BENCH.toml", *options])


def freeze_bench(bench: Bench, *, out_dir: Path | None = None, variant: str = "", console: bool = False) -> BenchResult:
    """Freezes cases and runs nothing: those of the test split, or, of a bench that is still to be tuned, those that it
    is tuned on. Errors as `run_bench`."""
    folder = out_dir or default_folder(bench, variant)
    progress = on_console() if console else Silent()
    with runfolder.held(folder, "bench"):
        split: Split = "validation" if bench.tuning and read_lock(bench, folder) is None else "test"
        if split == "test":
            tuned(bench, folder)
        cases = bench.cases(split)
        if not cases:
            raise ConfigError(f"no [[scan]] is of the {split} split: there is no case to freeze")
        write_head(bench, folder)
        freeze_cases(bench, cases, folder, progress)
        later = "; those of the test split once tuning has ended" if split == "validation" else ""
        progress.say(f"{len(cases)} cases of the {split} split are frozen in {folder}{later}")
    return BenchResult(folder, 0, len(cases))


def _opened(bench: Bench, folder: Path, progress: Progress) -> list[RowPlan]:
    """Every row of the test split, with what tuning chose."""
    progress.say(f"{bench.title or folder.name}\nbench folder {folder}")
    chosen, spent = tuned(bench, folder), efforts(bench, folder)

    def plan(case: CasePlan, method: Method) -> RowPlan:
        part = method.part(case.problem, chosen[method.label][case.problem])
        effort = spent[method.label, case.problem]
        return RowPlan(case, part, method.samples, effort.trials, effort.untuned)

    return [plan(case, method) for case in bench.cases("test") for method in bench.method]


def alone(executor: Part) -> Part:
    """An executor that runs one job at a time here, with as many threads a job as the given one."""
    threads = getattr(executor.settings, "threads", 0)
    return PartOf("executor").read({"name": "local", "workers": 1, "threads": threads})


def default_folder(bench: Bench, variant: str = "") -> Path:
    """runs/<name of the TOML>, with the variant's name behind it."""
    stem = bench.source.stem if bench.source else "bench"
    return Path("runs") / (f"{stem}-{variant}" if variant else stem)


def write_head(bench: Bench, folder: Path) -> None:
    """bench.toml and bench.json, written only where they change. ConfigError if the folder holds another bench."""
    digest, earlier = bench_sha256(bench), runfolder.read_json(folder / BENCH) or {}
    if earlier.get("bench_sha256", digest) != digest:
        raise ConfigError(
            f"{folder} holds a bench with other problems, scans, seeds or budget: choose another folder (--out)"
        )
    splits: tuple[Split, ...] = ("test", "validation")
    head = {
        "bench_sha256": digest,
        "title": bench.title,
        "cases": [case.id for split in splits for case in bench.cases(split)],
        "methods": list(dict.fromkeys([*earlier.get("methods", ()), *(m.label for m in bench.method)])),
        "plugins": earlier.get("plugins") or registry.versions(),
    }
    if head != earlier:
        runfolder.write_json(folder / BENCH, head)
    text = tomli_w.dumps(bench.resolved())
    if not (folder / TOML).is_file() or (folder / TOML).read_text() != text:
        runfolder.write(folder / TOML, text)


def check_only(bench: Bench, only: Sequence[str]) -> None:
    """ConfigError if there is no row of the test split at all, or none that a pattern of --only matches."""
    plans = [RowPlan(case, method.solver) for case in bench.cases("test") for method in bench.method]
    if not plans:
        raise ConfigError("no [[scan]] is of the test split: there is no row to run")
    for pattern in only:
        if not any(_matches(pattern, plan) for plan in plans):
            labels = ", ".join(repr(method.label) for method in bench.method)
            raise ConfigError(
                f"--only {pattern!r} matches no row: give CASE/METHOD, as {plans[0].id}, or one of {labels}"
            )


def _matches(pattern: str, plan: RowPlan) -> bool:
    return any(name == pattern or fnmatch(name, pattern) for name in (plan.id, plan.part.label))
