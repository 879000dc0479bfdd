"""Checkpoints of the patch prior: what its card adds to that of any CT prior."""

from __future__ import annotations

from pathlib import Path

from pdframe.ct.checkpoint import SHIPPED, NetworkCard, load_checkpoint, save_checkpoint, shipped_checkpoint
from pdframe_patch.network import Inputs, PatchNetwork


class Card(NetworkCard):
    """What a checkpoint of the patch prior was made for and from."""

    patch: int = 32
    inputs: Inputs = Inputs()
    patch_flops: float = 0.0

    def network(self) -> PatchNetwork:
        return PatchNetwork(self.unet, self.deviation, self.precondition, self.inputs)


def shipped_weights() -> Path:
    """The checkpoint that comes with pdframe."""
    return shipped_checkpoint("pdframe_patch", "patch3d")


def load_weights(name: str | Path) -> tuple[PatchNetwork, Card]:
    """The network, ready to evaluate, and its card; 'shipped' or a path."""
    return load_checkpoint(shipped_weights() if str(name) == SHIPPED else Path(name), Card)


def save_weights(path: Path, network: PatchNetwork, card: Card) -> None:
    """Writes the checkpoint whole or not at all; weights are rounded to float16."""
    save_checkpoint(path, network, card)
