"""Projector speed: the column-separable form and the torch form against RTK's CPU Joseph pair, in one run.

    python benchmarks/speed/projector.py [--size 128 256] [--threads 2] [--rounds 5]

Prints the table and writes projector.md and projector.json beside this file. Geometry: 200 mm cube of N^3 voxels,
source-axis 1000 mm, source-panel 1500 mm, 20 views over 360 degrees, panel (1.5 N)^2 with pixel = 1.5 voxels, float32.
A time is the best of several calls, taken in turns so that a disturbance hits all rows alike. Ours include every copy
between ordinary tensors; RTK's are of its filter alone, its images being made beforehand.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pdframe_ray.operator import ConeBeam

from pdframe.core.grid import Grid
from pdframe.ct import geometry as ct

FOLDER = Path(__file__).parent
SOD, SDD, VIEWS = 1000.0, 1500.0, 20
NAMES = {"columns": "pdframe, column-separable (numba)", "planes": "pdframe, planes (torch)", "rtk": "RTK Joseph (CPU)"}

Call = Callable[[], float]


def scan(size: int) -> tuple[ct.Geometry, Grid]:
    """The measured geometry at N = size."""
    voxel = 200.0 / size
    bench = ct.Bench((3 * size // 2,) * 2, (1.5 * voxel,) * 2, SOD, SDD)
    return ct.circular(bench, VIEWS), Grid((size,) * 3, (voxel,) * 3)


def contestants(size: int, threads: int) -> tuple[dict[str, tuple[Call, Call]], dict[str, np.ndarray]]:
    """For each row the timed calls of A and A' on one volume, and A x for a check that all compute one thing."""
    geometry, grid = scan(size)
    rng = torch.Generator().manual_seed(0)
    x = torch.zeros(1, 1, *grid.shape)
    # RTK treats rays that graze the outermost voxels differently; zeros there make the results comparable.
    x[..., 2:-2, 2:-2, 2:-2] = torch.rand([size - 4] * 3, generator=rng)
    y = torch.rand(1, 1, VIEWS, *geometry.panel, generator=rng)
    calls, results = {}, {}
    for form in ("columns", "planes"):
        operator = ConeBeam(geometry, grid, "auto" if form == "columns" else "planes")
        if form == "columns" and operator._table_for(x) is None:
            continue  # no numba: "auto" would be the torch form once more
        calls[form] = _timed(operator.forward, x), _timed(operator.adjoint, y)
        results[form] = operator.forward(x)[0, 0].numpy()
    try:
        calls["rtk"], results["rtk"] = rtk_calls(x[0, 0].numpy(), y[0, 0].numpy(), grid.spacing[0], threads)
    except ImportError:
        pass
    return calls, results


def _timed(function: Callable, value: torch.Tensor) -> Call:
    def call() -> float:
        start = time.perf_counter()
        function(value)
        return time.perf_counter() - start

    return call


def rtk_calls(
    volume: np.ndarray, data: np.ndarray, voxel: float, threads: int, sdd: float = SDD
) -> tuple[tuple[Call, Call], np.ndarray]:
    """The same for RTK. Its scanner turns about y, so our (x, y, z) is its (x, -z, y)."""
    import itk
    from itk import RTK as rtk

    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(threads)
    geometry = rtk.ThreeDCircularProjectionGeometry.New()
    for angle in np.arange(len(data)) * 360.0 / len(data):
        geometry.AddProjection(SOD, sdd, float(angle))
    image = rtk_image(itk, volume.transpose(1, 0, 2)[::-1], (voxel,) * 3)
    pixel = voxel * sdd / SOD
    views = rtk_image(itk, data, (pixel, pixel, 1.0))
    kind = itk.Image[itk.F, 3]

    def run(filter_type: type, first: object, second: object) -> tuple[float, object]:
        step = filter_type.New()
        step.SetInput(0, first)
        step.SetInput(1, second)
        step.SetGeometry(geometry)
        start = time.perf_counter()
        step.Update()
        return time.perf_counter() - start, step.GetOutput()

    def forward() -> tuple[float, object]:
        blank = rtk_image(itk, np.zeros_like(data), (pixel, pixel, 1.0))
        return run(rtk.JosephForwardProjectionImageFilter[kind, kind], blank, image)

    def back() -> float:
        blank = rtk_image(itk, np.zeros(image.shape, np.float32), (voxel,) * 3)
        return run(rtk.JosephBackProjectionImageFilter[kind, kind], blank, views)[0]

    return (lambda: forward()[0], back), itk.array_from_image(forward()[1])


def rtk_image(itk: object, array: np.ndarray, spacing: tuple[float, float, float]) -> object:
    """An ITK image centred at 0; `spacing` in ITK's axis order, the reverse of the array's."""
    image = itk.image_from_array(np.ascontiguousarray(array, dtype=np.float32))
    image.SetSpacing(spacing)
    image.SetOrigin([-(n - 1) / 2 * s for n, s in zip(array.shape[::-1], spacing, strict=True)])
    return image


def measure(size: int, threads: int, rounds: int) -> dict[str, object]:
    """Best seconds of every row at one size, and how far the rows agree with the torch form."""
    calls, results = contestants(size, threads)
    best = {name: [float("inf"), float("inf")] for name in calls}
    for _ in range(rounds):
        for name, pair in calls.items():
            for k, call in enumerate(pair):
                best[name][k] = min(best[name][k], call())
    gc.collect()
    truth = results["planes"]
    agreement = {name: float(np.linalg.norm(r - truth) / np.linalg.norm(truth)) for name, r in results.items()}
    return {"size": size, "seconds": best, "difference_from_torch": agreement}


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def cpu_features() -> str:
    """The vector instructions that matter here."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown"
    return "AVX-512" if "avx512f" in text else "AVX2" if "avx2" in text else "baseline"


def table(record: dict[str, object]) -> str:
    """The record as Markdown."""
    lines = [
        "# Projector speed",
        "",
        f"{record['date']}, {record['cpu']} ({record['features']}), {record['threads']} threads, "
        f"torch {record['torch']}, float32, "
        f"load average {record['load']} before the run. Geometry and rules: `projector.py`. "
        "Seconds; a ratio is RTK's time divided by the row's.",
        "",
        "| N^3 x 20 views | implementation | A s | A' s | A vs RTK | A' vs RTK | rel. L2 to torch form |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in record["results"]:
        rtk = result["seconds"].get("rtk")
        for key, name in NAMES.items():
            seconds = result["seconds"].get(key)
            if seconds is None:
                lines.append(f"| {result['size']} | {name} | not installed | | | | |")
                continue
            ratios = [f"{r / s:.1f}x" for r, s in zip(rtk, seconds, strict=True)] if rtk else ["-", "-"]
            difference = result["difference_from_torch"][key]
            cells = [str(result["size"]), name, *(f"{s:.4f}" for s in seconds), *ratios, f"{difference:.1e}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="print only, write nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    others = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    record = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_name(),
        "features": cpu_features(),
        "threads": options.threads,
        "torch": torch.__version__,
        "load": others,
        "results": [measure(size, options.threads, options.rounds) for size in options.size],
    }
    print(table(record))
    if not options.dry:
        (FOLDER / "projector.json").write_text(json.dumps(record, indent=1) + "\n")
        (FOLDER / "projector.md").write_text(table(record))


if __name__ == "__main__":
    main()
