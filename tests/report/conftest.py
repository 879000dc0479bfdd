"""The demo folder, made once, and a browser where there is one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from demo import write_demo

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
#: The machine may be busy; a browser that starts beside other work takes its time.
PATIENCE_MS = 120_000


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium or Chrome, headless. Without one the test is skipped, or fails if PDFRAME_REQUIRE_BROWSER=1."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _without("playwright is not installed: pip install playwright")
    with sync_playwright() as playwright:
        path = _executable(playwright)
        if path is None:
            _without("no Chromium or Chrome was found; PDFRAME_CHROMIUM may name one")
        flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        opened = playwright.chromium.launch(executable_path=path, args=flags, timeout=PATIENCE_MS)
        yield opened
        opened.close()


def _executable(playwright: Playwright) -> str | None:
    managed = playwright.chromium.executable_path
    wanted = [os.environ.get("PDFRAME_CHROMIUM", ""), *(shutil.which(name) or "" for name in NAMES), managed]
    return next((path for path in wanted if path and Path(path).is_file()), None)


def _without(reason: str) -> None:
    if os.environ.get("PDFRAME_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{reason} (PDFRAME_REQUIRE_BROWSER=1)", pytrace=False)
    pytest.skip(reason)
