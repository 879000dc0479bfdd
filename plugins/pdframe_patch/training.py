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

from pdframe.core.seeds import generator
from pdframe.ct.denoiser_training import DenoiserTrainingConfig, validation_ladder, weighted
from pdframe.ct.training_set import Scan, Shelf, Volume, protocol_volume
from pdframe.train import Trainable
from pdframe_patch.network import PRESETS, Inputs, PatchNetwork, conditions, coordinates
from pdframe_patch.volumes import PatchVolume, with_context
from pdframe_patch.weights import Card, shipped_weights


class PatchTrainingConfig(DenoiserTrainingConfig):
    """What the patch prior is trained on and how its draws are made; the loop's settings are in [train]."""

    preset: Literal["paper", "compact", "folded", "tiny"] = "compact"
    patch: int = Field(32, ge=8)
    inputs: Inputs = Inputs()

    def build(self) -> PatchTraining:
        card = self.card(Card, PRESETS[self.preset], patch=self.patch, inputs=self.inputs)
        return PatchTraining(self.network(card, shipped_weights()), card, self, *self.read())


@dataclass(frozen=True)
class PatchTraining(Trainable):
    """Draws noisy patches with their exact noisy context, and scores a network on them."""

    network: PatchNetwork
    card: Card
    settings: PatchTrainingConfig
    scans: list[Scan]
    held_apart: list[Scan]

    @cached_property
    def shelf(self) -> Shelf[PatchVolume]:
        s = self.settings
        return Shelf(self.scans, s.grids, self.card, s.seed, self._prepare, s.slots, s.refresh_steps)

    def loss(self, network: nn.Module, step: int, items: range, device: torch.device) -> Tensor:
        """Mean loss of the step's items; item k of step t is the same draw however the batch is split."""
        draws = []
        for item in items:
            rng = generator(self.settings.seed, "item", step, item)
            slot = int(torch.randint(self.settings.slots, (1,), generator=rng))
            sigma = self.settings.draw_sigma(rng)
            volume = self.shelf.volume(slot, step)
            draws.append(draw(volume, _start(volume, self.card, rng), sigma, self.card, rng))
        sigmas = torch.stack([d.sigma for d in draws]).to(device)
        return weighted(self._squares(network, draws, device), sigmas, self.card).mean()

    @torch.no_grad()
    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Weighted loss and RMSE in HU on fixed draws from held-apart patients, for a ladder of noise levels."""

        def squares(volume: PatchVolume, sigma: float, rng: torch.Generator) -> Tensor:
            draws = [draw(volume, _start(volume, self.card, rng), sigma, self.card, rng) for _ in range(8)]
            return self._squares(network, draws, device)

        return validation_ladder(self._validation_volumes, self.card, squares)

    @cached_property
    def _validation_volumes(self) -> list[PatchVolume]:
        """Each held-apart scan on the protocol's grid."""
        return [self._prepare(protocol_volume(s, self.settings.grids, self.card)) for s in self.held_apart]

    def _prepare(self, volume: Volume) -> PatchVolume:
        return with_context(volume, self.card.patch)

    def _squares(self, network: nn.Module, draws: list[Draw], device: torch.device) -> Tensor:
        """Mean squared error of each draw, inside the volume."""
        batch = [torch.stack(part).to(device) for part in zip(*[d.tensors() for d in draws], strict=True)]
        clean, noisy, sigma, context, context_sigma, where, steering, inside = batch
        estimate = network(noisy, sigma, context, context_sigma, where, steering)
        return ((estimate - clean) ** 2 * inside).flatten(1).mean(1)

    def export(self, network: nn.Module, path: Path, report: dict[str, object]) -> None:
        card = self.card.model_copy(update={"patch_flops": float(patch_flops(self))})
        self.settings.export(network, card, path, report)


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


def draw(volume: PatchVolume, start: tuple[int, int, int], sigma: float, card: Card, rng: torch.Generator) -> Draw:
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


def _start(volume: PatchVolume, card: Card, rng: torch.Generator) -> tuple[int, int, int]:
    """Where a patch of a random partition lies.

    Kept in proportion to its share of voxels inside the volume, since only those are scored (in a 128^3 volume half
    the voxels of a random partition are padding); of pure air once in five times.
    """
    shape = volume.values.shape
    # The largest share there is: a volume smaller than a patch never fills one.
    most = math.prod(min(1.0, n / card.patch) for n in shape)
    while True:
        start = tuple(int(torch.randint(1 - card.patch, n, (1,), generator=rng)) for n in shape)
        box = volume.values[tuple(slice(max(0, s), s + card.patch) for s in start)]
        keep = box.numel() / card.patch**3 * (1.0 if float(box.max()) > card.air + 0.4 else 0.2)
        if most * float(torch.rand((), generator=rng)) < keep:
            return start


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
