"""One experiment from settings to a folder of results: data, operator, measurement, every method, figure, record.

The folder is the state of the run. Each method ends with its own `method.json`; a run that was killed finds what is
there, goes on from the checkpoint of the method that was at work, and writes the same files as one that was not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdframe import machine, measure, runfolder, solutions
from pdframe.config import Experiment, dump, named_files, sha256
from pdframe.core.budget import Usage
from pdframe.core.checkpoint import fingerprint
from pdframe.core.memory import available_bytes, solve_bytes
from pdframe.core.noise import NoNoise
from pdframe.core.operator import ForwardOperator, adjoint_mismatch
from pdframe.core.prior import Prior, unfamiliar
from pdframe.core.problem import Case, Item, Metric, Problem
from pdframe.core.seeds import generator
from pdframe.core.solve import Status
from pdframe.core.solver import Progress as Seen
from pdframe.core.solver import Solver
from pdframe.judge import Judge
from pdframe.mistakes import ConfigError, as_mistake
from pdframe.part import Part
from pdframe.report.progress import Progress, Silent, listed, on_console, told
from pdframe.report.table import as_text, in_short

#: A run that takes more says so before it begins.
LARGE_BYTES = 2**30
FAILED = (Status.nonfinite,)


class RunFailed(RuntimeError):
    """A method of the run gave no usable volume; the record says which and why."""


@dataclass(frozen=True)
class RunResult:
    """A finished run: its folder and its record, as `record.json` holds it."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One dict for each row of the table: method, samples, metrics, residual, usage."""
        return [row for method in self.record["methods"] for row in method["rows"]]

    @property
    def table(self) -> str:
        """The rows as text, and below them which methods a limit stopped."""
        cut = [f"{m['label']}: {m['sentence']}" for m in self.record["methods"] if m["status"] != Status.finished.name]
        return "\n".join([as_text(self.rows), *cut])

    def volume(self, label: str | None = None) -> Tensor:
        """The x that a method found, by label; default: that of the main solver. HU were rounded to whole numbers."""
        methods = {m["label"]: m for m in self.record["methods"]}
        label = self.record["main"] if label is None else label
        if label not in methods:
            raise KeyError(f"no method is labelled {label!r}; there are {', '.join(methods)}")
        return runfolder.load_volume(self.folder / methods[label]["folder"])


@dataclass(frozen=True)
class Setting:
    """What all methods of a run share."""

    case: Case
    item: Item
    measured: measure.Measurement
    metric: Metric | None
    context: Mapping[str, Any]


def run_experiment(
    experiment: Experiment,
    *,
    out_dir: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    console: bool = False,
) -> RunResult:
    """Runs an experiment, or goes on with it, or finds it done.

    out_dir: the run folder; default runs/<name of the TOML>-<first 8 digits of the settings' hash>.
    fresh: forget what the folder holds. console: say on standard output what happens.
    Raises RunFailed if a method gave NaN, KeyboardInterrupt after it was interrupted (the same call goes on),
    ConfigError if the folder belongs to other settings, or holds files that are of no run.
    """
    progress = on_console() if console else Silent()
    digest = sha256(experiment)
    folder = _folder(experiment, digest, out_dir)
    with runfolder.held(folder, "run"):
        return _told(_resumed(experiment, digest, folder, fresh, progress), progress)


def _resumed(experiment: Experiment, digest: str, folder: Path, fresh: bool, progress: Progress) -> RunResult:
    """The run, or what it left when it ended before."""
    earlier = runfolder.read_json(folder / runfolder.RECORD)
    if fresh or (earlier is not None and earlier["status"] == runfolder.CLEARING):
        return _run(experiment, digest, folder, True, progress)
    if earlier is not None and earlier["config_sha256"] != digest:
        raise ConfigError(f"{folder} holds a run with other settings: choose another folder, or start afresh (--fresh)")
    if earlier is not None:
        _refuse_changed_files(experiment, folder, earlier)
    if earlier is not None and earlier["status"] == "done":
        progress.say("this run was done before; --fresh runs it again")
        return RunResult(folder, earlier)
    return _run(experiment, digest, folder, False, progress)


def _refuse_changed_files(experiment: Experiment, folder: Path, earlier: Mapping[str, Any]) -> None:
    """ConfigError if a scan, weights or measurement is not what it was when the run began."""
    now = named_files(experiment)
    changed = [path for path, digest in earlier.get("files", {}).items() if now.get(path, digest) != digest]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)} changed since the run in {folder} began: start afresh (--fresh), or choose another "
            "folder (--out)"
        )


