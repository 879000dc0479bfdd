"""Peak memory of `dps` with the gradient taken through the patch prior, and how it grows with the volume.

    python benchmarks/speed/dps_memory.py [--threads 2] [--edges 64 96 128] [--limit-gib 8]

For each cube a process of its own: the shipped prior, 20 cone-beam views, one step of
`dps`. Memory is the process's high-water mark (VmHWM), libraries included; on a GPU also what torch held there. A
line through the rows extrapolates to 256^3. Writes dps_memory.md; fails if 128^3 is above the limit.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

import pdframe
from pdframe.core.budget import Budget
from pdframe.core.grid import Grid
from pdframe.core.memory import own_bytes
from pdframe.core.noise import GaussianNoise
from pdframe.core.problem import Problem
from pdframe.core.seeds import generator
from pdframe.core.solve import solve

GIB = 2**30


def measure(edge: int, jacobian: str, threads: int) -> dict[str, float]:
    """One step at edge^3, in this process."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    grid = Grid((edge,) * 3, (352 / edge,) * 3)
    operator = pdframe.build("operator", "cone_beam", grid=grid, views=20)
    prior = pdframe.build("prior", "patch3d")
    solver = pdframe.build("solver", "dps", prior=prior, steps=2, sigma_max=1.0, jacobian=jacobian)
    y = torch.rand(1, 1, *operator.data_shape, generator=generator(0)).to(device)
    before = high_water()
    began = time.perf_counter()
    usage = solve(Problem(operator, y, GaussianNoise(0.1)), solver, budget=Budget(steps=1)).usage
    return {
        "edge": edge,
        "before": before,
        "peak": high_water(),
        "gpu": torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
        "seconds": time.perf_counter() - began,
        "network_seconds": usage.network_seconds,
    }


def high_water() -> int:
    if (peak := own_bytes("VmHWM")) is not None:
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def alone(edge: int, jacobian: str, threads: int) -> dict[str, float]:
    """`measure` in a fresh process: a high-water mark never falls."""
    command = [sys.executable, __file__, "--one", str(edge), "--jacobian", jacobian, "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def through(rows: list[dict[str, float]], edge: int) -> float:
    """The peak at edge^3 on the least-squares line of peak against voxels."""
    voxels = torch.tensor([[1.0, row["edge"] ** 3] for row in rows], dtype=torch.float64)
    peaks = torch.tensor([row["peak"] for row in rows], dtype=torch.float64)
    offset, slope = torch.linalg.lstsq(voxels, peaks).solution.tolist()
    return offset + slope * edge**3


def table(rows: dict[str, list[dict[str, float]]], threads: int) -> str:
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {threads} threads"
    lines = [
        "# Peak memory of one `dps` step with `patch3d`\n",
        f"{time.strftime('%Y-%m-%d')}, {machine}, torch {torch.__version__}, shipped weights, 20 cone-beam views.\n",
        "| gradient | volume | peak GiB | of which before the solve | GPU GiB | network seconds |",
        "|---|---|---|---|---|---|",
    ]
    for jacobian, measured in rows.items():
        lines += [
            f"| {jacobian} | {r['edge']}^3 | {r['peak'] / GIB:.2f} | {r['before'] / GIB:.2f} | {r['gpu'] / GIB:.2f} "
            f"| {r['network_seconds']:.1f} |"
            for r in measured
        ]
        if len(measured) > 1:
            lines.append(f"| {jacobian} | 256^3, extrapolated | {through(measured, 256) / GIB:.1f} | | | |")
    lines.append(
        "\nA busy machine lengthens the seconds, which hold the recomputation and the gradient, not the memory."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--edges", type=int, nargs="+", default=[64, 96, 128])
    parser.add_argument("--limit-gib", type=float, default=8.0)
    parser.add_argument("--one", type=int, help="measure one cube here and print it as JSON")
    parser.add_argument("--jacobian", nargs="+", default=["exact", "identity"], choices=["exact", "identity"])
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.jacobian[0], options.threads)))
        return
    rows = {j: [alone(edge, j, options.threads) for edge in options.edges] for j in options.jacobian}
    text = table(rows, options.threads)
    print(text)
    Path(__file__).with_suffix(".md").write_text(text)
    over = [
        r for measured in rows.values() for r in measured if r["edge"] == 128 and r["peak"] > options.limit_gib * GIB
    ]
    if over:
        raise SystemExit(f"128^3 took {over[0]['peak'] / GIB:.2f} GiB, more than {options.limit_gib}")


if __name__ == "__main__":
    main()
