"""kill -9 of `pdframe run` in the middle of a sampler that draws noise: the same command goes on, to the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError, safe_open

from pdframe import runfolder

PLUGIN = """
from pdframe.hooks import Entry, hookimpl

@hookimpl
def pdframe_register():
    return [Entry("prior", "slow_white", "slow_parts:SlowWhiteConfig", "")]
"""
PARTS = """
import os, time
from dataclasses import dataclass
from pdframe import Config, Prior
from pdframe.core.solve import solve

# A solve saves itself twice a minute; the test cannot wait as long.
solve.__kwdefaults__["checkpoint_every_s"] = 0.0

class SlowWhiteConfig(Config):
    def build(self): return SlowWhite()

@dataclass(frozen=True)
class SlowWhite(Prior):
    sigma_range = (1e-4, 0.1)
    mean = 0.01
    deviation = 0.01
    def denoise(self, x, sigma, *, rng=None):
        with open(os.environ["CALLS"], "a") as file:
            print(float(sigma), file=file)
        time.sleep(0.1)
        share = 1e-4 / (1e-4 + sigma.reshape(-1, *(1,) * (x.ndim - 1)) ** 2)
        return self.mean + share * (x - self.mean)
"""
TOML = """
[dataset]
name = "phantom"
shape = [12, 12, 12]
spacing_mm = [16.0, 16.0, 16.0]
[operator]
name = "cone_beam"
views = 4
[noise]
name = "photon"
[prior]
name = "slow_white"
[solver]
name = "dds"
steps = 12
eta = 0.85
[[compare]]
name = "fdk"
"""


@pytest.fixture
def start(foreign, tmp_path):
    """Starts `pdframe run` into a folder; its prior notes each call in the file CALLS."""
    site = foreign("slow-ct", {"slow": PLUGIN, "slow_parts": PARTS}, entry="slow")
    (tmp_path / "tiny.toml").write_text(TOML)
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])

    def start(folder: Path, calls: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pdframe", "run", tmp_path / "tiny.toml", "--out", folder]
        env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CALLS": str(calls)}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)

    return start


def ended(process: subprocess.Popen[str]) -> None:
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors


def step_of(checkpoint: Path) -> int:
    """Steps that a checkpoint holds; 0 if there is none."""
    try:
        with safe_open(checkpoint, framework="pt") as file:
            return json.loads(file.metadata()["pdframe_solve"])["step"]
    except (OSError, SafetensorError):
        return 0


def trace(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / runfolder.TRACE).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_run_killed_in_the_middle_of_dds_goes_on_from_its_checkpoint_to_the_same_bits(start, tmp_path):
    whole, broken, calls = tmp_path / "whole", tmp_path / "broken", tmp_path / "calls"
    calls.mkdir()
    ended(start(whole, calls / "whole"))

    process, checkpoint = start(broken, calls / "first"), broken / "checkpoint_0.safetensors"
    patience = time.monotonic() + 120
    while step_of(checkpoint) < 4 and process.poll() is None and time.monotonic() < patience:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    step = step_of(checkpoint)
    assert process.returncode == -9 and 4 <= step < 12
    assert json.loads((broken / runfolder.RECORD).read_text())["status"] == "running"

    ended(start(broken, calls / "second"))
    assert (broken / "volume.nii.gz").read_bytes() == (whole / "volume.nii.gz").read_bytes()
    assert trace(broken) == trace(whole) and len(trace(whole)) == 12
    in_whole, in_second = ((calls / name).read_text().splitlines() for name in ("whole", "second"))
    assert in_second == in_whole[step:]  # one call a step, and nothing from before the checkpoint again
