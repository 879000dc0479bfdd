"""Fixtures that several test files share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pdframe import registry


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Installs a third party's distribution for one test: a folder with modules and a `.dist-info` on sys.path.

    foreign("acme-ct", {"acme": source of its plugin module, "acme_impl": ...}, entry="acme", version="1.0")
    """
    before = set(sys.modules)

    def install(distribution: str, modules: dict[str, str], *, entry: str, version: str = "1.0") -> Path:
        site = tmp_path / f"site-{distribution}"
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[pdframe]\n{entry} = {next(iter(modules))}\n")
        for name, source in modules.items():
            (site / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(str(site))
        registry.refresh()
        return site

    yield install
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "") or ""):
            del sys.modules[name]
    monkeypatch.undo()
    registry.refresh()
