"""One experiment from settings to a folder of results: data, operator, measurement, every method, figure, record.

The folder is the state of the run. Each method ends with its own `method.json`; a run that was killed finds what is
there, goes on from the checkpoint of the method that was at work, and writes the same files as one that was not.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdframe import measure, runfolder
from pdframe.config import Experiment, dump, sha256
from pdframe.core.budget import Usage
from pdframe.core.checkpoint import fingerprint
from pdframe.core.noise import Noise, NoNoise
from pdframe.core.operator import ForwardOperator, adjoint_mismatch
from pdframe.core.problem import Case, Item, Metric, Problem
from pdframe.core.seeds import generator
from pdframe.core.solve import Solution, Status, solve
from pdframe.core.solver import Solver
from pdframe.mistakes import ConfigError
from pdframe.part import Part
from pdframe.report.progress import Progress, Silent, on_console, told
from pdframe.report.table import as_text, in_short

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
        return as_text(self.rows)

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
    ConfigError if the folder belongs to other settings.
    """
    progress = on_console() if console else Silent()
    digest = sha256(experiment)
    folder = _folder(experiment, digest, out_dir)
    if fresh and folder.is_dir():
        runfolder.clear(folder)
    earlier = runfolder.read_json(folder / runfolder.RECORD)
    if earlier is not None and earlier["config_sha256"] != digest:
        raise ConfigError(f"{folder} holds a run with other settings: choose another folder, or start afresh (--fresh)")
    if earlier is not None and earlier["status"] == "done":
        progress.say("this run was done before; --fresh runs it again")
        return _told(RunResult(folder, earlier), progress)
    return _told(_run(experiment, digest, folder, progress), progress)


def _run(experiment: Experiment, digest: str, folder: Path, progress: Progress) -> RunResult:
    progress.say(f"{experiment.title or folder.name}\nrun folder {_short(folder)}")
    runfolder.sweep(folder)
    runfolder.write(folder / runfolder.CONFIG, dump(experiment))
    setting = _setting(experiment, folder, progress)
    record = _record(experiment, digest, setting)
    runfolder.write_json(folder / runfolder.RECORD, {**record, "status": "running"})

    # The baselines first: they are quick, and tell early whether the data are what they should be.
    main, *compared = experiment.methods
    names = runfolder.folder_names(part.label for part in compared)
    try:
        methods = [
            _method(experiment, part, setting, folder / name, progress)
            for part, name in zip((*compared, main), (*names, ""), strict=True)
        ]
    except BaseException as error:
        stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        runfolder.write_json(folder / runfolder.RECORD, {**record, "status": stopped})
        progress.ended(f"{stopped}; the same command goes on from here")
        raise
    methods = [{**m, "folder": name} for m, name in zip(methods, (*names, ""), strict=True)]
    failed = [f"{m['label']}: {m['sentence']}" for m in methods if m["status"] in {s.name for s in FAILED}]
    record |= {"status": "failed" if failed else "done", "methods": methods}
    _figure(experiment, setting, methods, folder)
    runfolder.write_json(folder / runfolder.RECORD, record)
    if failed:
        raise RunFailed(f"{'; '.join(failed)} (the rest is in {_short(folder)})")
    return RunResult(folder, record)


def _setting(experiment: Experiment, folder: Path, progress: Progress) -> Setting:
    """Data, operator and measurement; the last from its file if there is one."""
    device = _device(experiment.device)
    dataset = experiment.dataset.build()
    name = experiment.item or dataset.names()[0]
    item = dataset.load(name)
    operator = experiment.operator.build(grid=item.grid)
    noise = experiment.noise.build() if experiment.noise else NoNoise()
    wanted, own = experiment.measurement, folder / runfolder.MEASUREMENT
    if wanted.frozen:
        path = wanted.frozen if isinstance(wanted.frozen, Path) else measure.frozen_measurement(dataset, wanted.frozen)
        measured = measure.load(path, operator, noise)
    elif own.is_file():
        measured = measure.load(own, operator, noise)
    else:
        progress.say(f"simulating the measurement of {name}")
        options = {"on": wanted.simulate_on, "oversampling": wanted.detector_oversampling}
        measured = measure.simulate(dataset, name, operator, noise, seed=wanted.seed, **options)
        measure.save(measured, own)
    masks = {mask: where.to(device) for mask, where in item.masks.items()}
    item = replace(item, x=item.x.to(device), masks=masks)
    case = Case(Problem(operator, measured.y.to(device), noise), item.x, name)
    context = {"grid": item.grid, "operator": operator}
    return Setting(case, item, measured, experiment.metrics.build() if experiment.metrics else None, context)


def _method(experiment: Experiment, part: Part, setting: Setting, folder: Path, progress: Progress) -> dict[str, Any]:
    """Every sample of one method, its files and its rows; from `method.json` if it is there."""
    y_sha256 = setting.measured.record["y_sha256"]
    found = runfolder.read_json(folder / runfolder.METHOD)
    if found is not None and found["y_sha256"] == y_sha256:
        progress.started(part.label, 1)
        progress.ended("done before")
        return found
    prior = part.prior.build(**setting.context) if part.prior else None
    solver = part.build(**setting.context, prior=prior)
    count = experiment.samples if part.prior else 1
    solutions = _solutions(experiment, part.label, solver, setting, folder, count, progress)
    rows = _rows(part.label, solutions, setting)
    worst = next((s.status for s in solutions if s.status in FAILED), solutions[0].status)
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
    _save(solutions, setting.item, folder)
    runfolder.write_json(folder / runfolder.METHOD, method)
    for pattern in ("checkpoint*.safetensors", "solution*.safetensors"):
        for path in folder.glob(pattern):
            path.unlink()
    short = ", ".join(in_short(rows[-1]).splitlines())
    progress.ended(f"{short or worst.value} ({told(rows[-1]['usage']['seconds'])})")
    return method


