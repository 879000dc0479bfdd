"""The files of a run: each written whole or not at all, so that a killed run leaves no torn one behind."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdframe.core.budget import Usage
from pdframe.core.grid import Grid
from pdframe.core.problem import Item
from pdframe.core.solve import Solution, Status

RECORD, CONFIG, MEASUREMENT, FIGURE = "record.json", "config.toml", "measurement.safetensors", "figure.png"
METHOD, TRACE, TRUTH = "method.json", "trace.jsonl", "truth"


def write(path: Path, data: str | bytes) -> None:
    """The file appears whole under its name, or does not appear."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data.encode() if isinstance(data, str) else data)
    os.replace(part, path)


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


def sweep(folder: Path) -> None:
    """Removes files that a killed process had not finished."""
    for pattern in (".*.part", "*.partial"):
        for path in folder.rglob(pattern):
            path.unlink()


def clear(folder: Path) -> None:
    """Removes what runs write in a folder, and nothing else."""
    made = (RECORD, CONFIG, MEASUREMENT, FIGURE, METHOD, TRACE, "checkpoint*.safetensors", "solution*.safetensors")
    volumes = tuple(f"{n}{s}" for n in ("volume", TRUTH, "deviation", "sample_*") for s in (".nii.gz", ".safetensors"))
    for inside in (folder, *(p for p in folder.iterdir() if (p / METHOD).is_file() or (p / TRACE).is_file())):
        for pattern in (*made, *volumes):
            for path in inside.glob(pattern):
                path.unlink()
