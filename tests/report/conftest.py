"""The demo folder, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from demo import write_demo


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo"))
