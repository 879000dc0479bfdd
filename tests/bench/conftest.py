"""What the tests of the bench share: a third party's toys, installed, and a bench of them."""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_bench import SITE, TABLE

from pdframe import registry
from pdframe.bench.case import FrozenCase, freeze, open_case
from pdframe.bench.config import Bench, load_bench


@pytest.fixture(scope="module")
def toys() -> Iterator[None]:
    """The distribution in tests/bench/site, installed for one file."""
    before = set(sys.modules)
    sys.path.insert(0, str(SITE))
    registry.refresh()
    yield
    sys.path.remove(str(SITE))
    for name in set(sys.modules) - before:
        if name.startswith("bench_toys"):
            del sys.modules[name]
    registry.refresh()


@pytest.fixture
def streams() -> Iterator[None]:
    """Puts the global random streams back after a test that moves them."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    yield
    random.setstate(kept[0])
    np.random.set_state(kept[1])  # noqa: NPY002
    torch.set_rng_state(kept[2])


@pytest.fixture(scope="module")
def make_bench(toys: None) -> Callable[..., Bench]:
    """make_bench(seeds=[0], ...): the bench of `TABLE` with some of its keys set otherwise."""

    def make(*overrides: str, **changes: Any) -> Bench:
        return load_bench({**TABLE, **changes}, overrides)

    return make


@pytest.fixture
def case(make_bench: Callable[..., Bench], tmp_path: Path) -> FrozenCase:
    """The first case of that bench, frozen in tmp_path / "bench"."""
    bench = make_bench()
    plan = bench.cases()[0]
    freeze(bench, plan, tmp_path / "bench")
    return open_case(bench, plan, tmp_path / "bench")


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Workers' folders go where pytest clears up, apart from every bench."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("private")))
        yield
