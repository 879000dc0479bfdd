"""Tables laid over each other: a TOML, what it `extends`, and what `--set` says on top."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli

from pdframe.hooks import Written
from pdframe.mistakes import ConfigError


@dataclass(frozen=True)
class Layer:
    """One table and where it was written."""

    source: str
    table: dict[str, Any]


def read(path: Path, above: tuple[Path, ...] = ()) -> list[Layer]:
    """The layers of a TOML file: what it extends first, itself last."""
    path = Path(os.path.abspath(path.expanduser()))
    if path in above:
        chain = " -> ".join(p.name for p in (*above[above.index(path) :], path))
        raise ConfigError(f"extends runs in a circle: {chain}", source=str(path))
    table = written(_parse(path, above), path.parent)
    parents = table.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not (isinstance(parents, list) and all(isinstance(p, str) for p in parents)):
        raise ConfigError("extends: should be a file name or a list of them", source=str(path))
    below = [layer for parent in parents for layer in read(path.parent / parent, (*above, path))]
    return [*below, Layer(str(path), table)]


def variant(stack: Sequence[Layer], name: str) -> Layer:
    """The table [name] of the merged layers as a layer of its own, to be laid over them."""
    table = merged(stack).get(name)
    source = blame(stack, (name,))
    if not isinstance(table, dict):
        raise ConfigError(f"there is no [{name}] table", source=source)
    return Layer(f"{source} [{name}]", table)


def nest(key: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} for "a.b"."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def override(text: str, folder: str | os.PathLike[str] = ".") -> Layer:
    """The layer of one `--set a.b=value`. The value is read as TOML, a bare word as text, a path from `folder`."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set takes key=value, got {text!r}")
    try:
        nest = tomli.loads(f"{key.strip()} = 0")
    except tomli.TOMLDecodeError:
        raise ConfigError(f"--set {text}: {key.strip()!r} is not a key such as solver.steps") from None
    keys = []
    while isinstance(nest, dict):
        ((name, nest),) = nest.items()
        keys.append(name)
    table: Any = written(_value(value.strip()), Path(os.path.abspath(folder)))
    for name in reversed(keys):
        table = {name: table}
    return Layer(f"--set {text}", table)


def merged(stack: Sequence[Layer]) -> dict[str, Any]:
    """All layers as one table, later ones above earlier ones."""
    result: dict[str, Any] = {}
    for layer in stack:
        try:
            result = over(result, layer.table)
        except IndexError as error:
            raise ConfigError(str(error), source=layer.source) from None
    return result


def blame(stack: Sequence[Layer], place: Sequence[str | int]) -> str:
    """Where the value at `place` was written: the last layer that holds it, or as much of it as any does."""
    for length in range(len(place), 0, -1):
        for layer in reversed(stack):
            if _holds(layer.table, place[:length]):
                return layer.source
    files = [layer.source for layer in stack if not layer.source.startswith("--set ")]
    return files[-1] if files else ""


def written(value: Any, folder: Path) -> Any:
    """The value with each text in it marked with the folder that its paths are relative to."""
    if isinstance(value, dict):
        return {key: written(v, folder) for key, v in value.items()}
    if isinstance(value, list):
        return [written(v, folder) for v in value]
    return Written(value, folder) if isinstance(value, str) else value


def _parse(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    wanted_by = f" (extended by {above[-1].name})" if above else ""
    try:
        return tomli.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read{wanted_by}: {error.strerror}", source=str(path)) from None
    except (tomli.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"is not a TOML file{wanted_by}: {error}", source=str(path)) from None


def _value(text: str) -> Any:
    try:
        table = tomli.loads(f"value = {text}")
    except tomli.TOMLDecodeError:
        return text
    return table["value"] if table.keys() == {"value"} else text


def over(below: Any, above: Any) -> Any:
    """Deep merge. A table that names another plugin replaces the table below: the old settings are not for it."""
    if isinstance(below, list) and isinstance(above, dict) and above and all(key.isdigit() for key in above):
        return _into_list(below, above)
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    if "name" in above and "name" in below and above["name"] != below["name"]:
        return above
    return {**below, **{key: over(below.get(key), value) for key, value in above.items()}}


def _into_list(below: list[Any], above: Mapping[str, Any]) -> list[Any]:
    result = list(below)
    for key, value in above.items():
        if int(key) >= len(result):
            raise IndexError(f"there is no element {key}: the list has {len(result)}, counted from 0")
        result[int(key)] = over(result[int(key)], value)
    return result


def _holds(table: Any, place: Sequence[str | int]) -> bool:
    for key in place:
        if isinstance(table, list) and isinstance(key, int) and key < len(table):
            table = table[key]
        elif isinstance(table, dict) and str(key) in table:
            table = table[str(key)]
        else:
            return False
    return True
