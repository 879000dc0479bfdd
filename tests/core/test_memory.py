"""What a solve is said to take before it begins, held against what it takes."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from dataclasses import dataclass

import pytest
import torch

import pdframe
from pdframe import doctor
from pdframe import run as run_module
from pdframe.core.grid import Grid
from pdframe.core.memory import prior_bytes, solve_bytes, weights_bytes
from pdframe.part import PartOf

#: Runs the part named in its argument on a small scan, then on a large one; prints what the second took, and the word.
MEASURED = """
import ctypes, json, sys, torch, pdframe
from pdframe.core.grid import Grid
from pdframe.core.memory import own_bytes, solve_bytes
from pdframe.core.problem import Problem
from pdframe.part import PartOf

def case(edge):
    grid = Grid((edge,) * 3, (300 / edge,) * 3)
    operator = pdframe.build("operator", "cone_beam", grid=grid, views=6)
    part = PartOf("solver").read(json.loads(sys.argv[1]))
    prior = part.prior.build(grid=grid) if part.prior else None
    x = torch.zeros(1, 1, *grid.shape)
    x[..., edge // 4 : -edge // 4, edge // 4 : -edge // 4] = 0.02
    return Problem(operator, operator.forward(x)), part.build(grid=grid, operator=operator, prior=prior)

torch.set_num_threads(1)
pdframe.solve(*case(32))  # compiles, and starts what is started once
problem, solver = case(128)
ctypes.CDLL(None).malloc_trim(0)
before = own_bytes("VmRSS")
took = pdframe.solve(problem, solver).usage.peak_memory_bytes - before
print(took, solve_bytes(solver, problem.operator))
"""
PATCHES = {"name": "patch3d"}
DDS = {"name": "dds", "steps": 1, "cg": 2, "last_tilings": 1, "prior": PATCHES}
TV = {"name": "admm_tv", "steps": 2}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "solver",
    [TV, {"name": "pdhg_tv", "steps": 2}, DDS, DDS | {"start": TV}],
    ids=["admm_tv", "pdhg_tv", "dds", "dds after admm_tv"],
)
def test_a_solve_takes_what_is_said_before(solver):
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, json.dumps(solver)], capture_output=True, text=True, check=True
    )
    took, said = map(int, done.stdout.split())
    assert 0.7 < said / took < 1.6, f"{said / 1e6:.0f} MB said, {took / 1e6:.0f} MB taken"


#: Denoises a small volume, then a large one, with random weights; prints what the second took, and the word.
DENOISED = """
import ctypes, importlib, sys, torch
from pdframe.core.grid import Grid
from pdframe.core.memory import own_bytes, prior_bytes, weights_bytes
from pdframe.core.prior import prior_on

package, kind = sys.argv[1:]
network, prior = (importlib.import_module(f"{package}.{name}") for name in ("network", "prior"))
card = network.Card(unet=next(unet for name, unet in network.PRESETS.items() if name.startswith("compact")))
made = getattr(prior, kind)(card.network(), card)
torch.set_num_threads(1)

def denoise(edge):
    on = prior_on(made, Grid((edge,) * 3, (300 / edge,) * 3))
    with torch.no_grad():
        on.denoise(torch.zeros(1, 1, edge, edge, edge), torch.full((1,), 0.01))

denoise(32)
ctypes.CDLL(None).malloc_trim(0)
before = own_bytes("VmRSS")
denoise(96)
print(own_bytes("VmHWM") - before, prior_bytes(made, (1, 1, 96, 96, 96)) - weights_bytes(made))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "where", [("pdframe_volume", "VolumePrior"), ("pdframe_slice", "SlicePrior")], ids=["volume3d", "slice2d"]
)
def test_a_network_prior_takes_what_is_said_before(where):
    done = subprocess.run([sys.executable, "-c", DENOISED, *where], capture_output=True, text=True, check=True)
    took, said = map(int, done.stdout.split())
    assert 0.6 < said / took < 1.8, f"{said / 1e6:.0f} MB said, {took / 1e6:.0f} MB taken"


NATIVE = Grid((133, 256, 256), (2.5, 1.40625, 1.40625))


def scan(grid: Grid = NATIVE, views: int = 20):
    return pdframe.build("operator", "cone_beam", grid=grid, views=views)


def solver(table):
    part = PartOf("solver").read(table)
    return part.build(grid=NATIVE, operator=scan(), prior=part.prior.build() if part.prior else None)


def test_a_scan_at_its_native_grid_is_told_before_it_is_begun():
    """133 x 256 x 256 took 2.0 GiB more than the process had, with TV alone and with DDS after TV."""
    tv, after = (solve_bytes(solver(table), scan()) for table in (TV, DDS | {"start": TV}))
    assert 1.6 * 2**30 < tv <= after < 2.6 * 2**30
    said = []
    setting = types.SimpleNamespace(
        case=types.SimpleNamespace(problem=types.SimpleNamespace(operator=scan())),
        item=types.SimpleNamespace(x=torch.zeros(1)),
    )
    run_module._told_of_memory(setting, [solver(TV), solver(DDS)], types.SimpleNamespace(say=said.append))
    assert len(said) == 1 and said[0].startswith(f"memory: a solve takes about {tv / 2**30:.1f} GiB, ")


def test_the_doctor_takes_the_largest_of_the_methods():
    experiment = pdframe.load(
        {"dataset": {"name": "phantom"}, "operator": {"name": "cone_beam"}, "solver": {"name": "fdk"}, "compare": [TV]}
    )
    parts = {"item": types.SimpleNamespace(grid=NATIVE), "operator": scan()}
    found = doctor._PROOFS["memory"](experiment, parts)
    assert found.said.startswith(f"a solve takes about {solve_bytes(solver(TV), scan()) / 2**30:.2f} GiB")


def test_what_a_prior_takes_follows_its_batch_its_weights_and_its_gradient():
    small, large = (solver(DDS | {"prior": PATCHES | {"batch": n}}).prior for n in (4, 64))
    shape = (1, 1, 64, 64, 64)
    assert weights_bytes(small) == 4 * sum(p.numel() for p in small.network.parameters())
    assert weights_bytes(small) < prior_bytes(small, shape) < prior_bytes(large, shape)
    assert prior_bytes(large, shape) < prior_bytes(large, shape, gradient=True)
    exact, plain = ({"name": "dps", "prior": PATCHES, "jacobian": j} for j in ("exact", "identity"))
    assert solve_bytes(solver(exact), scan()) > solve_bytes(solver(plain), scan())


def test_a_solver_that_registers_nothing_counts_its_prior_and_many_views():
    @dataclass(frozen=True)
    class Own:
        prior: object = None

    alone, with_prior = Own(), Own(solver(DDS).prior)
    assert 8 * 4 * NATIVE.size < solve_bytes(alone, scan()) < solve_bytes(with_prior, scan())
    assert solve_bytes(alone, scan(views=720)) > 8 * 4 * 720 * scan().data_shape[1] * scan().data_shape[2]
