"""Fixtures that several test files share, and the rule for what a machine must not lack.

PDFRAME_REQUIRE="ray odl browser": where it is set, a test that is skipped for want of one of these fails instead.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from pdframe import registry
from pdframe.core.grid import Grid
from pdframe.core.seeds import generator
from pdframe.ct.nifti import write_nifti

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _failed_if_required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _failed_if_required((yield))


def _failed_if_required(report: Report) -> Report:
    """A skip whose reason names something that is required is made a failure; any other report is left as it is."""
    if report.skipped and isinstance(report.longrepr, tuple):
        *_, reason = report.longrepr
        wanted = os.environ.get("PDFRAME_REQUIRE", "").lower().split()
        if named := set(wanted) & set(re.findall(r"[\w-]+", reason.lower())):
            report.outcome = "failed"
            report.longrepr = f"{reason} (PDFRAME_REQUIRE names {', '.join(sorted(named))})"
    return report


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Installs a third party's distribution for one test: a folder with modules and a `.dist-info` on sys.path.

    foreign("acme-ct", {"acme": source of its plugin module, "acme_impl": ...}, entry="acme", version="1.0")
    """
    before = set(sys.modules)

    def install(distribution: str, modules: dict[str, str], *, entry: str, version: str = "1.0") -> Path:
        site = tmp_path / f".site-{distribution}"  # hidden, so that a test may take tmp_path for a new folder
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


@pytest.fixture(scope="session")
def two_scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scan0.nii.gz and scan1.nii.gz: enough of a body to train on for a few steps."""
    folder = tmp_path_factory.mktemp("two_scans")
    for k in range(2):
        _write_scan(folder / f"scan{k}.nii.gz", k)
    return folder


def _write_scan(path: Path, seed: int) -> None:
    """A blob of water with a denser ball in it."""
    rng = generator(seed)
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, 24),) * 3, indexing="ij")
    hu = torch.where(z**2 + y**2 + x**2 < 0.8, 30.0, -1000.0)
    centre = torch.rand(3, generator=rng) - 0.5
    hu[(z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < 0.1] = 400.0
    write_nifti(path, (0.02 * (1 + hu / 1000))[None, None], Grid(hu.shape, (4.0, 4.0, 4.0)))
