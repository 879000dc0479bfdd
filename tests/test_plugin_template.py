"""The plugin template in docs/ is a distribution of its own that works as it stands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomli

TEMPLATE = Path(__file__).parents[1] / "docs" / "plugin-template"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the template with the `.dist-info` that pip would write from its pyproject.toml."""
    site = tmp_path_factory.mktemp("template") / "site"
    shutil.copytree(TEMPLATE, site, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache", "runs"))
    project = tomli.loads((site / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    points = [f"{name} = {value}" for name, value in project["entry-points"]["pdframe"].items()]
    info.joinpath("entry_points.txt").write_text("\n".join(["[pdframe]", *points, ""]))
    return site


def call(site: Path, *words: str) -> str:
    """What `python -m ...` prints, with the template installed."""
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_own_tests_pass(site: Path):
    told = call(site, "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:odl_plugins")
    assert "4 passed" in told


def test_it_is_listed_under_its_own_distribution(site: Path):
    listed = json.loads(call(site, "pdframe", "plugins", "--json"))
    offers = {(o["kind"], o["name"]): o for o in listed["entries"]}
    for key in (("operator", "blur"), ("solver", "landweber")):
        assert offers[key]["usable"] and offers[key]["distribution"] == "pdframe-blur"
    assert not listed["failures"]


def test_its_example_runs_and_sharpens(site: Path):
    call(site, "pdframe", "run", "example.toml", "--out", "run")
    record = json.loads((site / "run" / "record.json").read_text())
    assert record["status"] == "done" and record["adjoint_matched"] and record["adjoint_mismatch"] < 1e-6
    assert record["plugins"]["blur"] == "pdframe-blur 0.1.0"
    row = record["methods"][0]["rows"][0]
    trace = [json.loads(line) for line in (site / "run" / "trace.jsonl").read_text().splitlines()]
    assert trace[-1]["misfit"] < trace[0]["misfit"] and row["usage"]["forward_calls"] >= 30
    assert (site / "run" / "figure.png").is_file()
