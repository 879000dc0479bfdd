"""Volumes drawn from a prior alone: what it has learned, without a measurement; the nearest known one beside each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pdframe import machine, runfolder
from pdframe.config import Sampling, dump
from pdframe.core.budget import Meter, Usage, counted_prior
from pdframe.core.checkpoint import fingerprint
from pdframe.core.grid import Grid
from pdframe.core.prior import Prior, denoised, prior_on
from pdframe.core.problem import Dataset
from pdframe.core.schedule import edm_sigmas
from pdframe.core.seeds import generator, normal
from pdframe.ct.body import body_mask
from pdframe.ct.nifti import read_nifti, write_nifti
from pdframe.ct.resample import fit_grid, overlap, resample
from pdframe.ct.units import WATER
from pdframe.ct.windows import Window
from pdframe.mistakes import ConfigError, as_mistake
from pdframe.report.progress import Progress, Silent, on_console

#: Share of the samples' height that a known scan must cover to be compared with them.
LEAST_HEIGHT = 0.5


@dataclass(frozen=True)
class Nearest:
    """The known volume that is closest to a sample, on the sample's grid, and how far it is in its own field of
    view (HU, root mean square)."""

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
    rounds: int = 1,
    tilings: int = 1,
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """A sample (1, 1, *shape) in the unit of x, by DDIM steps down the prior's whole range of noise.

    Yields the estimate E[x0 | x] of every step; the last is the sample. eta is the share of fresh noise in a step
    (Song et al. 2021, eq. 12, in the variance-exploding form). The K partitions of a level (arXiv 2512.18161) may be
    read in two ways: `tilings` averages so many calls of the denoiser, each with a tiling of its own; `rounds` goes
    through the level so often, with noise put back in between. The prior works on `device`; the noise is drawn where
    `rng` lives, and is the same on any device.
    """
    lowest, highest = prior.sigma_range
    sigmas = (*edm_sigmas(highest, lowest, steps), 0.0)
    x = torch.full((1, 1, *shape), prior.mean, device=device)
    x = x + sigmas[0] * normal(x, rng)
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        for left in reversed(range(rounds)):
            x0 = denoised(prior, x, sigma, tilings=tilings, rng=rng)
            x = x0 + sigma_next * (math.sqrt(1 - eta**2) * (x - x0) / sigma + eta * normal(x, rng))
            if left:
                x = x + math.sqrt(sigma**2 - sigma_next**2) * normal(x, rng)
        yield x0


def sample(sampling: Sampling, *, out_dir: Path, console: bool = False) -> list[dict[str, Any]]:
    """Draws the volumes that `sampling` asks for into `out_dir`: NIfTI files, one picture, `record.json`.

    A volume that is there already (same settings) is kept, so a stopped command goes on where it was. ConfigError if
    the folder belongs to other settings or weights or holds files that are of no samples, or if a part cannot be built;
    FolderBusy if it is in use.
    """
    progress = on_console() if console else Silent()
    with runfolder.held(out_dir, "sample"):
        return _sample(sampling, out_dir, progress)


def _sample(sampling: Sampling, out_dir: Path, progress: Progress) -> list[dict[str, Any]]:
    device = machine.chosen(sampling.device)
    grid = Grid(sampling.shape, sampling.spacing_mm)
    with as_mistake("prior"):
        prior = prior_on(sampling.prior.build(), grid)
    with as_mistake("nearest"):
        known = sampling.nearest.build() if sampling.nearest else None
    settings, weights = dump(sampling), fingerprint(prior)
    config, earlier = out_dir / runfolder.CONFIG, runfolder.read_json(out_dir / runfolder.RECORD) or {}
    if config.is_file() and config.read_text() != settings:
        raise ConfigError(f"{out_dir} holds samples drawn with other settings: choose another folder with --out")
    if earlier.get("prior_sha256", weights) != weights:
        raise ConfigError(f"{out_dir} holds samples of other weights: choose another folder with --out")
    record = {"prior_sha256": weights, "device": str(device), **machine.provenance()}
    rows = {row["file"]: row for row in earlier.get("samples", ())}
    if not earlier:  # the first file of all, for it says whose folder this is
        runfolder.write_json(out_dir / runfolder.RECORD, {**record, "status": "running", "samples": []})
    runfolder.write(config, settings)
    for index in range(sampling.samples):
        path = out_dir / f"sample_{index}.nii.gz"
        if not path.is_file() or path.name not in rows:
            spent = _draw_one(sampling, index, prior, path, device, progress)
            rows[path.name] = {"file": path.name, "seed": sampling.seed, "index": index, "usage": asdict(spent)}
            runfolder.write_json(
                out_dir / runfolder.RECORD, {**record, "status": "running", "samples": [*rows.values()]}
            )
    volumes = [read_nifti(out_dir / name).x for name in rows]
    neighbours = [nearest(x, grid, known, progress.say) if known else None for x in volumes]
    found = [row | _told(neighbour) for row, neighbour in zip(rows.values(), neighbours, strict=True)]
    _draw(out_dir / runfolder.FIGURE, volumes, neighbours, grid, Window(*sampling.report.window_hu))
    runfolder.write_json(out_dir / runfolder.RECORD, {**record, "status": "done", "samples": found})
    progress.say(f"picture {out_dir / runfolder.FIGURE}")
    return found


def _draw_one(
    sampling: Sampling, index: int, prior: Prior, path: Path, device: torch.device, progress: Progress
) -> Usage:
    """Writes one volume; what it cost."""
    progress.started(f"sample {index}", sampling.steps)
    rng, meter = generator(sampling.seed, "sample", index), Meter(device)
    shape, counted = tuple(sampling.shape), counted_prior(prior, meter)
    with torch.no_grad(), meter.clock("seconds"):
        how = {"steps": sampling.steps, "eta": sampling.eta, "rounds": sampling.rounds, "tilings": sampling.tilings}
        estimates = draw_sample(counted, shape, **how, rng=rng, device=device)
        for done, estimate in enumerate(estimates, 1):
            progress.stepped(done)
            x = estimate
    write_nifti(path, x.clamp_min(0).cpu(), Grid(shape, sampling.spacing_mm))
    progress.ended(f"wrote {path}")
    return meter.usage


def nearest(
    x: Tensor, grid: Grid, known: Dataset, on_skip: Callable[[str], None] = lambda text: None
) -> Nearest | None:
    """The item of `known` with the smallest root-mean-square difference from x, bodies laid centre on centre.

    Each is compared within its own field of view: beyond it nothing is known of it, and the air that fills the grid up
    would be most of what is compared. So a scan of less than half the grid's height is left out, as is one that cannot
    be read, and `on_skip` told why; None if no other is there.
    """
    best: Nearest | None = None
    for name in known.names():
        try:
            item = known.load(name)
            fitted = fit_grid(item.grid, body_mask(item.x, item.grid), grid.shape, grid.spacing)
        except ValueError as error:
            on_skip(f"not compared with {name}: {error}")
            continue
        along_z, along_y, along_x = (overlap(fitted, item.grid, axis) for axis in range(3))
        if float(along_z.mean()) < LEAST_HEIGHT:
            on_skip(f"not compared with {name}: it covers less than half of the samples' height")
            continue
        candidate = resample(item.x, item.grid, fitted)
        seen = along_z[:, None, None] * along_y[:, None] * along_x > 0.5
        rmse = float((candidate - x)[0, 0][seen].square().mean().sqrt()) / WATER * 1000
        if best is None or rmse < best.rmse_hu:
            best = Nearest(name, candidate, rmse)
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
