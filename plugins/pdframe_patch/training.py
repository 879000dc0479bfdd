"""Training the patch prior: Algorithm 2 of arXiv 2512.18161 with an EDM loss, plugged into `pdframe.train`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pdframe.core.grid import Grid
from pdframe.core.seeds import generator
from pdframe.hooks import Config
from pdframe.train import Trainable
from pdframe_patch.network import PRESETS, Inputs, PatchNetwork, conditions, coordinates
from pdframe_patch.volumes import GridRange, Scan, ScanFile, Shelf, Volume, read_scans, volume_on
from pdframe_patch.weights import Card, load_weights, save_weights


class PatchTrainingConfig(Config):
    """What the patch prior is trained on and how its draws are made; the loop's settings are in [train]."""

    root: Path = Field(description="folder that holds the scans")
    scans: list[ScanFile]
    validation: list[ScanFile] = Field(default=[], description="scans of other patients")
    preset: Literal["paper", "compact", "folded", "tiny"] = "compact"
    start_from: Literal["", "shipped"] | Path = Field("", description="checkpoint whose weights to start from")
    precondition: Literal["edm", "vp"] = "edm"
    patch: int = Field(32, ge=8)
    sigma_mean: float = Field(-0.8, description="mean of log sigma in network units (500 HU)")
    sigma_deviation: float = Field(1.5, gt=0)
    inputs: Inputs = Inputs()
    grids: GridRange = GridRange()
    slots: int = Field(24, ge=1, description="volumes held in memory")
    refresh_steps: int = Field(480, ge=1, description="steps after which each of them has been replaced")
    seed: int = 0
    licence: str = ""
    compute: str = Field("", description="what the training took, for later comparisons at equal compute")

    def build(self) -> PatchTraining:
        card = Card(
            patch=self.patch,
            precondition=self.precondition,
            inputs=self.inputs,
            unet=PRESETS[self.preset],
            spacing_range_mm=self.grids.spacing_mm,
            licence=self.licence,
            data=[{"file": s.file, "sha256": s.sha256, "cite": s.cite} for s in self.scans],
        )
        if self.start_from:
            network, _ = load_weights(self.start_from)
            network.requires_grad_(True).train()
        else:
            # The initial weights are a function of the seed: the global generator is borrowed and put back.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                network = card.network()
        return PatchTraining(
            network.to(memory_format=torch.channels_last_3d),
            card,
            self,
            read_scans(self.root, self.scans),
            read_scans(self.root, self.validation),
        )


@dataclass(frozen=True)
class PatchTraining(Trainable):
    """Draws noisy patches with their exact noisy context, and scores a network on them."""

    network: PatchNetwork
    card: Card
    settings: PatchTrainingConfig
    scans: list[Scan]
    held_apart: list[Scan]

    @cached_property
    def shelf(self) -> Shelf:
        s = self.settings
        return Shelf(self.scans, s.grids, self.card, s.seed, s.slots, s.refresh_steps)

    def loss(self, network: nn.Module, step: int, items: range, device: torch.device) -> Tensor:
        """Mean loss of the step's items; item k of step t is the same draw however the batch is split."""
        draws = []
        for item in items:
            rng = generator(self.settings.seed, "item", step, item)
            slot = int(torch.randint(self.settings.slots, (1,), generator=rng))
            sigma = math.exp(self.settings.sigma_mean + self.settings.sigma_deviation * _normal(rng))
            volume = self.shelf.volume(slot, step)
            draws.append(draw(volume, _start(volume, self.card, rng), sigma, self.card, rng))
        return self._weighted_error(network, draws, device).mean()

    @torch.no_grad()
    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Weighted loss and RMSE in HU on fixed draws from held-apart patients, for a ladder of noise levels."""
        result, total = {}, []
        for sigma_hu in (25, 50, 100, 200, 400, 1000):
            sigma = sigma_hu / self.card.scale_hu
            losses, squares = [], []
            for index, volume in enumerate(self._validation_volumes):
                rng = generator(0, "validation", sigma_hu, index)
                draws = [draw(volume, _start(volume, self.card, rng), sigma, self.card, rng) for _ in range(8)]
                losses.append(self._weighted_error(network, draws, device))
                squares.append(losses[-1] / _loss_weight(torch.tensor(sigma), self.card))
            total.append(float(torch.cat(losses).mean()))
            result[f"rmse_hu_at_{sigma_hu}"] = float(torch.cat(squares).mean().sqrt()) * self.card.scale_hu
        return {"loss": sum(total) / len(total), **result} if self._validation_volumes else {}

    @cached_property
    def _validation_volumes(self) -> list[Volume]:
        """Each held-apart scan on the protocol's grid."""
        g = self.settings.grids
        volumes = []
        for scan in self.held_apart:
            centre = [(low + high) / 2 + c for (low, high), c in zip(scan.body_mm, scan.grid.centre, strict=True)]
            grid = Grid((g.protocol_voxels,) * 3, (g.protocol_mm,) * 3, tuple(centre))
            volumes.append(volume_on(scan.on(grid, self.card), grid.spacing, self.card.patch))
        return volumes

    def _weighted_error(self, network: nn.Module, draws: list[Draw], device: torch.device) -> Tensor:
        batch = [torch.stack(part).to(device) for part in zip(*[d.tensors() for d in draws], strict=True)]
        clean, noisy, sigma, context, context_sigma, where, steering, inside = batch
        estimate = network(noisy, sigma, context, context_sigma, where, steering)
        error = ((estimate - clean) ** 2 * inside).flatten(1).mean(1)
        return error * _loss_weight(sigma, self.card)

    def export(self, network: nn.Module, path: Path, report: dict[str, object]) -> None:
        card = self.card.model_copy(
            update={"training": {**report, "compute": self.settings.compute}, "patch_flops": float(patch_flops(self))}
        )
        save_weights(path, network, card)


