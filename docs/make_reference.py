"""Writes docs/reference.md from the settings themselves: `python docs/make_reference.py`. A test says when to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pdframe import registry
from pdframe.bench.config import Bench
from pdframe.config import Experiment, Sampling
from pdframe.hooks import KINDS, Config
from pdframe.train import Training

PAGE = Path(__file__).with_name("reference.md")

HEAD = """# Reference: every table and key of a TOML

Made by `python docs/make_reference.py` from the settings of what ships with pdframe; do not edit. `pdframe schema`
prints the same for an editor, with the plugins that you installed.

A table that names a plugin, such as `[operator]`, holds `name` and that plugin's settings, listed below under its kind.
A path is relative to the folder of the TOML that holds it. Lengths are in mm, angles in degrees, volumes (z, y, x).

`extends = "other.toml"` (or a list of files) at the top lays this file over others, table by table; a list such as
`[[compare]]` replaces the whole list. `--set solver.steps=20` on the command line is laid over all.
"""

WHAT = {
    Experiment: ("Experiment", "What `pdframe run` and `pdframe doctor` read."),
    Bench: ("Bench", "What `pdframe bench` reads ([a fair bench](bench.md)); `extends` and `--set` as everywhere."),
    Sampling: ("Sampling", "What `pdframe sample` reads. `[prior]` is needed, in a TOML or by `--set prior.name=...`."),
    Training: ("Training", "What `pdframe train` reads."),
}
TITLES = {kind: f"{kind.capitalize()}s" for kind in KINDS} | {"noise": "Noise models"}
#: Keys whose table names a plugin, and what the table or list is called.
PARTS = {
    "dataset": "a dataset",
    "operator": "an operator",
    "noise": "a noise model",
    "prior": "a prior",
    "solver": "a solver",
    "compare": "a solver each",
    "metrics": "a metric",
    "task": "a task",
    "nearest": "a dataset",
    "executor": "an executor",
}
SOLVER_KEYS = """Every solver table, `[solver]` and each `[[compare]]`, also takes

| key | value | default | meaning |
|---|---|---|---|
| `label` | text | its name | row name in tables and pictures; two methods need two labels |
| `prior` | table | that of `[prior]` | a prior of its own, `[solver.prior]`, for a solver that uses one |
"""


def page() -> str:
    """The whole reference as Markdown."""
    return "\n".join([HEAD, *_experiments(), *_plugins()]).rstrip() + "\n"


def _experiments() -> Iterator[str]:
    for model, (title, said) in WHAT.items():
        yield f"## {title}\n\n{said}\n"
        yield from _tables(model, "")


def _plugins() -> Iterator[str]:
    shipped = {entry for plugin in registry.plugins() if plugin.distribution == "pdframe" for entry in plugin.entries}
    for kind in KINDS:
        entries = [entry for entry in registry.entries(kind) if entry in shipped]
        if entries:
            yield f"## {TITLES[kind]}\n"
        if kind == "solver":
            yield SOLVER_KEYS
        for entry in entries:
            config = registry.load_config_class(entry)
            yield f"### {kind} `{entry.name}`\n\n{_prose(config)}\n"
            yield from _tables(config, kind)


def _prose(config: type[Config]) -> str:
    """The first paragraph of the docstring."""
    return " ".join((config.__doc__ or "").split("\n\n")[0].split())


def _tables(model: type[Config], prefix: str) -> Iterator[str]:
    """The keys of a model, then those of the tables inside it."""
    schema = model.model_json_schema()
    definitions, shown = schema.get("$defs", {}), []
    for name, field in model.model_fields.items():  # the schema of a plugin's table has the plugin's own words
        schema["properties"][name]["description"] = field.description or ""
    yield _table(schema, definitions)
    for name, value in schema["properties"].items():
        inner = _referred(value, definitions)
        if inner is None or name in PARTS:
            continue
        place = f"{prefix}.{name}" if prefix else name
        place = f"[[{place}]]" if value.get("type") == "array" else f"[{place}]"
        if inner["title"] in shown:
            yield f"`{place}`: the same keys.\n"
            continue
        shown.append(inner["title"])
        yield f"`{place}`: {' '.join(inner.get('description', '').split())}\n"
        yield _table(inner, definitions)


def _table(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    if not schema.get("properties"):
        return "No settings.\n"
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, value in schema["properties"].items():
        part = PARTS.get(name)
        what = (
            f"{'tables, naming' if name == 'compare' else 'table, naming'} {part}"
            if part
            else _kind(value, definitions)
        )
        default = "none" if part else _default(value, definitions)
        default = "**required**" if name in schema.get("required", ()) else default
        cells = (f"`{name}`", what, default, value.get("description", ""))
        rows.append("| " + " | ".join(" ".join(c.split()).replace("|", "\\|") for c in cells) + " |")
    return "\n".join(rows) + "\n"


def _default(value: dict[str, Any], definitions: dict[str, Any]) -> str:
    default = value.get("default")
    if default is None:
        return "none"
    if default in ("", []):
        return "empty"
    return "see below" if _referred(value, definitions) is not None else f"`{json.dumps(default)}`"


def _referred(value: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any] | None:
    """The table inside a value (or inside a list), if it is one."""
    choices = [v for v in value.get("anyOf", ()) if v.get("type") != "null"]  # an optional table is a choice of one
    for place in (value, value.get("items") or {}, *value.get("allOf", ()), *(choices if len(choices) == 1 else ())):
        if "$ref" in place:
            name = place["$ref"].rsplit("/", 1)[1]
            forms = [definitions[name], *definitions[name].get("anyOf", ())]  # its own form, not that of a plugin
            return next((form for form in forms if "properties" in form and form.get("title") == name), None)
    return None


def _kind(value: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON Schema type in words."""
    if _referred(value, definitions) is not None:
        return "list of tables" if value.get("type") == "array" else "table"
    if "enum" in value or "const" in value:
        return ", ".join(f"`{json.dumps(v)}`" for v in value.get("enum", [value.get("const")]))
    if "oneOf" in value:  # a choice among plugins
        return "table, naming a plugin"
    if "anyOf" in value:
        kinds = dict.fromkeys(_kind(v, definitions) for v in value["anyOf"] if v.get("type") != "null")
        return " or ".join(kinds)
    if value.get("type") == "array":
        return _list_of(value, definitions)
    words = {
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "`true` or `false`",
        "object": "table",
    }
    word = "path" if value.get("format") == "path" else words[value["type"]]
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {value[key]:g}" for key, sign in signs.items() if key in value]
    return f"{word} {', '.join(bounds)}".strip()


def _list_of(value: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "prefixItems" in value:
        kinds = [_kind(v, definitions) for v in value["prefixItems"]]
        same = len(set(kinds)) == 1
        return f"list of {len(kinds)}: {kinds[0] if same else ', '.join(kinds)}"
    return f"list of {_kind(value['items'], definitions)}"


if __name__ == "__main__":
    PAGE.write_text(page())
