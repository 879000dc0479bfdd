"""Volumes drawn from the shipped prior alone in 10, 20, 50, 100 steps: how far they are from real ones, and a picture.

    python benchmarks/quality/generated_steps.py FOLDER

FOLDER holds train/ with scans that the prior was trained on. The paper's figure 5 asks how many steps a generated
volume needs. With a handful of scans to compare with, no distance of distributions of volumes means much; that of
distributions of single voxels, and of the difference between neighbours, does: the real scans differ among themselves
too, by what the first lines of the table's text say. Writes generated_steps.md and generated_steps.png beside itself.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from pdframe import build
from pdframe.core.grid import Grid
from pdframe.core.prior import prior_on
from pdframe.core.seeds import generator
from pdframe.ct.units import attenuation_to_hu
from pdframe.ct.windows import Window
from pdframe.report.slices import Row, draw_slices
from pdframe.sample import draw_sample

HERE = Path(__file__).parent
STEPS = (10, 20, 50, 100)
SEEDS = (0, 1)
GRID = Grid((64, 64, 64), (4.0, 4.0, 4.0))
CHESTS = ("chest_lidc_0002", "chest_lidc_0314", "chest_cmbcrc_01068", "chest_4dlung_113hm10395", "body_tcgathca_a4ma")


def values(x: Tensor) -> Tensor:
    return attenuation_to_hu(x).clamp(-1000, 1000).flatten()


def jumps(x: Tensor) -> Tensor:
    hu = attenuation_to_hu(x).clamp(-1000, 1000)[0, 0]
    return torch.cat([hu.diff(dim=axis).abs().flatten() for axis in range(3)])


def distance(a: Tensor, b: Tensor) -> float:
    """Wasserstein-1 distance of two samples of numbers: the mean difference of their quantiles."""
    levels = torch.linspace(0, 1, 1001)
    return float((torch.quantile(a[::3], levels) - torch.quantile(b[::3], levels)).abs().mean())


def main(folder: Path) -> None:
    prior = prior_on(build("prior", "patch3d"), GRID)
    scans = []
    for name in CHESTS:
        path = folder / "train" / f"{name}.nii.gz"
        dataset = build("dataset", "nifti", path=path, shape=GRID.shape, spacing_mm=GRID.spacing)
        scans.append(dataset.load(name).x)
    rows, lines = [Row(CHESTS[0], scans[0])], []
    for steps in STEPS:
        start, drawn = time.perf_counter(), []
        for seed in SEEDS:
            with torch.no_grad():
                *_, x = draw_sample(prior, GRID.shape, steps=steps, rng=generator(seed, "generated"))
            drawn.append(x.clamp_min(0))
        seconds = (time.perf_counter() - start) / len(SEEDS)
        rows.append(Row(f"{steps} steps", drawn[0]))
        found = [
            sum(distance(f(x), f(s)) for x in drawn for s in scans) / len(drawn) / len(scans) for f in (values, jumps)
        ]
        lines.append(f"| {steps} | {found[0]:.0f} | {found[1]:.1f} | {seconds:.0f} |")
        print(lines[-1], flush=True)
    pairs = [(a, b) for i, a in enumerate(scans) for b in scans[:i]]
    real = [sum(distance(f(a), f(b)) for a, b in pairs) / len(pairs) for f in (values, jumps)]
    draw_slices(HERE / "generated_steps.png", rows, GRID, window=Window(-1000, 400))
    (HERE / "generated_steps.md").write_text(
        "# Steps of a generated volume\n\n"
        f"64^3 voxels of 4 mm, shipped weights, {len(SEEDS)} volumes for each number of steps against {len(scans)}\n"
        "training chests (`generated_steps.py`). Distance: Wasserstein-1 of the values of single voxels, and of the\n"
        f"differences of neighbours, in HU; among the chests themselves {real[0]:.0f} and {real[1]:.1f}.\n\n"
        "| steps | values, HU | differences, HU | seconds a volume |\n|---|---|---|---|\n" + "\n".join(lines) + "\n\n"
        "![Slices](generated_steps.png)\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