@dataclass(frozen=True)
class Draw:
    """One training example; tensors have no batch axis."""

    clean: Tensor
    noisy: Tensor
    sigma: Tensor
    context: Tensor
    context_sigma: Tensor
    where: Tensor
    steering: Tensor
    inside: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(vars(self).values())


def draw(volume: Volume, start: tuple[int, int, int], sigma: float, card: Card, rng: torch.Generator) -> Draw:
    """A noisy patch beginning at `start` (it may reach into the air around the volume) and its noisy context."""
    patch, shape = card.patch, tuple(volume.values.shape)
    low = [max(0, s) for s in start]
    high = [min(n, s + patch) for n, s in zip(shape, start, strict=True)]
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    local = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
    clean = torch.full((patch,) * 3, card.air)
    clean[local] = volume.values[box]
    inside = torch.zeros((patch,) * 3)
    inside[local] = 1
    noise = torch.randn((patch,) * 3, generator=rng)
    context = volume.context + sigma * volume.context_noise.draw(noise[local], low, rng)
    return Draw(
        clean[None],
        (clean + sigma * noise)[None],
        torch.tensor(sigma),
        context[None],
        torch.tensor(sigma * volume.noise_gain),
        coordinates(torch.tensor([start]), patch, shape)[0],
        conditions(volume.spacing_mm, shape),
        inside[None],
    )


def _start(volume: Volume, card: Card, rng: torch.Generator) -> tuple[int, int, int]:
    """Where a patch of a random partition lies; one of pure air is redrawn four times out of five."""
    while True:
        start = tuple(int(torch.randint(1 - card.patch, n, (1,), generator=rng)) for n in volume.values.shape)
        box = volume.values[tuple(slice(max(0, s), s + card.patch) for s in start)]
        if float(box.max()) > card.air + 0.4 or float(torch.rand((), generator=rng)) < 0.2:
            return start


def _loss_weight(sigma: Tensor, card: Card) -> Tensor:
    """EDM's lambda(sigma), eq. 8; for VP the plain error of epsilon."""
    if card.precondition == "vp":
        return sigma**-2
    return (sigma**2 + card.deviation**2) / (sigma * card.deviation) ** 2


def patch_flops(training: PatchTraining) -> int:
    """Floating-point operations of one patch, by torch's counter."""
    from torch.utils.flop_counter import FlopCounterMode

    patch = training.card.patch
    cube = torch.zeros(1, 1, patch, patch, patch)
    one = torch.ones(1)
    network = training.network
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(cube, one, cube, one, cube.expand(-1, 3, -1, -1, -1), torch.zeros(1, 6))
    return counter.get_total_flops()


def _normal(rng: torch.Generator) -> float:
    return float(torch.randn((), generator=rng))
