"""The files of a run: each written whole or not at all, so that a killed run leaves no torn one behind.

`record.json` is the first of them. It tells a folder of ours from one with somebody's own files, which is left alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdframe.core.budget import Usage
from pdframe.core.grid import Grid
from pdframe.core.problem import Item
from pdframe.core.solve import Solution, Status
from pdframe.lock import only_one
from pdframe.mistakes import ConfigError

RECORD, CONFIG, MEASUREMENT, FIGURE = "record.json", "config.toml", "measurement.safetensors", "figure.png"
BENCH = "bench.json"
METHOD, TRACE, TRUTH, STATE = "method.json", "trace.jsonl", "truth", "state.safetensors"
#: What the record of each command holds, and that of no other; a bench has a file of its own for it.
MARKS = {"run": "config_sha256", "sample": "prior_sha256", "train": "task"}
#: Status in the record of a run that is being started afresh: what lies beside it counts for nothing.
CLEARING = "clearing"

_FIXED = "|".join(map(re.escape, (RECORD, CONFIG, MEASUREMENT, FIGURE, METHOD, TRACE)))
_VOLUMES = rf"(volume|{TRUTH}|deviation|sample_\d+)\.(nii\.gz|safetensors)"
_OWN = rf"{_FIXED}|{_VOLUMES}|(checkpoint|solution)_\d+\.safetensors"
_TEMPORARY = rf"\.({_OWN})\.\d+\.part|checkpoint_\d+\.safetensors\.\d+\.partial"


def write(path: Path, data: str | bytes) -> None:
    """The file appears whole under its name, or does not appear."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data.encode() if isinstance(data, str) else data)
    os.replace(part, path)


def put_in_place(new: Path, target: Path) -> None:
    """A whole folder appears under its name; one that is there is set aside first and then removed."""
    restore(target)
    old = _set_aside(target)
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)


def restore(target: Path) -> None:
    """Brings back a folder whose replacement was killed half-way, and removes what one left behind."""
    old = _set_aside(target)
    if old.exists() and not target.exists():
        os.replace(old, target)
    shutil.rmtree(old, ignore_errors=True)


def _set_aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write(path, json.dumps(value, indent=2) + "\n")


