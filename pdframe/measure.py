"""Measurements: simulated from the best truth that a dataset has, or read from a frozen file; always with papers."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pdframe.core.noise import Noise
from pdframe.core.operator import ForwardOperator
from pdframe.core.problem import Dataset, Item
from pdframe.core.seeds import generator
from pdframe.ct.geometry import Geometry
from pdframe.ct.scan import bin_intensities, geometry_of, oversampled, rebuilt

if TYPE_CHECKING:
    from pdframe.config import Measurement as Wanted


@dataclass(frozen=True)
class Measurement:
    """y, (1, channel, *data_shape), float32, and how it came about.

    record: JSON values. simulated_on ("exact", "native" or "grid"), grid_shape, grid_spacing and finer (than the
    reconstruction, so no inverse crime); detector_oversampling; noise, seed; y_sha256; item.
    geometry: of the scanner that measured, None where there is none.
    """

    y: Tensor
    record: Mapping[str, Any]
    geometry: Geometry | None = None


@functools.singledispatch
def native_item(dataset: Dataset, name: str) -> Item:
    """The item on the finest grid that the dataset has, in the millimetre frame of `dataset.load(name)`.

    Default: the item itself. A dataset that resamples registers its own.
    """
    return dataset.load(name)


@functools.singledispatch
def exact_data(dataset: Dataset, name: str, operator: ForwardOperator) -> Tensor | None:
    """A noiseless measurement of an item that is known in closed form, (1, channel, *data_shape); None if it is not."""
    return None


@functools.singledispatch
def frozen_measurement(dataset: Dataset, name: str) -> Path:
    """The file of a measurement that comes with the dataset."""
    raise ValueError(f"{type(dataset).__name__} has no frozen measurement {name!r}: give the path of a file instead")


def obtain(
    wanted: Wanted,
    dataset: Dataset,
    name: str,
    operator: ForwardOperator,
    noise: Noise,
    *,
    kept: Path | None = None,
    key: str = "",
) -> Measurement:
    """The frozen measurement that is wanted; else the one in the file `kept`, if there is one; else a new one.

    key: as in `simulate`.
    """
    if wanted.frozen:
        path = wanted.frozen if isinstance(wanted.frozen, Path) else frozen_measurement(dataset, wanted.frozen)
        return load(path, operator, noise, item=name)
    if kept is not None and kept.is_file():
        return load(kept, operator, noise)
    options = {"on": wanted.simulate_on, "oversampling": wanted.detector_oversampling}
    return simulate(dataset, name, operator, noise, seed=wanted.seed, key=key, **options)


def simulate(
    dataset: Dataset,
    name: str,
    operator: ForwardOperator,
    noise: Noise,
    *,
    seed: int = 0,
    key: str = "",
    on: Literal["native", "grid"] = "native",
    oversampling: int = 1,
) -> Measurement:
    """A noisy measurement of one item.

    on: "native" projects what the dataset knows best: a closed form, else its native grid; "grid" the volume that
    is to be found (an inverse crime, and the record says so). oversampling: detector samples per pixel and axis,
    whose intensities are averaged. The noise stream is keyed by `seed` and shared with nothing; with a `key` that
    solvers do not know, none can draw the same noise by the seed and take it off.
    """
    clean, origin = _clean(dataset, name, operator, on, oversampling)
    y = noise.sample(clean, rng=generator(seed, "noise", *([key] if key else []))).float()
    record = {
        "item": name,
        **origin,
        "detector_oversampling": oversampling,
        "noise": describe(noise),
        "seed": seed,
        "y_sha256": digest(y),
    }
    return Measurement(y, record, geometry_of(operator))


def _clean(
    dataset: Dataset, name: str, operator: ForwardOperator, on: str, oversampling: int
) -> tuple[Tensor, dict[str, Any]]:
    """The noiseless data and where it is from."""
    geometry = geometry_of(operator)
    if geometry is None and oversampling > 1:
        raise ValueError(
            f"detector_oversampling is for scanners: {type(operator).__name__} has no geometry; set it to 1"
        )
    fine = rebuilt(operator, operator.grid, oversampled(geometry, oversampling)) if oversampling > 1 else operator
    exact = exact_data(dataset, name, fine) if on == "native" else None
    if exact is not None:
        return bin_intensities(exact, oversampling), {"simulated_on": "exact", "finer": True}
    item = native_item(dataset, name) if on == "native" else dataset.load(name)
    finer = item.grid != operator.grid
    if finer:
        if geometry is None:
            raise ValueError(f'{type(operator).__name__} cannot be moved to the native grid: set simulate_on = "grid"')
        fine = rebuilt(fine, item.grid, geometry_of(fine))
    origin = {
        "simulated_on": "native" if finer else "grid",
        "grid_shape": list(item.grid.shape),
        "grid_spacing": list(item.grid.spacing),
        "finer": finer,
    }
    return bin_intensities(fine.forward(item.x), oversampling), origin


def describe(noise: Noise) -> dict[str, Any]:
    """The noise model as JSON: its class and its numbers."""
    numbers = dataclasses.asdict(noise) if dataclasses.is_dataclass(noise) else {}
    return {"model": type(noise).__name__, **numbers}


def digest(y: Tensor) -> str:
    """SHA-256 of the values and the shape."""
    header = f"{y.dtype} {tuple(y.shape)} ".encode()
    return hashlib.sha256(header + y.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def save(measurement: Measurement, path: Path) -> None:
    """One safetensors file, whole or not at all."""
    from safetensors.torch import save as to_bytes

    tensors = {"y": measurement.y.cpu().contiguous(), **_vectors(measurement.geometry)}
    data = to_bytes(tensors, metadata={"pdframe": json.dumps(dict(measurement.record))})
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    os.replace(part, path)


def load(path: Path, operator: ForwardOperator, noise: Noise, *, item: str = "") -> Measurement:
    """A measurement from a file, checked: its values against their hash, its scan, noise and, if given, the item that
    it was made from against what is expected.

    Raises FileNotFoundError, or ValueError with one line.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such measurement")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            record = json.loads((file.metadata() or {})["pdframe"])
        y = tensors.pop("y")
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: not a measurement of pdframe; freeze it again") from error
    if digest(y) != record["y_sha256"]:
        raise ValueError(f"{path}: the values do not match their hash; the file is damaged or was edited")
    if tuple(y.shape[2:]) != tuple(operator.data_shape):
        raise ValueError(f"{path}: holds data of shape {tuple(y.shape[2:])}, [operator] gives {operator.data_shape}")
    if not _same_rays(tensors, _vectors(geometry_of(operator))):
        raise ValueError(f"{path}: was measured with another geometry than [operator] describes")
    if record["noise"] != describe(noise):
        raise ValueError(f"{path}: was measured with noise {record['noise']}, [noise] describes {describe(noise)}")
    if item and record.get("item", item) != item:
        raise ValueError(
            f"{path}: was measured of {record['item']!r}, [dataset] gives {item!r}, which is no truth for it"
        )
    return Measurement(y, {**record, "file": path.name}, geometry_of(operator))


def _vectors(geometry: Geometry | None) -> dict[str, Tensor]:
    if geometry is None:
        return {}
    vectors = {name: torch.from_numpy(getattr(geometry, name).copy()) for name in ("source", "centre", "u", "v")}
    return {**vectors, "parallel": torch.tensor([geometry.parallel])}


def _same_rays(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """To a nanometre: sines differ in their last bit from one processor to the next, so a hash would not do."""
    return a.keys() == b.keys() and all(
        a[k].shape == b[k].shape and torch.allclose(a[k].double(), b[k].double(), rtol=0, atol=1e-6) for k in a
    )
