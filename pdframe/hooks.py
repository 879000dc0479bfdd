"""What a plugin author needs: `hookimpl`, `Entry`, `Config`, `NameOrFile`, `BackendMissing`; nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pluggy
from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator

GROUP = "pdframe"
Kind = Literal["operator", "prior", "solver", "dataset", "metric", "noise", "task", "executor"]
KINDS: tuple[str, ...] = get_args(Kind)

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class BackendMissing(ImportError):
    """A library or device that a plugin needs is not on this machine; the message says what to install."""


@dataclass(frozen=True)
class Entry:
    """One thing that a plugin offers. Registering it imports nothing: `target` is loaded on first use.

    kind: which contract it fulfils; a "task" is what `pdframe train` trains (a `pdframe.train.Trainable`), an
        "executor" carries the jobs of `pdframe bench` to where they run (a `pdframe.bench.executor.Executor`).
    name: what a TOML writes.
    target: "module:attribute" of its `Config` subclass.
    summary: one line for `pdframe plugins`.
    example: keyword arguments of a small, fast instance for the conformance checks.
    requires: import names that must be present; extra: the pip extra that brings them.
    cite: BibTeX of what a text that uses this should cite, one entry or several.
    """

    kind: Kind
    name: str
    target: str
    summary: str
    example: tuple[tuple[str, object], ...] = ()
    requires: tuple[str, ...] = ()
    extra: str = ""
    cite: str = ""


class Written(str):
    """Text that somebody wrote in a file or on the command line; relative paths in it start from `folder`."""

    folder: Path

    def __new__(cls, text: str, folder: Path | str = "") -> Written:
        written = super().__new__(cls, text)
        written.folder = Path(folder)
        return written


def _path_if_it_looks_like_one(value: Any) -> Any:
    return Path(value) if isinstance(value, str) and any(mark in value for mark in "./\\") else value


#: A setting that is a name or a file. A name has neither dot nor slash; anything else is a path.
NameOrFile = Annotated[str | Path, BeforeValidator(_path_if_it_looks_like_one)]


class Config(BaseModel):
    """Settings of one plugin as a TOML gives them: frozen, unknown keys refused.

    A subclass defines `build`. Its parameters say what else it needs, by name, from what the run already has:
    `prior`, `operator`, `grid`. They are supplied by `pdframe.build`.

    A setting that is a file has the type `pathlib.Path`: written in a TOML, it is relative to that TOML's folder.
    `NameOrFile` is for one that may be a name as well.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @field_validator("*", mode="wrap")
    @classmethod
    def _as_written(cls, raw: Any, validate: Callable[[Any], Any]) -> Any:
        value = validate(raw)
        # pydantic would read "3" and true as the number they resemble; in a TOML that is a mistake.
        if isinstance(value, int | float):
            if isinstance(raw, str):
                raise ValueError(f"should be {value!r} without quotes")
            if isinstance(raw, bool) and not isinstance(value, bool):
                raise ValueError(f"should be a number, got {str(raw).lower()}")
        return _located(value, raw)


def _located(value: Any, raw: Any) -> Any:
    """Every path inside `value`, made absolute by the folder that `raw` was written in."""
    if isinstance(value, Path):
        value = value.expanduser()
        return Path(os.path.abspath(raw.folder / value)) if isinstance(raw, Written) else value
    if isinstance(value, list | tuple) and isinstance(raw, list | tuple) and len(value) == len(raw):
        return type(value)(_located(v, r) for v, r in zip(value, raw, strict=True))
    if isinstance(value, dict) and isinstance(raw, dict) and value.keys() == raw.keys():
        return {key: _located(v, raw[key]) for key, v in value.items()}
    return value


class Hooks:
    """The hook specifications of group "pdframe"."""

    @hookspec
    def pdframe_register(self) -> Iterable[Entry]:
        """The entries that this plugin offers."""
