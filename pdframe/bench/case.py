"""A case, frozen once: the measurement that every method gets, and apart from it the truth that none gets."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from pdframe import machine, measure, runfolder
from pdframe.bench.config import Base, Bench, CasePlan, Split, bench_sha256
from pdframe.bench.rows import whole
from pdframe.core.grid import Grid
from pdframe.core.noise import Noise, NoNoise
from pdframe.core.problem import Item, Problem, quick_form
from pdframe.judge import Judge
from pdframe.mistakes import ConfigError, as_mistake

CASES, TRUTH, CASE = "cases", "truth", "case.json"


@dataclass(frozen=True)
class FrozenCase:
    """A case as it lies in the bench folder. `y` goes to workers; `item`, the truth, stays with the judge."""

    plan: CasePlan
    base: Base
    y: Tensor
    y_sha256: str
    item: Item

    def judge(self, device: str) -> Judge:
        """Who knows the truth."""
        where = machine.chosen(device)
        operator = self.base.operator.build(grid=self.item.grid)
        masks = {name: mask.to(where) for name, mask in self.item.masks.items()}
        item = replace(self.item, x=self.item.x.to(where), masks=masks)
        return Judge(Problem(operator, self.y.to(where), _noise(self.base)), item, self.base.metrics.build())


def follower(judge: Judge) -> Judge:
    """The judge with the cheap form of its metric, for curves."""
    return replace(judge, metric=judge.metric and quick_form(judge.metric))


def freeze(bench: Bench, plan: CasePlan, folder: Path) -> None:
    """Writes measurement, truth and case.json below the bench folder; a case that is there is left as it is.

    ConfigError if the folder holds the case of another bench.
    """
    home = folder / CASES / plan.id
    found = runfolder.read_json(home / CASE)
    if found is not None:
        if found["bench_sha256"] != bench_sha256(bench):
            raise ConfigError(f"{home}: was frozen for another bench; choose another folder (--out)")
        return
    scan = next(s for s in bench.scan if s.label == plan.scan)
    base = bench.problem_of(plan.problem)
    with as_mistake(f"scan {plan.scan!r}"):
        dataset = scan.dataset.build()
        name = scan.item or dataset.names()[0]
        item = dataset.load(name)
    data = _packed(item)
    truth = hashlib.sha256(data).hexdigest()
    _refuse_both_splits(truth, plan, folder)
    operator, noise = base.operator.build(grid=item.grid), _noise(base)
    wanted = base.measurement.model_copy(update={"seed": plan.seed})
    kept = home / runfolder.MEASUREMENT
    # The noise is keyed by the truth: two scans share none, and a worker, which knows the seed, cannot draw it again.
    measured = measure.obtain(wanted, dataset, name, operator, noise, kept=kept, key=truth)
    if not kept.is_file():
        measure.save(measured, kept)
    _write_truth(data, truth, plan, folder)
    record = {
        **asdict(plan),
        "bench_sha256": bench_sha256(bench),
        "y_sha256": measured.record["y_sha256"],
        "truth_sha256": truth,
        "item": item.name,
        "grid": asdict(item.grid),
        "header": dict(item.header),
        "masks": list(item.masks),
        "measurement": dict(measured.record),
    }
    runfolder.write(home / CASE, json.dumps(record, indent=2, default=_plain) + "\n")


def missing_scans(bench: Bench, folder: Path) -> list[str]:
    """A line for each scan that is not here, of those with cases that are still to be frozen."""
    wanted = {case.scan for split in get_args(Split) for case in bench.cases(split) if not is_frozen(case, folder)}
    lines = []
    for scan in bench.scan:
        if scan.label in wanted:
            try:
                names = scan.dataset.build().names()
                wrong = "" if names and (not scan.item or scan.item in names) else f"it has no item {scan.item!r}"
            except Exception as error:  # whatever a foreign dataset raises; freezing will raise it again
                wrong = " ".join(str(error).split())
            if wrong:
                lines.append(f"note: scan {scan.label!r} cannot be frozen here: {wrong}")
    return lines


def open_case(bench: Bench, plan: CasePlan, folder: Path) -> FrozenCase:
    """A frozen case, read back from the bench folder; ValueError if its files are not those that were frozen."""
    record = frozen(plan, folder)
    base = bench.problem_of(plan.problem)
    grid = Grid(**record["grid"])
    path = folder / CASES / plan.id / runfolder.MEASUREMENT
    y = measure.load(path, base.operator.build(grid=grid), _noise(base)).y
    item = _read_truth(record, grid, folder)
    if measure.digest(y) != record["y_sha256"]:
        raise ValueError(f"{path}: is not the measurement that was frozen; freeze the bench in a new folder")
    return FrozenCase(plan, base, y, record["y_sha256"], item)


def is_frozen(plan: CasePlan, folder: Path) -> bool:
    """Whether the bench folder holds the case, whole."""
    return (folder / CASES / plan.id / CASE).is_file()


def frozen(plan: CasePlan, folder: Path) -> dict[str, Any]:
    """case.json of a frozen case."""
    return json.loads((folder / CASES / plan.id / CASE).read_text())


def _noise(base: Base) -> Noise:
    return base.noise.build() if base.noise else NoNoise()


def _packed(item: Item) -> bytes:
    """The truth and its masks; the same bytes for the same volume, wherever its file lies."""
    from safetensors.torch import save

    tensors = {"x": item.x.cpu().contiguous()}
    tensors |= {f"mask.{name}": mask.cpu().contiguous() for name, mask in item.masks.items()}
    return save(tensors, metadata={"unit": item.grid.unit})


def _write_truth(data: bytes, sha256: str, plan: CasePlan, folder: Path) -> None:
    """truth/<case>.safetensors, sharing its bytes on disk with the other cases of the scan."""
    path = folder / TRUTH / f"{plan.id}.safetensors"
    for known in whole(folder / CASES, f"*/{CASE}"):
        record = json.loads(known.read_text())
        twin = folder / TRUTH / f"{record['id']}.safetensors"
        if record["truth_sha256"] == sha256 and twin.is_file() and not path.exists():
            try:
                os.link(twin, path)
                return
            except OSError:  # a file system without links
                break
    runfolder.write(path, data)


def _refuse_both_splits(truth_sha256: str, plan: CasePlan, folder: Path) -> None:
    """ConfigError if the volume was frozen for the other split too, under whatever name."""
    for known in whole(folder / CASES, f"*/{CASE}"):
        other = json.loads(known.read_text())
        if other["truth_sha256"] == truth_sha256 and other["split"] != plan.split:
            raise ConfigError(
                f"scan {plan.scan!r} ({plan.split}) is the same volume as {other['scan']!r} ({other['split']}): "
                "tune on another scan"
            )


def _read_truth(record: dict[str, Any], grid: Grid, folder: Path) -> Item:
    from safetensors.torch import load

    path = folder / TRUTH / f"{record['id']}.safetensors"
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != record["truth_sha256"]:
        raise ValueError(f"{path}: is not the truth that was frozen; freeze the bench in a new folder")
    tensors = load(data)
    masks = {name: tensors[f"mask.{name}"] for name in record["masks"]}
    return Item(record["item"], tensors["x"], grid, record["header"], masks)


def _plain(value: Any) -> Any:
    """Arrays and paths in an item's header as JSON."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
