"""What is installed: plugins found through the entry-point group "pdframe", what they offer, and what failed.

Every plugin, shipped or foreign, comes through `importlib.metadata.entry_points(group="pdframe")`. Each is loaded
alone, so that one which fails is listed in `failures` and hurts nobody. Registering is data: the modules behind the
entries are imported on first use. `PDFRAME_PLUGINS=ray,patch` limits what is loaded (empty: nothing).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy
from pydantic import ValidationError

from pdframe.hooks import GROUP, KINDS, BackendMissing, Config, Entry, Hooks
from pdframe.mistakes import ConfigError, explain

#: Keys of a TOML table that belong to the framework, so that no plugin may use them for a setting.
RESERVED = ("name", "label", "prior")
#: And those of a bench's [[method]], where a solver's settings stand beside them.
METHOD_KEYS = ("samples", "search", "for", "like", "solver")


class RegistryError(LookupError):
    """No plugin, more than one, or a wrong one stands behind a name; the message says which and what to do."""


@dataclass(frozen=True)
class Plugin:
    """One loaded plugin: the name of its entry point, the distribution that brought it, and its offer."""

    name: str
    distribution: str
    version: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Failure:
    """One plugin, or one name, that cannot be used, and why."""

    plugin: str
    distribution: str
    version: str
    error: str
    traceback: str = ""


@dataclass(frozen=True)
class _Installed:
    plugins: tuple[Plugin, ...]
    failures: tuple[Failure, ...]
    offers: Mapping[tuple[str, str], tuple[tuple[Plugin, Entry], ...]]


def plugins() -> tuple[Plugin, ...]:
    """Every plugin that loaded, sorted by name."""
    return _installed().plugins


def versions() -> dict[str, str]:
    """Of every plugin that loaded: its distribution and version."""
    return {plugin.name: f"{plugin.distribution} {plugin.version}" for plugin in plugins()}


def failures() -> tuple[Failure, ...]:
    """Every plugin that did not load, every name that two plugins claim, every unknown name in PDFRAME_PLUGINS."""
    return _installed().failures


def entries(kind: str | None = None) -> tuple[Entry, ...]:
    """What is on offer, of one kind or of all, sorted by kind and name; names claimed twice are left out."""
    if kind is not None:
        _check_kind(kind)
    offers = _installed().offers
    return tuple(
        offers[key][0][1] for key in sorted(offers) if len(offers[key]) == 1 and (kind is None or key[0] == kind)
    )


def find(kind: str, name: str) -> Entry:
    """The entry of that kind and name. RegistryError with the nearest names, or with the reason why it is not there."""
    return _find(kind, name)[1]


def origin(entry: Entry) -> Plugin:
    """The plugin that offers an entry."""
    return _find(entry.kind, entry.name)[0]


def missing(entry: Entry) -> tuple[str, ...]:
    """Import names that the entry requires and this machine lacks; nothing is imported to find out."""
    return tuple(name for name in entry.requires if not _importable(name))


def require(entry: Entry) -> None:
    """BackendMissing, with the command that installs it, if a library that the entry requires is not there."""
    if lacking := missing(entry):
        raise BackendMissing(
            f"{entry.kind} {entry.name!r} needs {', '.join(lacking)}, not installed here: {install_command(entry)}"
        )


def install_command(entry: Entry) -> str:
    """The pip command that brings what an entry requires; empty if it requires nothing."""
    if not entry.requires:
        return ""
    return (
        f'pip install "{origin(entry).distribution}[{entry.extra}]"'
        if entry.extra
        else (f"pip install {' '.join(entry.requires)}")
    )


def load_config_class(entry: Entry) -> type[Config]:
    """The `Config` subclass behind an entry; this imports the plugin's module."""
    module_name, _, attribute = entry.target.partition(":")
    where = f"{entry.kind} {entry.name!r} (plugin {origin(entry).name!r})"
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        hint = install_command(entry)
        raise BackendMissing(f"{where} cannot be imported: {_one_line(error)}{hint and '; try: ' + hint}") from error
    except Exception as error:
        raise RegistryError(f"{where} cannot be loaded from {entry.target!r}: {_one_line(error)}") from error
    if not (inspect.isclass(found) and issubclass(found, Config) and callable(getattr(found, "build", None))):
        raise RegistryError(f"{where}: {entry.target!r} must be a subclass of pdframe.hooks.Config with a `build`")
    keys = {*RESERVED, *needs(found), *(METHOD_KEYS if entry.kind == "solver" else ())}
    if taken := sorted(keys & found.model_fields.keys()):
        raise RegistryError(f"{where}: setting {taken[0]!r} has a name that the framework uses; rename it")
    return found


def needs(config_class: type[Config]) -> tuple[str, ...]:
    """Names of what `build` wants from the run: `grid`, `operator`, `prior`..."""
    return tuple(inspect.signature(config_class.build).parameters)[1:]


def build(kind: str, name: str, /, *, context: Mapping[str, Any] | None = None, **given: Any) -> Any:
    """The object that a name stands for: `build("operator", "cone_beam", grid=grid, views=20)`.

    `given` holds settings, checked by the plugin's own Config, and what its `build` asks for by name (grid, prior,
    operator...). `context` may hold more of the latter; what is not asked for is left aside.
    """
    config_class = load_config_class(find(kind, name))
    wanted = needs(config_class)
    settings = {key: value for key, value in given.items() if key not in wanted}
    try:
        config = config_class.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(explain(error, config_class), source=f"{kind} {name!r}") from None
    return build_from(kind, name, config, {**(context or {}), **{k: given[k] for k in wanted if k in given}})


