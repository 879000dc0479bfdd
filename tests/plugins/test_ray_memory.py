"""What the cone-beam operator says that a call takes in memory: stated, kept to, and refused where there is less."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from pdframe_ray import memory
from pdframe_ray.config import ConeBeamConfig

from pdframe.core.grid import Grid


def test_memory_is_estimated_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    big = ConeBeamConfig(views=360).build(Grid((256,) * 3, (1.0,) * 3))
    estimate = memory.memory_estimate(big)
    held = 4 * (256**3 + math.prod(big.data_shape))
    assert held < estimate < 6 * held
    assert memory.memory_estimate(big, items=2) > estimate
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2**20)
    with pytest.raises(MemoryError, match="GiB"):
        big.forward(torch.zeros(1).expand(1, 1, 256, 256, 256))


MEASURED = """
import sys, torch
from pdframe.core.grid import Grid
from pdframe.core.operator import call_bytes
from pdframe_ray.config import ConeBeamConfig

def told(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

def operator(edge):
    return ConeBeamConfig(views=30, form=sys.argv[1]).build(Grid((edge,) * 3, (300 / edge,) * 3))

torch.set_num_threads(1)
small, large = operator(16), operator(128)
x, y = torch.rand(1, 1, 128, 128, 128), torch.rand(1, 1, *large.data_shape)
small.adjoint(small.forward(x[..., :16, :16, :16].contiguous()))  # compiles, and starts what is started once
before = told("VmRSS")
large.forward(x), large.adjoint(y)
print(told("VmHWM") - before, call_bytes(large))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("form", ["auto", "planes"])
def test_a_call_takes_no_more_memory_than_is_stated(form: str) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURED, form], capture_output=True, text=True, check=True)
    took, stated = map(int, done.stdout.split())
    assert took < stated + 2**26  # 64 MiB for what the allocator keeps
