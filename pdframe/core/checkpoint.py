"""A solve on disk: one safetensors file with the state, the random stream and the trace, to go on from bit for bit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdframe.core.budget import Usage


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Everything that the rest of a solve depends on, after `step` steps."""

    step: int
    state: Any
    rng_state: Tensor
    usage: Usage
    trace: tuple[dict[str, float], ...]


def save(path: Path, snapshot: Snapshot, fingerprint: str) -> None:
    """Writes the snapshot whole or not at all."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {"rng": snapshot.rng_state}
    record = {
        "fingerprint": fingerprint,
        "step": snapshot.step,
        "usage": dataclasses.asdict(snapshot.usage),
        "trace": snapshot.trace,
        "state": _pack(snapshot.state, "state", tensors),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + f".{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata={"pdframe_solve": json.dumps(record)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path, fingerprint: str, device: torch.device) -> Snapshot:
    """The snapshot in a file; ValueError if it is no checkpoint, or one of another problem or solver."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            record = json.loads((file.metadata() or {})["pdframe_solve"])
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is not the checkpoint of a solve: give another path or delete it") from error
    if record["fingerprint"] != fingerprint:
        raise ValueError(
            f"{path} belongs to another measurement, operator, solver setting or seed: give another path or delete it"
        )
    state = _unpack(record["state"], tensors, device)
    return Snapshot(record["step"], state, tensors["rng"], Usage(**record["usage"]), tuple(record["trace"]))


def fingerprint(*things: object) -> str:
    """SHA-256 over tensors, dataclasses, modules, containers and settings: equal for equal content in any process. Of
    numbers in a numpy array the first nine decimals count, as parts of the largest."""
    digest = hashlib.sha256()
    for thing in things:
        _feed(digest, thing)
    return digest.hexdigest()


def _feed(digest: Any, thing: object) -> None:
    digest.update(f"\n{type(thing).__module__}.{type(thing).__qualname__}:".encode())
    if isinstance(thing, Tensor):
        digest.update(f"{thing.dtype} {tuple(thing.shape)} ".encode())
        digest.update(thing.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(thing, np.ndarray) and not thing.dtype.hasobject:  # its repr leaves most of a long one out
        digest.update(f"{thing.dtype} {thing.shape} ".encode())
        digest.update(_told(thing))
    elif isinstance(thing, torch.nn.Module):
        _feed(digest, dict(thing.state_dict()))
    elif dataclasses.is_dataclass(thing):
        _feed(digest, {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing)})
    elif isinstance(thing, Mapping):
        for key, value in thing.items():
            digest.update(f"{key}=".encode())
            _feed(digest, value)
    elif isinstance(thing, list | tuple):
        for value in thing:
            _feed(digest, value)
    elif " at 0x" not in repr(thing):  # an address is different in every process
        digest.update(repr(thing).encode())


def _told(array: np.ndarray) -> bytes:
    """Its values; of floats nine decimals, since sines differ in the last bit from one processor to the next."""
    if array.dtype.kind != "f":
        return array.tobytes()
    scale = float(np.abs(array).max(initial=0.0)) or 1.0
    return f"{scale:.7e} ".encode() + ((array / scale).round(9) + 0.0).tobytes()


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON that mirrors a state; its tensors go into `tensors`, each under its path."""
    if isinstance(value, Tensor):
        # A copy: two fields of a state may share memory, which the file format refuses.
        tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": path, "on_cpu": value.device.type == "cpu"}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if isinstance(value, list | tuple):
        parts = [_pack(v, f"{path}.{k}", tensors) for k, v in enumerate(value)]
        return {"list" if isinstance(value, list) else "tuple": parts}
    if isinstance(value, Mapping):
        return {"dict": {k: _pack(v, f"{path}.{k}", tensors) for k, v in value.items()}}
    if dataclasses.is_dataclass(value) and "<locals>" not in type(value).__qualname__:
        of = {f.name: _pack(getattr(value, f.name), f"{path}.{f.name}", tensors) for f in dataclasses.fields(value)}
        return {"class": [type(value).__module__, type(value).__qualname__], "fields": of}
    raise TypeError(
        f"a solver state holds tensors, numbers, strings, lists, dicts and module-level dataclasses of these: "
        f"{path} is a {type(value).__qualname__}"
    )


def _unpack(record: dict[str, Any], tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    if "tensor" in record:
        tensor = tensors[record["tensor"]]
        return tensor if record["on_cpu"] else tensor.to(device)
    if "value" in record:
        return record["value"]
    if "list" in record:
        return [_unpack(v, tensors, device) for v in record["list"]]
    if "tuple" in record:
        return tuple(_unpack(v, tensors, device) for v in record["tuple"])
    if "dict" in record:
        return {k: _unpack(v, tensors, device) for k, v in record["dict"].items()}
    return _state_class(*record["class"])(**{k: _unpack(v, tensors, device) for k, v in record["fields"].items()})


def _state_class(module: str, qualname: str) -> type:
    """A dataclass that is already imported: reading a file never imports or runs what the file names."""
    found: Any = sys.modules.get(module)
    for name in qualname.split("."):
        found = getattr(found, name, None)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"the checkpoint's state is a {module}.{qualname}, which this solver does not use")
    return found