def _run(experiment: Experiment, digest: str, folder: Path, fresh: bool, progress: Progress) -> RunResult:
    if experiment.title:
        progress.say(experiment.title)
    kept = folder / runfolder.MEASUREMENT
    setting = _setting(experiment, None if fresh else kept, progress)
    # The baselines first: they are quick, and tell early whether the data are what they should be.
    main, *compared = experiment.methods
    ordered = (*compared, main)
    # All before the first runs, and before anything is written: a mistake in the last comes early and costs nothing.
    built = [_built(part, setting, progress) for part in ordered]
    _told_of_memory(setting, [solver for _, solver in built], progress)
    names = runfolder.folder_names(part.label for part in compared)
    record = {**_record(experiment, digest, setting), "folders": names}
    progress.say(f"run folder {_short(folder)}")
    runfolder.begin(folder, record, fresh=fresh)
    if not experiment.measurement.frozen and not kept.is_file():
        measure.save(setting.measured, kept)
    runfolder.write(folder / runfolder.CONFIG, dump(experiment))
    try:
        methods = [
            _method(experiment, part, made, setting, folder / name, progress)
            for part, made, name in zip(ordered, built, (*names, ""), strict=True)
        ]
    except BaseException as error:
        stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        runfolder.write_json(folder / runfolder.RECORD, {**record, "status": stopped})
        progress.ended(f"{stopped}; the same command goes on from here")
        raise
    methods = [{**m, "folder": name} for m, name in zip(methods, (*names, ""), strict=True)]
    failed = [f"{m['label']}: {m['sentence']}" for m in methods if m["status"] in {s.name for s in FAILED}]
    record |= {"status": "failed" if failed else "done", "methods": methods}
    # Only now: while a solver runs, the truth lies in no file of the run.
    runfolder.save_volume(folder, runfolder.TRUTH, setting.item.x, setting.item)
    _figure(experiment, setting, methods, folder)
    runfolder.write_json(folder / runfolder.RECORD, record)
    if failed:
        raise RunFailed(f"{'; '.join(failed)} (the rest is in {_short(folder)})")
    return RunResult(folder, record)


def _setting(experiment: Experiment, kept: Path | None, progress: Progress) -> Setting:
    """Data, operator and measurement; the last from the file `kept` if it is there."""
    device = machine.chosen(experiment.device)
    with as_mistake("dataset"):
        dataset = experiment.dataset.build()
        name = experiment.item or dataset.names()[0]
        item = dataset.load(name)
    for note in item.header.get("notes", ()):
        progress.say(f"note on {name}: {note}")
    with as_mistake("operator"):
        operator = experiment.operator.build(grid=item.grid)
    noise = experiment.noise.build() if experiment.noise else NoNoise()
    wanted = experiment.measurement
    with as_mistake("measurement"):
        if not (wanted.frozen or (kept is not None and kept.is_file())):
            progress.say(f"simulating the measurement of {name}")
        measured = measure.obtain(wanted, dataset, name, operator, noise, kept=kept)
    if measured.record.get("finer") is False:
        progress.say("note: the data were simulated on the grid that is reconstructed, which flatters every method")
    masks = {mask: where.to(device) for mask, where in item.masks.items()}
    item = replace(item, x=item.x.to(device), masks=masks)
    case = Case(Problem(operator, measured.y.to(device), noise), item.x, name)
    context = {"grid": item.grid, "operator": operator}
    return Setting(case, item, measured, experiment.metrics.build() if experiment.metrics else None, context)


def memory_estimate(operator: ForwardOperator, solvers: Iterable[Solver], *, device: torch.device | str = "cpu") -> int:
    """Bytes that the largest of some solves takes, one after the other, roughly."""
    return max(solve_bytes(solver, operator, device=device) for solver in solvers)


def _told_of_memory(setting: Setting, solvers: Iterable[Solver], progress: Progress) -> None:
    """One line before a run that is large for its machine."""
    device = setting.item.x.device
    need, free = memory_estimate(setting.case.problem.operator, solvers, device=device), available_bytes(device)
    if free is not None and need > min(LARGE_BYTES, free / 4):
        progress.say(f"memory: a solve takes about {need / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free")


def _built(part: Part, setting: Setting, progress: Progress) -> tuple[Prior | None, Solver]:
    with as_mistake(f"prior of {part.label!r}"):
        prior = part.prior.build(**setting.context) if part.prior else None
    if prior is not None and (note := unfamiliar(prior, setting.item.grid)):
        progress.say(f"note on the prior of {part.label!r}: {note}")
    with as_mistake(f"solver {part.label!r}"):
        return prior, part.build(**setting.context, prior=prior)