def write_trace(path: Path, solutions: Iterable[Solution]) -> None:
    """One line for each step; `sample` counts the posterior samples."""
    rows = [{"sample": i, **row} for i, solution in enumerate(solutions) for row in solution.trace]
    write(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_json(path: Path) -> dict[str, Any] | None:
    """None if there is no such file."""
    return json.loads(path.read_text()) if path.is_file() else None


def save_solution(path: Path, solution: Solution, measured: str) -> None:
    """A solution to the bit, for a run that is to go on; `measured` is the hash of the data that it was found from."""
    from safetensors.torch import save

    told = {"status": solution.status.name, "usage": asdict(solution.usage), "trace": solution.trace}
    metadata = {"pdframe_solution": json.dumps(told), "y_sha256": measured}
    write(path, save({"x": solution.x.cpu().contiguous()}, metadata=metadata))


def load_solution(path: Path, measured: str) -> Solution | None:
    """None if there is none, or if it was found from other data."""
    from safetensors import safe_open

    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        if metadata["y_sha256"] != measured:
            return None
        told = json.loads(metadata["pdframe_solution"])
        x = file.get_tensor("x")
    return Solution(x, Status[told["status"]], Usage(**told["usage"]), tuple(told["trace"]))


def is_ct(grid: Grid) -> bool:
    """Whether a volume can be told in Hounsfield units, as NIfTI files and pictures here are."""
    return len(grid.shape) == 3 and grid.unit == "1/mm"


def save_volume(folder: Path, name: str, x: Tensor, like: Item, *, difference: bool = False) -> None:
    """NIfTI in HU for a CT volume, in the orientation and place of `like`; a safetensors file for anything else."""
    from safetensors.torch import save

    from pdframe.ct.nifti import write_nifti

    folder.mkdir(parents=True, exist_ok=True)
    if is_ct(like.grid):
        dtype = "float32" if difference else "int16"
        write_nifti(folder / f"{name}.nii.gz", x, like.grid, like.header, dtype=dtype, difference=difference)
    else:
        write(folder / f"{name}.safetensors", save({"x": x.cpu().contiguous()}, metadata={"unit": like.grid.unit}))


def save_solutions(folder: Path, solutions: Sequence[Solution], like: Item) -> None:
    """trace.jsonl; volume (the mean of several), deviation and each sample, unless one of them is not finite."""
    write_trace(folder / TRACE, solutions)
    samples = torch.stack([s.x for s in solutions])
    if not bool(samples.isfinite().all()):
        return
    if len(solutions) > 1:
        for i, sample in enumerate(samples):
            save_volume(folder, f"sample_{i}", sample, like)
        save_volume(folder, "deviation", samples.std(0), like, difference=True)
    save_volume(folder, "volume", samples.mean(0), like)


def load_volume(folder: Path, name: str = "volume") -> Tensor:
    """The x of a volume that `save_volume` wrote; whole HU where it was written in HU."""
    from safetensors.torch import load

    from pdframe.ct.nifti import read_nifti

    nifti = folder / f"{name}.nii.gz"
    return read_nifti(nifti).x if nifti.is_file() else load((folder / f"{name}.safetensors").read_bytes())["x"]


def folder_names(labels: Iterable[str]) -> list[str]:
    """A different folder name for each label: its letters, digits and dashes."""
    names: list[str] = []
    for label in labels:
        plain = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") or "method"
        count = sum(name == plain or re.fullmatch(rf"{plain}-\d+", name) is not None for name in ["samples", *names])
        names.append(f"{plain}-{count + 1}" if count else plain)
    return names


@contextmanager
def held(folder: Path, command: str) -> Iterator[None]:
    """Holds a folder for `pdframe COMMAND` until the block ends; one that the block made and left empty is removed.

    ConfigError if the folder holds files and no record of that command, FolderBusy if another process is at work in it.
    """
    _refuse_foreign(folder, command)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with only_one(folder):
            yield
    finally:
        with suppress(OSError):  # something was written
            for path in made:
                path.rmdir()


def _refuse_foreign(folder: Path, command: str) -> None:
    """ConfigError for a folder that `pdframe COMMAND` did not begin: it might write over somebody's own files."""
    if not folder.is_dir() or _begun(folder, command):
        return
    # A process that was killed before its record was written leaves its lock, or that record half written; and nothing
    # of ours has the name of anybody else's hidden file.
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise ConfigError(
            f"{folder}: expected an empty folder, or one that `pdframe {command}` began, but it holds {shown}: "
            "choose another folder (--out)"
        )


def _begun(folder: Path, command: str) -> bool:
    """Whether the record in a folder is that of `pdframe COMMAND`."""
    try:
        record = read_json(folder / (BENCH if command == "bench" else RECORD))
    except ValueError:
        return False
    if command == "bench":
        return isinstance(record, dict) and "bench_sha256" in record
    machine = record.get("machine") if isinstance(record, dict) else None
    if isinstance(machine, dict) and "pdframe" in machine and MARKS[command] in record:
        return True
    return command == "train" and _is_state(folder / STATE)


def _is_state(path: Path) -> bool:
    """Whether it is the state of a training: those that began before trainings had a record are known by it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {"step", "seconds"} <= (file.metadata() or {}).keys()
    except (OSError, SafetensorError):
        return False


def begin(folder: Path, record: Mapping[str, Any], *, fresh: bool) -> None:
    """The record of a run that starts or goes on; its `folders` are those of the compared methods.

    Files that a killed process had not finished are removed. fresh: so is everything else that an earlier run wrote.
    """
    if fresh:
        earlier = read_json(folder / RECORD) or {}
        folders = sorted({*record["folders"], *earlier.get("folders", ())})
        write_json(folder / RECORD, {**record, "status": CLEARING, "folders": folders})
        _remove(folder, folders, rf"(?!{re.escape(RECORD)}$)({_OWN})")
    _remove(folder, record["folders"], _TEMPORARY)
    write_json(folder / RECORD, {**record, "status": "running"})


def _remove(folder: Path, names: Iterable[str], pattern: str) -> None:
    """Removes the files of these names in a run folder and in the folders of its methods, and nothing else."""
    for inside in (folder, *(folder / name for name in names)):
        for path in inside.iterdir() if inside.is_dir() else ():
            if re.fullmatch(pattern, path.name) and path.is_file():
                path.unlink()
