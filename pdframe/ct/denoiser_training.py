"""What trainings of CT denoisers share: scans and noise levels as a TOML gives them, the loss, validation, export."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from pdframe.core.seeds import generator
from pdframe.ct.checkpoint import SHIPPED, AnyCard, NetworkCard, load_checkpoint, save_checkpoint
from pdframe.ct.training_set import GridRange, Scan, TrainingScans, read_scans
from pdframe.hooks import Config
from pdframe.nn.norm import CHANNELS_LAST
from pdframe.nn.precondition import Precondition, loss_weight
from pdframe.nn.unet import UNetShape

#: Noise levels of the validation.
LADDER_HU = (25, 50, 100, 200, 400, 1000)

Example = TypeVar("Example")


class DenoiserTrainingConfig(Config):
    """What a CT denoiser is trained on; the loop's settings are in [train]. A prior's own task adds its network's."""

    data: TrainingScans
    start_from: Literal["", "shipped"] | Path = Field("", description="checkpoint whose weights to start from")
    precondition: Precondition = "edm"
    sigma_mean: float = Field(-0.8, description="mean of log sigma in network units (500 HU)")
    sigma_deviation: float = Field(1.5, gt=0)
    grids: GridRange = GridRange()
    slots: int = Field(24, ge=1, description="volumes held in memory")
    refresh_steps: int = Field(480, ge=1, description="steps after which each of them has been replaced")
    seed: int = 0
    licence: str = ""
    compute: str = Field("", description="what the training took, for later comparisons at equal compute")

    def card(self, card_class: type[AnyCard], unet: UNetShape, **more: object) -> AnyCard:
        """The card of what will come of it; `more` are the fields of the prior's own card."""
        return card_class(
            precondition=self.precondition,
            unet=unet,
            spacing_range_mm=self.grids.spacing_range_mm,
            spacing_ratio=self.grids.spacing_ratio,
            licence=self.licence,
            data=[{"file": s.file, "sha256": s.sha256, "cite": s.cite} for s in self.data.used],
            **more,
        )

    def network(self, card: NetworkCard, shipped: Path | None = None) -> nn.Module:
        """The network to train: fresh, or with the weights to start from, for 'shipped' those of the file `shipped`."""
        if self.start_from:
            path = shipped if shipped and self.start_from == SHIPPED else Path(self.start_from)
            network, _ = load_checkpoint(path, type(card))
            network.requires_grad_(True).train()
        else:
            # The initial weights are a function of the seed: the global generator is borrowed and put back.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                network = card.network()
        return network.to(memory_format=CHANNELS_LAST[card.unet.dims])

    def read(self) -> tuple[list[Scan], list[Scan]]:
        """The scans to train on, and those held apart."""
        return read_scans(self.data.root, self.data.used), read_scans(self.data.root, self.data.validation)

    def draw_sigma(self, rng: torch.Generator) -> float:
        """A noise level in network units, log-normal."""
        return math.exp(self.sigma_mean + self.sigma_deviation * float(torch.randn((), generator=rng)))

    def export(self, network: nn.Module, card: NetworkCard, path: Path, report: dict[str, object]) -> None:
        """Writes the checkpoint, with what the training took in its card."""
        save_checkpoint(path, network, card.model_copy(update={"training": {**report, "compute": self.compute}}))


def weighted(squares: Tensor, sigma: Tensor, card: NetworkCard) -> Tensor:
    """The loss of items with these mean squared errors at these noise levels, both (batch,) in network units."""
    return squares * loss_weight(card.precondition, sigma, card.deviation)


def validation_ladder(
    volumes: Iterable[Example], card: NetworkCard, squares: Callable[[Example, float, torch.Generator], Tensor]
) -> dict[str, float]:
    """Weighted loss and RMSE in HU for a ladder of noise levels, on fixed draws; empty without volumes.

    squares(volume, sigma, rng) gives the mean squared error of each of some draws, in network units.
    """
    result, losses, volumes = {}, [], list(volumes)
    for sigma_hu in LADDER_HU if volumes else ():
        sigma = sigma_hu / card.scale_hu
        rngs = [generator(0, "validation", sigma_hu, index) for index in range(len(volumes))]
        errors = torch.cat([squares(volume, sigma, rng) for volume, rng in zip(volumes, rngs, strict=True)])
        losses.append(float(weighted(errors, torch.tensor(sigma), card).mean()))
        result[f"rmse_hu_at_{sigma_hu}"] = float(errors.mean().sqrt()) * card.scale_hu
    return {"loss": sum(losses) / len(losses), **result} if losses else {}
