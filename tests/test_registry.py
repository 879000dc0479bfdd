"""Plugins through the front door: a third party's, a broken one, two that claim one name, and load control."""

from __future__ import annotations

from importlib.metadata import distribution

import pytest

import pdframe
from pdframe import registry
from pdframe.hooks import BackendMissing, Entry
from pdframe.mistakes import ConfigError

PLUGIN = """
from pdframe.hooks import Entry, hookimpl

@hookimpl
def pdframe_register():
    return [
        Entry("operator", "acme_scan", "acme_parts:ScanConfig", "A scan."),
        Entry("operator", "acme_gpu", "acme_parts:ScanConfig", "Needs a library.",
              requires=("no_such_library_xyz",), extra="gpu"),
    ]
"""
PARTS = """
from dataclasses import dataclass
from pydantic import Field
from pdframe.hooks import Config

class ScanConfig(Config):
    views: int = Field(20, ge=1)
    def build(self, grid):
        return Scan(grid, self)

@dataclass(frozen=True)
class Scan:
    grid: object
    settings: ScanConfig
"""


@pytest.fixture
def acme(foreign):
    return foreign("acme-ct", {"acme": PLUGIN, "acme_parts": PARTS}, entry="acme", version="2.5")


def test_a_foreign_plugin_is_found_listed_and_built(acme):
    entry = registry.find("operator", "acme_scan")
    assert entry in registry.entries("operator") and entry in registry.entries()
    assert (registry.origin(entry).distribution, registry.origin(entry).version) == ("acme-ct", "2.5")
    scan = pdframe.build("operator", "acme_scan", grid="a grid", views=7)
    assert (scan.grid, scan.settings.views) == ("a grid", 7)
    assert not [f for f in registry.failures() if f.plugin == "acme"]


def test_listing_does_not_import_what_is_behind_the_entries(acme):
    import sys

    registry.entries()
    assert "acme" in sys.modules and "acme_parts" not in sys.modules


def test_context_that_is_not_asked_for_is_left_aside_and_what_is_lacking_is_named(acme):
    scan = registry.build("operator", "acme_scan", context={"grid": 1, "prior": 2})
    assert scan.grid == 1
    with pytest.raises(registry.RegistryError, match="'acme_scan' is built from grid, which was not given"):
        pdframe.build("operator", "acme_scan")


def test_wrong_settings_in_python_read_as_those_of_a_file(acme):
    with pytest.raises(ConfigError, match=r"operator 'acme_scan': veiws: unknown key; did you mean `views`\?"):
        pdframe.build("operator", "acme_scan", grid=1, veiws=3)
    with pytest.raises(ConfigError, match="views: should be greater than or equal to 1, got 0"):
        pdframe.build("operator", "acme_scan", grid=1, views=0)


def test_a_missing_library_names_the_extra_that_brings_it(acme):
    entry = registry.find("operator", "acme_gpu")
    assert registry.missing(entry) == ("no_such_library_xyz",)
    with pytest.raises(BackendMissing, match=r'needs no_such_library_xyz.*pip install "acme-ct\[gpu\]"'):
        pdframe.build("operator", "acme_gpu", grid=1)


def test_a_miss_offers_the_nearest_name_and_an_unknown_kind_the_kinds(acme):
    with pytest.raises(registry.RegistryError, match="did you mean `acme_scan`"):
        registry.find("operator", "acme_scna")
    with pytest.raises(registry.RegistryError, match="kinds are operator, prior, solver"):
        registry.entries("opertor")
    with pytest.raises(registry.RegistryError, match="kinds are operator, prior, solver"):
        registry.find("opertor", "acme_scan")