def build_from(kind: str, name: str, config: Config, context: Mapping[str, Any]) -> Any:
    """`config.build` with what it asks for, taken from `context`."""
    require(find(kind, name))
    parameters = list(inspect.signature(config.build).parameters.values())
    lacking = [p.name for p in parameters if p.default is p.empty and p.name not in context]
    if lacking:
        raise RegistryError(f"{kind} {name!r} is built from {', '.join(lacking)}, which was not given")
    return config.build(**{p.name: context[p.name] for p in parameters if p.name in context})


def refresh() -> None:
    """Look again at what is installed, after `sys.path` or an installation changed."""
    importlib.invalidate_caches()
    _load.cache_clear()


def _installed() -> _Installed:
    return _load(os.environ.get("PDFRAME_PLUGINS"))


@functools.cache
def _load(selection: str | None) -> _Installed:
    loaded: list[Plugin] = []
    failed: list[Failure] = []
    found = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    if selection is not None:
        wanted = {name.strip() for name in selection.split(",")} - {""}
        failed += [
            Failure(name, "", "", f"PDFRAME_PLUGINS asks for {name!r}, which is not installed")
            for name in sorted(wanted - {point.name for point in found})
        ]
        found = [point for point in found if point.name in wanted]
    for point in found:
        origin = (point.name, point.dist.name, point.dist.version) if point.dist else (point.name, "", "")
        try:
            loaded.append(Plugin(*origin, entries=_offer(point)))
        except (Exception, SystemExit) as error:  # whatever a plugin does wrong stays with that plugin
            failed.append(Failure(*origin, error=_one_line(error), traceback=traceback.format_exc()))
    offers: dict[tuple[str, str], tuple[tuple[Plugin, Entry], ...]] = {}
    for plugin in loaded:
        for entry in plugin.entries:
            key = (entry.kind, entry.name)
            offers[key] = (*offers.get(key, ()), (plugin, entry))
    failed += [_duplicate(key, claims) for key, claims in sorted(offers.items()) if len(claims) > 1]
    return _Installed(tuple(loaded), tuple(failed), offers)


def _offer(point: EntryPoint) -> tuple[Entry, ...]:
    """Load one plugin and ask what it offers. It gets a manager of its own, so that a mistake names its maker."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    plugin = point.load()
    manager.register(plugin, name=point.name)
    manager.check_pending()  # an implementation of a hook that does not exist: a misspelt name
    if not manager.get_hookcallers(plugin):
        raise TypeError(f"{point.value} has no `@hookimpl def pdframe_register()`")
    answers = manager.hook.pdframe_register()
    if len(answers) != 1 or isinstance(answers[0], str) or not isinstance(answers[0], Iterable):
        raise TypeError(f"pdframe_register must return a list of Entry, got {answers[0] if answers else None!r}")
    offered = tuple(answers[0])
    for entry in offered:
        _check_entry(entry)
    return offered


def _check_entry(entry: object) -> None:
    if not isinstance(entry, Entry):
        raise TypeError(f"pdframe_register must return a list of Entry, got an element {entry!r}")
    if entry.kind not in KINDS:
        raise ValueError(f"entry {entry.name!r}: kind must be one of {', '.join(KINDS)}, got {entry.kind!r}")
    if not entry.name or entry.target.count(":") != 1:
        raise ValueError(f"an entry needs a name and a target 'module:Class', got {entry.name!r}, {entry.target!r}")


def _duplicate(key: tuple[str, str], claims: tuple[tuple[Plugin, Entry], ...]) -> Failure:
    origins = " and ".join(f"{p.distribution} {p.version} (plugin {p.name!r})" for p, _ in claims)
    return Failure(
        plugin=" and ".join(dict.fromkeys(p.name for p, _ in claims)),
        distribution=" and ".join(dict.fromkeys(p.distribution for p, _ in claims)),
        version=" and ".join(dict.fromkeys(p.version for p, _ in claims)),
        error=f"{key[0]} {key[1]!r} is offered by both {origins}: uninstall one, or limit PDFRAME_PLUGINS",
    )


def _find(kind: str, name: str) -> tuple[Plugin, Entry]:
    _check_kind(kind)
    claims = _installed().offers.get((kind, name), ())
    if len(claims) > 1:
        raise RegistryError(_duplicate((kind, name), claims).error)
    if claims:
        return claims[0]
    known = [entry.name for entry in entries(kind)]
    near = get_close_matches(name, known, n=2, cutoff=0.6)
    if near:
        hint = f"did you mean {' or '.join(f'`{n}`' for n in near)}?"
    else:
        hint = f"installed: {', '.join(known)}" if known else f"no plugin offers any {kind}"
    broken = [f"{f.plugin!r} ({f.distribution} {f.version}): {f.error}" for f in failures() if f.traceback]
    if broken:
        hint += f"; it may belong to a plugin that failed to load: {'; '.join(broken)}"
    raise RegistryError(f"no {kind} is called {name!r}; {hint}")


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise RegistryError(f"there is no kind {kind!r}; the kinds are {', '.join(KINDS)}")


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
