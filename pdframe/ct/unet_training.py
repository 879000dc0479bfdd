"""Training a U-Net that denoises what it sees whole: slices, groups of slices, volumes. For `pdframe.train`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn

from pdframe.core.seeds import generator
from pdframe.ct.checkpoint import NetworkCard
from pdframe.ct.denoiser_training import DenoiserTrainingConfig, validation_ladder, weighted
from pdframe.ct.network_prior import in_air
from pdframe.ct.training_set import Scan, Shelf, Volume, protocol_volume
from pdframe.nn.denoiser import UNetDenoiser
from pdframe.train import Trainable

#: A clean example from a volume, (channels, *spatial) in network units, and its conditions (n,).
Draw = Callable[[Volume, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class UNetTraining(Trainable):
    """Draws clean examples with `draw`, adds noise, and scores a network on them.

    `together` consecutive items come from one volume, so that they have one shape and go through the network at once;
    each has its own example, noise level and noise. Validation takes `validation_draws` from each volume and level.
    """

    network: UNetDenoiser
    card: NetworkCard
    settings: DenoiserTrainingConfig
    scans: list[Scan]
    held_apart: list[Scan]
    draw: Draw
    together: int = 1
    validation_draws: int = 1

    @cached_property
    def shelf(self) -> Shelf[Volume]:
        s = self.settings
        return Shelf(self.scans, s.grids, self.card, s.seed, lambda volume: volume, s.slots, s.refresh_steps)

    def loss(self, network: nn.Module, step: int, items: range, device: torch.device) -> Tensor:
        """Mean loss of the step's items; item k of step t is the same draw however the batch is split."""
        seed, losses = self.settings.seed, []
        for group, members in groupby(items, key=lambda item: item // self.together):
            slot = int(torch.randint(self.settings.slots, (1,), generator=generator(seed, "group", step, group)))
            rngs = [generator(seed, "item", step, item) for item in members]
            sigmas = torch.tensor([self.settings.draw_sigma(rng) for rng in rngs])
            squares = self._squares(network, self.shelf.volume(slot, step), sigmas, rngs, device)
            losses.append(weighted(squares, sigmas.to(device), self.card))
        return torch.cat(losses).mean()

    @torch.no_grad()
    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Weighted loss and RMSE in HU on fixed draws from held-apart patients, for a ladder of noise levels."""

        def squares(volume: Volume, sigma: float, rng: torch.Generator) -> Tensor:
            rngs = [rng] * self.validation_draws
            return self._squares(network, volume, torch.full((len(rngs),), sigma), rngs, device)

        return validation_ladder(self._validation_volumes, self.card, squares)

    @cached_property
    def _validation_volumes(self) -> list[Volume]:
        return [protocol_volume(scan, self.settings.grids, self.card) for scan in self.held_apart]

    def _squares(
        self,
        network: nn.Module,
        volume: Volume,
        sigmas: Tensor,
        rngs: list[torch.Generator],
        device: torch.device,
    ) -> Tensor:
        """Mean squared error of one draw for each noise level and generator, in network units."""
        examples = [self.draw(volume, rng) for rng in rngs]
        clean, conditions = (torch.stack(part) for part in zip(*examples, strict=True))
        noise = torch.stack([torch.randn(clean.shape[1:], generator=rng) for rng in rngs])
        noisy = clean + sigmas.reshape(-1, *(1,) * (clean.ndim - 1)) * noise
        multiple = (self.card.unet.multiple,) * self.card.unet.dims
        padded = [
            in_air(item, multiple, self.card.air, s, rng)
            for item, s, rng in zip(noisy, sigmas.tolist(), rngs, strict=True)
        ]
        estimate = network(torch.stack(padded).to(device), sigmas.to(device), conditions.to(device))
        inside = tuple(slice(n) for n in clean.shape)
        return ((estimate[inside] - clean.to(device)) ** 2).flatten(1).mean(1)

    def export(self, network: nn.Module, path: Path, report: dict[str, object]) -> None:
        self.settings.export(network, self.card, path, report)