HOOK = "from pdframe.hooks import Entry, hookimpl\n@hookimpl\ndef {name}({args}):\n    return {value}\n"
BROKEN = {
    "import": ("import no_such_library_xyz", "ModuleNotFoundError: No module named 'no_such_library_xyz'"),
    "syntax": ("def f(:", "SyntaxError"),
    "exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "no_hook": ("x = 1", "no `@hookimpl def pdframe_register"),
    "misspelt": (HOOK.format(name="pdframe_registr", args="", value="[]"), "unknown hook 'pdframe_registr'"),
    "argument": (HOOK.format(name="pdframe_register", args="grid", value="[]"), "grid"),
    "none": (HOOK.format(name="pdframe_register", args="", value="None"), "must return a list of Entry, got None"),
    "text": (HOOK.format(name="pdframe_register", args="", value="'dds'"), "must return a list of Entry, got 'dds'"),
    "tuples": (HOOK.format(name="pdframe_register", args="", value="[('solver', 'x')]"), "got an element"),
    "kind": (
        HOOK.format(name="pdframe_register", args="", value="[Entry('solvr', 'x', 'm:C', '')]"),
        "kind must be one of",
    ),
    "target": (
        HOOK.format(name="pdframe_register", args="", value="[Entry('solver', 'x', 'm.C', '')]"),
        "target 'module:Class'",
    ),
    "raises": (HOOK.format(name="pdframe_register", args="", value="1 / 0"), "ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plugin_is_listed_with_its_error_and_hurts_nobody(fault, acme, foreign):
    before = registry.entries()
    source, message = BROKEN[fault]
    foreign("broken-thing", {"broken_thing": source}, entry="broken", version="0.3")
    failure = next(f for f in registry.failures() if f.plugin == "broken")
    assert (failure.distribution, failure.version) == ("broken-thing", "0.3")
    assert message in failure.error and "\n" not in failure.error and "Traceback" in failure.traceback
    assert registry.entries() == before
    with pytest.raises(registry.RegistryError, match=r"failed to load: .*'broken' \(broken-thing 0.3\)"):
        registry.find("solver", "of_the_broken_plugin")


def test_a_name_claimed_twice_is_refused_naming_both_and_nothing_else_suffers(acme, foreign):
    twin = HOOK.format(
        name="pdframe_register",
        args="",
        value="[Entry('operator', 'acme_scan', 'twin:C', ''), Entry('operator', 'twin_only', 'twin:C', '')]",
    )
    foreign("twin-ct", {"twin": twin}, entry="twin")
    with pytest.raises(registry.RegistryError, match=r"'acme_scan' is offered by both acme-ct 2.5 .* and twin-ct 1.0"):
        registry.find("operator", "acme_scan")
    failed = next(f for f in registry.failures() if "acme_scan" in f.error)
    assert "acme-ct" in failed.distribution and "twin-ct" in failed.distribution
    names = [entry.name for entry in registry.entries("operator")]
    assert "acme_scan" not in names and {"acme_gpu", "twin_only"} <= set(names)


def test_load_control(acme, monkeypatch):
    monkeypatch.setenv("PDFRAME_PLUGINS", "")
    assert registry.plugins() == () and registry.entries() == () and registry.failures() == ()
    monkeypatch.setenv("PDFRAME_PLUGINS", "acme")
    assert [p.name for p in registry.plugins()] == ["acme"]
    monkeypatch.setenv("PDFRAME_PLUGINS", "acme, rya")
    assert [f.error for f in registry.failures()] == ["PDFRAME_PLUGINS asks for 'rya', which is not installed"]
    monkeypatch.delenv("PDFRAME_PLUGINS")
    assert len(registry.plugins()) + len(registry.failures()) >= 2


TARGETS = {
    "absent_attribute": ("x = 1", registry.RegistryError, "AttributeError"),
    "not_a_config": ("class C:\n    pass", registry.RegistryError, "must be a subclass of pdframe.hooks.Config"),
    "no_build": (
        "from pdframe.hooks import Config\nclass C(Config):\n    pass",
        registry.RegistryError,
        "with a `build`",
    ),
    "import_error": ("import no_such_library_xyz", BackendMissing, "cannot be imported: ModuleNotFoundError"),
    "reserved": (
        "from pdframe.hooks import Config\nclass C(Config):\n    label: str = ''\n    def build(self): ...",
        registry.RegistryError,
        "setting 'label' has a name that the framework uses",
    ),
    "shadowed": (
        "from pdframe.hooks import Config\nclass C(Config):\n    grid: int = 0\n    def build(self, grid): ...",
        registry.RegistryError,
        "setting 'grid' has a name that the framework uses",
    ),
}


@pytest.mark.parametrize("fault", TARGETS)
def test_a_wrong_target_is_one_clear_error_on_use(fault, foreign):
    source, kind, message = TARGETS[fault]
    hook = HOOK.format(name="pdframe_register", args="", value="[Entry('prior', 'odd', 'odd_parts:C', '')]")
    foreign("odd-prior", {"odd": hook, "odd_parts": source}, entry="odd")
    with pytest.raises(kind, match=message) as caught:
        registry.load_config_class(registry.find("prior", "odd"))
    assert "prior 'odd' (plugin 'odd')" in str(caught.value)


def test_every_shipped_plugin_loads_and_every_target_is_there():
    shipped = {point.name for point in distribution("pdframe").entry_points if point.group == "pdframe"}
    assert [f.error for f in registry.failures() if f.distribution == "pdframe"] == []
    assert shipped <= {plugin.name for plugin in registry.plugins()}
    for plugin in registry.plugins():
        for entry in plugin.entries:
            if plugin.distribution == "pdframe":
                assert entry.summary and callable(registry.load_config_class(entry).build)


def test_an_entry_is_plain_data():
    entry = Entry("solver", "x", "m:C", "s", example=(("steps", 2),))
    assert dict(entry.example) == {"steps": 2} and hash(entry) == hash(
        Entry("solver", "x", "m:C", "s", (("steps", 2),))
    )
