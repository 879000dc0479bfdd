"""Checkpoints of CT priors: one safetensors file, weights in float16, with a card in its header."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from pdframe.ct.units import WATER
from pdframe.hooks import BackendMissing
from pdframe.nn.norm import CHANNELS_LAST
from pdframe.nn.precondition import Precondition
from pdframe.nn.unet import UNetShape

SHIPPED = "shipped"


class NetworkCard(BaseModel, abc.ABC):
    """What a checkpoint was made for and from; a prior's own card adds what its network needs.

    A network works in its own units: (HU - centre_hu) / scale_hu, in which a voxel has standard deviation `deviation`.
    spacing_range_mm: in plane, of the volumes it was trained on. spacing_ratio: their z spacing over the one in plane.
    weights_sha256: of the tensors that lie beside the card, by the function of that name; "" in files without it.

    What only tells of its origin is kept out of `repr`, by which a prior's fingerprint knows its card: a citation that
    is put right does not make other weights of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    centre_hu: float = -500.0
    scale_hu: float = 500.0
    deviation: float = 0.9
    clip_hu: tuple[float, float] = (-1000.0, 2000.0)
    sigma_range_hu: tuple[float, float] = (5.0, 5000.0)
    precondition: Precondition = "edm"
    unet: UNetShape = UNetShape()
    spacing_range_mm: tuple[float, float] = (1.0, 5.0)
    spacing_ratio: tuple[float, float] = (0.6, 2.2)
    training: dict[str, object] = Field({}, repr=False)
    data: list[dict[str, str]] = Field([], repr=False)
    licence: str = Field("", repr=False)
    weights_sha256: str = Field("", repr=False)

    @abc.abstractmethod
    def network(self) -> nn.Module:
        """A fresh network of this shape."""

    @property
    def air(self) -> float:
        """Air in network units."""
        return (-1000.0 - self.centre_hu) / self.scale_hu

    @property
    def scale(self) -> float:
        """One network unit, in 1/mm."""
        return self.scale_hu * WATER / 1000

    @property
    def mean(self) -> float:
        """What is zero in network units, in 1/mm."""
        return WATER * (1 + self.centre_hu / 1000)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The noise levels that it was trained on, in 1/mm."""
        low, high = self.sigma_range_hu
        return low * WATER / 1000, high * WATER / 1000


AnyCard = TypeVar("AnyCard", bound=NetworkCard)


def shipped_checkpoint(package: str, name: str) -> Path:
    """The file of weights `name` that comes with a plugin's package, whether it is there or not."""
    return Path(str(files(package) / SHIPPED / f"{name}.safetensors"))


def load_checkpoint(path: Path, card_class: type[AnyCard]) -> tuple[nn.Module, AnyCard]:
    """The network, ready to evaluate, and its card.

    BackendMissing if the plugin came without its shipped file, FileNotFoundError or ValueError for any other, and
    ValueError if the weights are not those that the card was written with.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise _missing(path)
    try:
        with safe_open(path, framework="pt") as file:
            card = card_class.model_validate_json(file.metadata()["card"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        network = card.network()
        network.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
    except (SafetensorError, TypeError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} is not a checkpoint of this prior ({type(error).__name__}): train one with `pdframe train`"
        ) from error
    if card.weights_sha256 not in ("", weights_sha256(tensors)):
        raise ValueError(f"{path} is damaged or was edited: its weights are not those that its card names (SHA-256)")
    network.eval().requires_grad_(False)
    return network.to(memory_format=CHANNELS_LAST[card.unet.dims]), card


def save_checkpoint(path: Path, network: nn.Module, card: NetworkCard) -> None:
    """Writes the checkpoint whole or not at all; weights are rounded to float16."""
    from safetensors.torch import save_file

    tensors = {k: v.detach().cpu().half().contiguous() for k, v in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    card = card.model_copy(update={"weights_sha256": weights_sha256(tensors)})
    save_file(tensors, part, metadata={"card": card.model_dump_json()})
    part.replace(path)


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, type, shape and bytes of each tensor, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _missing(path: Path) -> Exception:
    if path.parent.name == SHIPPED:
        return BackendMissing(
            f"this installation came without {path.name}: train it with `pdframe train` and set `weights` to the file"
        )
    return FileNotFoundError(f"no checkpoint at {path}: give 'shipped' or the path of a .safetensors file")
