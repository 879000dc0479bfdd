"""What to cite: the BibTeX of every plugin that some settings name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pdframe import registry
from pdframe.hooks import Entry

#: Keys of a TOML whose table names a plugin of another kind than the key says.
_KINDS = {"metrics": "metric", "solver": "solver", "method": "solver", "compare": "solver", "start": "solver"}
_START = re.compile(r"@(\w+)\s*\{\s*([^,\s}]+)\s*,")


def references(bibtex: str) -> dict[str, str]:
    """Key -> entry, in the order of the text. What lies between entries is dropped. ValueError if one does not end."""
    found: dict[str, str] = {}
    for start in _START.finditer(bibtex):
        depth = 0
        for end, letter in enumerate(bibtex[start.start() :], start.start()):
            depth += (letter == "{") - (letter == "}")
            if letter == "}" and depth == 0:
                found.setdefault(start[2], bibtex[start.start() : end + 1])
                break
        else:
            raise ValueError(f"the BibTeX entry {start[2]!r} does not end: its braces are not balanced")
    return found


def used(settings: Mapping[str, Any]) -> list[Entry]:
    """The installed entries that the tables of an experiment or of a bench name, each once; others are passed over."""
    installed = {(entry.kind, entry.name): entry for entry in registry.entries()}
    return [installed[named] for named in dict.fromkeys(_named(settings, "")) if named in installed]


def cited(entries: Iterable[Entry]) -> dict[str, str]:
    """Key -> BibTeX of all that these entries ask to cite, each once; a broken `cite` of a plugin is passed over."""
    found: dict[str, str] = {}
    for entry in entries:
        try:
            found |= references(entry.cite)
        except ValueError:
            continue
    return found


def _named(table: Any, key: str) -> Iterator[tuple[str, str]]:
    """(kind, name) of every table inside `table` that names a plugin; `key` is where it stands."""
    if isinstance(table, list | tuple):
        for part in table:
            yield from _named(part, key)
    if not isinstance(table, Mapping):
        return
    if isinstance(table.get("name"), str):
        yield _KINDS.get(key, key), table["name"]
    for inner, value in table.items():
        yield from _named(value, inner)