def _method(
    experiment: Experiment,
    part: Part,
    built: tuple[Prior | None, Solver],
    setting: Setting,
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Every sample of one method, its files and its rows; from `method.json` if it is there."""
    y_sha256 = setting.measured.record["y_sha256"]
    before = runfolder.read_json(folder / runfolder.METHOD)
    if before is not None and before["y_sha256"] == y_sha256:
        progress.started(part.label, 1)
        progress.ended("done before")
        return before
    prior, solver = built
    count = experiment.samples if part.prior else 1
    progress.started(part.label, count * solver.total_steps)
    found = solutions.draw(
        setting.case.problem,
        solver,
        folder,
        y_sha256,
        count=count,
        seed=experiment.seed,
        budget=experiment.budget.build(),
        on_step=_teller(progress, count, solver.total_steps),
    )
    rows = _rows(part.label, Judge(setting.case.problem, setting.item, setting.metric).estimates(found))
    worst = next((s.status for s in found if s.status in FAILED), found[0].status)
    method = {
        "label": part.label,
        "solver": part.name,
        "prior": part.prior.name if part.prior else "",
        "prior_sha256": fingerprint(prior) if prior is not None else "",
        "y_sha256": y_sha256,
        "status": worst.name,
        "sentence": worst.value,
        "rows": rows,
    }
    runfolder.save_solutions(folder, found, setting.item)
    runfolder.write_json(folder / runfolder.METHOD, method)
    solutions.forget(folder)
    short = ", ".join(in_short(rows[-1]).splitlines())
    progress.ended(f"{short or worst.value} ({told(rows[-1]['usage']['seconds'])})")
    return method


def _teller(progress: Progress, count: int, total: int) -> solutions.OnStep:
    """Tells how far `count` samples are: all together, or part by part where their steps differ in what they cost."""

    def tell(sample: int, step: int, seen: Seen, usage: Usage) -> None:
        if seen.leg is None:
            progress.stepped(sample * total + step)
        else:
            which = f"sample {sample + 1} of {count}" if count > 1 else ""
            progress.stepped(seen.leg.done, seen.leg.total, listed(which, seen.leg.name))

    return tell


def _rows(label: str, estimates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row of the table for each estimate."""
    names = [label] if len(estimates) == 1 else [f"{label}, one sample", f"{label}, mean of {estimates[1]['samples']}"]
    return [{"method": name, **estimate} for name, estimate in zip(names, estimates, strict=True)]


def _figure(experiment: Experiment, setting: Setting, methods: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Truth, the compared methods, and the main one last; nothing where there is no CT volume to show."""
    from pdframe.ct.windows import Window
    from pdframe.report import figure

    usable = [m for m in methods if m["rows"][-1]["residual"] is not None]
    if not usable or not runfolder.is_ct(setting.item.grid):
        return
    shown = [
        figure.Shown(m["rows"][-1]["method"], runfolder.load_volume(folder / m["folder"]), in_short(m["rows"][-1]))
        for m in usable
    ]
    figure.draw(
        folder / runfolder.FIGURE,
        setting.item.x,
        shown,
        setting.item.grid,
        window=Window(*experiment.report.window_hu),
        mask=setting.item.masks.get("body"),
        title=experiment.title,
    )


def _record(experiment: Experiment, digest: str, setting: Setting) -> dict[str, Any]:
    """Everything that is known before the first method starts."""
    operator = setting.case.problem.operator
    return {
        "title": experiment.title,
        "config_sha256": digest,
        "files": named_files(experiment),
        "main": experiment.solver.label,
        "item": setting.item.name,
        "grid": {name: list(getattr(setting.item.grid, name)) for name in ("shape", "spacing", "centre")},
        "origin": {k: v for k, v in setting.item.header.items() if isinstance(v, str | int | float)},
        "notes": list(setting.item.header.get("notes", ())),
        "seeds": {"solver": experiment.seed, "noise": setting.measured.record["seed"]},
        "measurement": dict(setting.measured.record),
        "adjoint_matched": operator.matched,
        "adjoint_mismatch": adjoint_mismatch(operator, rng=generator(0, "adjoint"), device=setting.item.x.device),
        "device": str(setting.item.x.device),
        **machine.provenance(),
    }


def _told(result: RunResult, progress: Progress) -> RunResult:
    progress.say(f"\n{result.table}\n\nrun folder {_short(result.folder)}")
    if (result.folder / runfolder.FIGURE).is_file():
        progress.say(f"picture    {_short(result.folder / runfolder.FIGURE)}")
    return result


def _folder(experiment: Experiment, digest: str, out_dir: str | os.PathLike[str] | None) -> Path:
    stem = experiment.source.stem if experiment.source else "experiment"
    return Path(out_dir) if out_dir is not None else Path("runs") / f"{stem}-{digest[:8]}"


def _short(path: Path) -> str:
    """Relative to where we are, if that is shorter."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