def _solutions(
    experiment: Experiment,
    label: str,
    solver: Solver,
    setting: Setting,
    folder: Path,
    count: int,
    progress: Progress,
) -> list[Solution]:
    """`count` independent solves, each kept in a file as soon as it is there."""
    y_sha256, solutions = setting.measured.record["y_sha256"], []
    folder.mkdir(parents=True, exist_ok=True)
    progress.started(label, count * solver.total_steps)
    for i in range(count):
        kept = folder / f"solution_{i}.safetensors"
        solution = runfolder.load_solution(kept, y_sha256)
        if solution is None:
            base = i * solver.total_steps
            solution = solve(
                setting.case.problem,
                solver,
                rng=generator(experiment.seed, "sample", i),
                budget=experiment.budget.build(),
                on_step=lambda k, state, usage, base=base: progress.stepped(base + k, state.stats),
                checkpoint=folder / f"checkpoint_{i}.safetensors",
            )
            if solution.status is Status.interrupted:
                raise KeyboardInterrupt
            runfolder.save_solution(kept, solution, y_sha256)
        solutions.append(replace(solution, x=solution.x.to(setting.item.x)))
    return solutions


def _rows(label: str, solutions: Sequence[Solution], setting: Setting) -> list[dict[str, Any]]:
    """The first sample at its own cost and, of several, their mean at the cost of all."""
    first = {"method": label, "samples": 1, **_judged(solutions[0].x, setting)}
    rows = [{**first, "usage": dataclasses.asdict(solutions[0].usage)}]
    if len(solutions) > 1:
        total = Usage()
        for solution in solutions:
            total = total.plus(solution.usage)
        mean = torch.stack([s.x for s in solutions]).mean(0)
        rows[0]["method"] = f"{label}, one sample"
        judged = {"samples": len(solutions), **_judged(mean, setting), "usage": dataclasses.asdict(total)}
        rows.append({"method": f"{label}, mean of {len(solutions)}", **judged})
    return rows


def _judged(x: Tensor, setting: Setting) -> dict[str, Any]:
    """Metrics on the whole volume and in every mask (`body_psnr_db`), and the data residual; nothing of a NaN."""
    if not bool(x.isfinite().all()):
        return {"metrics": {}, "residual": None}
    metrics: dict[str, float] = {}
    if setting.metric is not None:
        metrics |= setting.metric.measure(x, setting.item.x)
        for name, mask in setting.item.masks.items():
            if bool(mask.any()):
                inside = setting.metric.measure(x, setting.item.x, mask)
                metrics |= {f"{name}_{key}": value for key, value in inside.items()}
    problem = setting.case.problem
    return {"metrics": metrics, "residual": data_residual(problem.operator, x, problem.y, problem.noise)}


def data_residual(operator: ForwardOperator, x: Tensor, y: Tensor, noise: Noise) -> float:
    """|sqrt(W) (A x - y)| / sqrt(n), W the inverse variance of y: about 1 for the truth and a right model."""
    gap = (operator.forward(x) - y).double()
    return float((noise.inverse_variance(y).double() * gap**2).mean().sqrt())


def _save(solutions: Sequence[Solution], item: Item, folder: Path) -> None:
    """volume (the mean of several), deviation and each sample; trace.jsonl."""
    runfolder.write_trace(folder / runfolder.TRACE, solutions)
    samples = torch.stack([s.x for s in solutions])
    if not bool(samples.isfinite().all()):
        return
    if len(solutions) > 1:
        for i, sample in enumerate(samples):
            runfolder.save_volume(folder, f"sample_{i}", sample, item)
        runfolder.save_volume(folder, "deviation", samples.std(0), item, difference=True)
    runfolder.save_volume(folder, "volume", samples.mean(0), item)


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
    from pdframe import machine, registry

    operator = setting.case.problem.operator
    return {
        "title": experiment.title,
        "config_sha256": digest,
        "main": experiment.solver.label,
        "item": setting.item.name,
        "grid": {"shape": list(setting.item.grid.shape), "spacing": list(setting.item.grid.spacing)},
        "origin": {k: v for k, v in setting.item.header.items() if isinstance(v, str | int | float)},
        "seeds": {"solver": experiment.seed, "noise": setting.measured.record["seed"]},
        "measurement": dict(setting.measured.record),
        "adjoint_matched": operator.matched,
        "adjoint_mismatch": adjoint_mismatch(operator, rng=generator(0, "adjoint"), device=setting.item.x.device),
        "device": str(setting.item.x.device),
        "machine": machine.facts(),
        "plugins": {p.name: f"{p.distribution} {p.version}" for p in registry.plugins()},
    }


def _told(result: RunResult, progress: Progress) -> RunResult:
    progress.say(f"\n{result.table}\n\nrun folder {_short(result.folder)}")
    if (result.folder / runfolder.FIGURE).is_file():
        progress.say(f"picture    {_short(result.folder / runfolder.FIGURE)}")
    return result


def _folder(experiment: Experiment, digest: str, out_dir: str | os.PathLike[str] | None) -> Path:
    stem = experiment.source.stem if experiment.source else "experiment"
    return Path(out_dir) if out_dir is not None else Path("runs") / f"{stem}-{digest[:8]}"


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _short(path: Path) -> str:
    """Relative to where we are, if that is shorter."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
