"""A checkpoint's card names the weights beside it, and its papers do not make other weights of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pdframe_patch.network import PRESETS
from pdframe_patch.prior import PatchPrior
from pdframe_patch.weights import Card, load_weights, save_weights
from safetensors import safe_open
from safetensors.torch import save_file

from pdframe.core.checkpoint import fingerprint
from pdframe.ct.checkpoint import weights_sha256

CARD = Card(patch=8, unet=PRESETS["tiny"])


@pytest.fixture
def saved(tmp_path) -> Path:
    save_weights(tmp_path / "w.safetensors", CARD.network(), CARD)
    return tmp_path / "w.safetensors"


def held(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["card"])


def write(path: Path, tensors: dict[str, torch.Tensor], card: dict) -> Path:
    save_file(tensors, path, metadata={"card": json.dumps(card)})
    return path


def test_the_hash_is_of_names_types_shapes_and_values_in_any_order():
    one = {"a": torch.arange(6.0), "b": torch.tensor(1.5)}
    told = weights_sha256(one)
    assert len(told) == 64 and weights_sha256(dict(reversed(one.items()))) == told
    others = ({"a": one["a"].half()}, {"a": one["a"].view(2, 3)}, {"a": one["a"] + 1}, {"b": torch.tensor(1.0)})
    renamed = {"c": one["a"], "b": one["b"]}
    assert len({told, weights_sha256(renamed), *(weights_sha256(one | other) for other in others)}) == 6


def test_a_card_names_its_weights_and_others_are_refused(saved):
    tensors, card = held(saved)
    assert card["weights_sha256"] == weights_sha256(tensors) == load_weights(saved)[1].weights_sha256
    name = next(key for key, tensor in tensors.items() if tensor.numel() > 100)
    tensors[name].view(-1)[7] += 0.5
    with pytest.raises(ValueError, match="w.safetensors is damaged or was edited: its weights are not those") as caught:
        load_weights(write(saved, tensors, card))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_from_before_the_hash_still_loads(saved):
    tensors, card = held(saved)
    del card["weights_sha256"]
    network, loaded = load_weights(write(saved, tensors, card))
    assert loaded.weights_sha256 == "" and len(network.state_dict()) == len(tensors)


def test_papers_put_right_do_not_change_what_a_prior_is(saved):
    network, card = load_weights(saved)
    corrected = card.model_copy(update={"data": [{"file": "a", "cite": "b"}], "licence": "c", "weights_sha256": ""})
    other = card.model_copy(update={"deviation": 0.8})
    before, after, changed = (fingerprint(PatchPrior(network, c)) for c in (card, corrected, other))
    assert before == after != changed
