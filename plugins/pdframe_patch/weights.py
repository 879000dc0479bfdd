"""Checkpoints of the patch prior: one safetensors file, weights in float16, with a card in its header."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from pdframe.nn.unet import UNetShape
from pdframe_patch.network import Inputs, PatchNetwork


class Card(BaseModel):
    """What a checkpoint was made for and from. Values of a volume in network units are (HU - centre_hu) / scale_hu."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    patch: int = 32
    centre_hu: float = -500.0
    scale_hu: float = 500.0
    deviation: float = 0.9
    clip_hu: tuple[float, float] = (-1000.0, 2000.0)
    sigma_range_hu: tuple[float, float] = (5.0, 5000.0)
    precondition: Literal["edm", "vp"] = "edm"
    inputs: Inputs = Inputs()
    unet: UNetShape = UNetShape()
    patch_flops: float = 0.0
    spacing_range_mm: tuple[float, float] = (1.0, 5.0)
    training: dict[str, object] = {}
    data: list[dict[str, str]] = []
    licence: str = ""

    @property
    def air(self) -> float:
        """Air in network units."""
        return (-1000.0 - self.centre_hu) / self.scale_hu

    def network(self) -> PatchNetwork:
        """A fresh network of this shape."""
        return PatchNetwork(self.unet, self.deviation, self.precondition, self.inputs)


def shipped_weights() -> Path:
    """The checkpoint that comes with pdframe."""
    return Path(str(files("pdframe_patch") / "shipped" / "patch3d.safetensors"))


def load_weights(name: str | Path) -> tuple[PatchNetwork, Card]:
    """The network, ready to evaluate, and its card; 'shipped' or a path."""
    from safetensors import SafetensorError, safe_open

    path = shipped_weights() if str(name) == "shipped" else Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: give 'shipped' or the path of a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            card = Card.model_validate_json(file.metadata()["card"])
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is not a checkpoint of the patch prior ({type(error).__name__}): train one with `pdframe train`"
        ) from error
    network = card.network()
    network.load_state_dict(tensors)
    network.eval().requires_grad_(False)
    return network.to(memory_format=torch.channels_last_3d), card


def save_weights(path: Path, network: PatchNetwork, card: Card) -> None:
    """Writes the checkpoint whole or not at all; weights are rounded to float16."""
    from safetensors.torch import save_file

    tensors = {k: v.detach().cpu().half().contiguous() for k, v in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata={"card": card.model_dump_json()})
    part.replace(path)
