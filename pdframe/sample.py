"""Volumes drawn from a prior alone: what it has learned, without a measurement; the nearest known one beside each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdframe import machine, runfolder
from pdframe.config import Sampling, dump
from pdframe.core.grid import Grid
from pdframe.core.prior import Prior, prior_on
from pdframe.core.problem import Dataset
from pdframe.core.schedule import edm_sigmas
from pdframe.core.seeds import generator, normal
from pdframe.ct.body import body_mask
from pdframe.ct.nifti import read_nifti, write_nifti
from pdframe.ct.resample import fit_grid, resample
from pdframe.ct.units import WATER
from pdframe.ct.windows import Window
from pdframe.report.progress import Silent, on_console


@dataclass(frozen=True)
class Nearest:
    """The known volume that is closest to a sample, on the sample's grid, and how far it is (root mean square, HU)."""

    name: str
    x: Tensor
    rmse_hu: float


def draw_sample(
    prior: Prior,
    shape: tuple[int, ...],
    *,
    steps: int,
    rng: torch.Generator,
    eta: float = 0.85,
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """A sample (1, 1, *shape) in the unit of x, by DDIM steps down the prior's whole range of noise.

    Yields the estimate E[x0 | x] of every step; the last is the sample. eta is the share of fresh noise in a step
    (Song et al. 2021, eq. 12, in the variance-exploding form). The prior works on `device`; the noise is drawn where
    `rng` lives, and is the same on any device.
    """
    lowest, highest = prior.sigma_range
    sigmas = (*edm_sigmas(highest, lowest, steps), 0.0)
    x = torch.full((1, 1, *shape), prior.mean, device=device)
    x = x + sigmas[0] * normal(x, rng)
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        x0 = prior.denoise(x, x.new_full((1,), sigma), rng=rng)
        x = x0 + sigma_next * (math.sqrt(1 - eta**2) * (x - x0) / sigma + eta * normal(x, rng))
        yield x0


def sample(sampling: Sampling, *, out_dir: Path, console: bool = False) -> list[dict[str, Any]]:
    """Draws the volumes that `sampling` asks for into `out_dir`: NIfTI files, one picture, `record.json`.

    A volume that is there already (same settings) is kept, so a stopped command goes on where it was.
    """
    device = machine.chosen(sampling.device)
    progress = on_console() if console else Silent()
    settings = dump(sampling)
    config = out_dir / runfolder.CONFIG
    if config.is_file() and config.read_text() != settings:
        raise ValueError(f"{out_dir} holds samples drawn with other settings: choose another folder with --out")
    runfolder.write(config, settings)
    grid = Grid(sampling.shape, sampling.spacing_mm)
    prior = prior_on(sampling.prior.build(), grid)
    rows, volumes = [], []
    for index in range(sampling.samples):
        path = out_dir / f"sample_{index}.nii.gz"
        if not path.is_file():
            progress.started(f"sample {index}", sampling.steps)
            rng = generator(sampling.seed, "sample", index)
            with torch.no_grad():
                estimates = draw_sample(prior, grid.shape, steps=sampling.steps, rng=rng, device=device)
                for done, estimate in enumerate(estimates, 1):
                    progress.stepped(done, {})
                    x = estimate
            write_nifti(path, x.clamp_min(0).cpu(), grid)
            progress.ended(f"wrote {path}")
        volumes.append(read_nifti(path).x)
        rows.append({"file": path.name, "seed": sampling.seed, "index": index})
    known = sampling.nearest.build() if sampling.nearest else None
    neighbours = [nearest(x, grid, known) if known else None for x in volumes]
    rows = [row | _told(found) for row, found in zip(rows, neighbours, strict=True)]
    _draw(out_dir / runfolder.FIGURE, volumes, neighbours, grid, Window(*sampling.report.window_hu))
    runfolder.write_json(out_dir / runfolder.RECORD, {"samples": rows})
    progress.say(f"picture {out_dir / runfolder.FIGURE}")
    return rows


def nearest(x: Tensor, grid: Grid, known: Dataset) -> Nearest:
    """The item of `known` with the smallest root-mean-square difference from x, bodies laid centre on centre."""
    best: Nearest | None = None
    for name in known.names():
        item = known.load(name)
        fitted = fit_grid(item.grid, body_mask(item.x, item.grid), grid.shape, grid.spacing)
        candidate = resample(item.x, item.grid, fitted)
        rmse = float((candidate - x).square().mean().sqrt()) / WATER * 1000
        if best is None or rmse < best.rmse_hu:
            best = Nearest(name, candidate, rmse)
    if best is None:
        raise ValueError("the dataset to compare with has no item")
    return best


def _told(found: Nearest | None) -> dict[str, Any]:
    return {} if found is None else {"nearest": found.name, "nearest_rmse_hu": round(found.rmse_hu, 1)}


def _draw(path: Path, volumes: list[Tensor], neighbours: list[Nearest | None], grid: Grid, window: Window) -> None:
    from pdframe.report.slices import Row, draw_slices

    rows = []
    for index, (x, found) in enumerate(zip(volumes, neighbours, strict=True)):
        rows.append(Row(f"sample {index}", x))
        if found is not None:
            rows.append(Row(f"nearest: {found.name}\n{found.rmse_hu:.0f} HU away", found.x))
    draw_slices(path, rows, grid, window=window)
