"""What a plugin author needs: `hookimpl`, `Entry` and `Config`. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import pluggy
from pydantic import BaseModel, ConfigDict

GROUP = "pdframe"
Kind = Literal["operator", "prior", "solver", "dataset", "metric", "noise"]
KINDS: tuple[str, ...] = get_args(Kind)

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@dataclass(frozen=True)
class Entry:
    """One thing that a plugin offers. Registering it imports nothing: `target` is loaded on first use.

    kind: which contract it fulfils.
    name: what a TOML writes.
    target: "module:attribute" of its `Config` subclass.
    summary: one line for `pdframe plugins`.
    example: keyword arguments of a small, fast instance for the conformance checks.
    requires: import names that must be present; extra: the pip extra that brings them.
    """

    kind: Kind
    name: str
    target: str
    summary: str
    example: tuple[tuple[str, object], ...] = ()
    requires: tuple[str, ...] = ()
    extra: str = ""


class Config(BaseModel):
    """Settings of one plugin as a TOML gives them: frozen, unknown keys refused.

    A subclass defines `build`. Its parameters say what else it needs, by name, from what the run already has:
    `prior`, `operator`, `grid`. They are supplied by `pdframe.build`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Hooks:
    """The hook specifications of group "pdframe"."""

    @hookspec
    def pdframe_register(self) -> Iterable[Entry]:
        """The entries that this plugin offers."""
