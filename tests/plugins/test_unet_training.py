"""Training of the priors that see slices or volumes whole: learns, resumes, splits, and keeps its card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from pdframe import registry
from pdframe.core.grid import Grid
from pdframe.core.prior import prior_on
from pdframe.train import load_training

TASKS = ("slice2d", "blend3", "volume3d")
SCANS = [{"file": "scan0.nii.gz", "cite": "made here", "weight": 0.5}, {"file": "scan1.nii.gz"}]


def training(name: str, root: Path, **loop: object):
    settings = {"steps": 8, "batch": 4, "learning_rate": 5e-3, "warmup_steps": 2, "log_every": 2, "validate_every": 8}
    task = {
        "name": name,
        "preset": "tiny",
        "slots": 2,
        "refresh_steps": 6,
        "grids": {"protocol_mm": 5.0, "protocol_voxels": 16, "extent_mm": [60.0, 90.0]},
    }
    data = {"root": str(root), "scans": SCANS[:1], "validation": SCANS[1:]}
    return load_training(
        {"data": data, "train": settings | {"checkpoint_every_s": 1e-9, "device": "cpu"} | loop, "task": task}
    )


def rows(out: Path, key: str) -> list:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [row[key] for row in lines if key in row]


@pytest.mark.parametrize("name", TASKS)
def test_training_lowers_the_validation_loss(name, two_scans, tmp_path):
    longer = training(name, two_scans, steps=40, validate_every=40, checkpoint_every_s=600)
    task = longer.task.build()
    untrained = task.validate(task.network, torch.device("cpu"))["loss"]
    longer.run(tmp_path)
    (trained,) = (check["loss"] for check in rows(tmp_path, "validation"))
    assert trained < 0.85 * untrained


class Unchanged(nn.Module):
    """A network that leaves the noise where it is."""

    def forward(self, noisy, sigma, conditions):
        return noisy


@pytest.mark.parametrize("name", TASKS)
def test_the_error_of_a_network_that_does_nothing_is_the_noise_that_it_was_given(name, two_scans):
    task = training(name, two_scans).task.build()
    told = task.validate(Unchanged(), torch.device("cpu"))
    levels = [25, 50, 100, 200, 400, 1000]
    assert [told[f"rmse_hu_at_{hu}"] for hu in levels] == pytest.approx(levels, rel=0.05)
    s, d = [hu / task.card.scale_hu for hu in levels], task.card.deviation
    assert told["loss"] == pytest.approx(sum((x**2 + d**2) / d**2 for x in s) / len(s), rel=0.1)  # EDM's lambda


@pytest.mark.parametrize("name", TASKS)
def test_a_stopped_training_goes_on_with_the_same_curve_and_its_weights_serve_the_prior(name, two_scans, tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    weights = training(name, two_scans).run(straight)

    def stop(row: dict) -> None:
        if row["step"] == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training(name, two_scans).run(stopped, on_log=stop)
    training(name, two_scans).run(stopped)
    assert rows(stopped, "loss") == rows(straight, "loss")

    prior = prior_on(registry.build("prior", name, weights=weights), Grid((5, 6, 7), (8.0, 8.0, 8.0)))
    card = prior.card
    assert card.training["steps"] == 8 and card.training["validation"]["loss"] > 0
    assert card.data == [{"file": "scan0.nii.gz", "sha256": "", "cite": "made here"}]
    x = torch.full((1, 1, 5, 6, 7), prior.mean)
    with torch.no_grad():
        assert bool(prior.denoise(x, torch.tensor([0.01])).isfinite().all())


@pytest.mark.parametrize("name", TASKS)
def test_the_draws_are_the_same_however_the_batch_is_split(name, two_scans):
    task, cpu = training(name, two_scans).task.build(), torch.device("cpu")
    with torch.no_grad():
        whole = task.loss(task.network, 3, range(4), cpu)
        parts = [task.loss(task.network, 3, range(k, k + 1), cpu) for k in range(4)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-4, atol=0)


def test_trainings_that_are_compared_have_the_same_scans_and_compute():
    folder = Path(__file__).parents[2] / "benchmarks" / "quality"
    sizes = {"": ("patch3d", "slice2d", "blend3"), "small_": ("patch3d", "slice2d", "volume3d")}
    lists = set()
    for size, names in sizes.items():
        read = [load_training(folder / f"train_{size}{name}.toml", ["data.root=anywhere"]).task for name in names]
        told = [task.settings for task in read]
        assert tuple(task.name for task in read) == names
        assert len({each.compute for each in told}) == 1, "priors that are compared have the same compute"
        lists |= {(each.seed, tuple(each.data.scans), tuple(each.data.validation)) for each in told}
    ((_, scans, _),) = lists
    assert len(scans) > 10


def test_a_training_on_fewer_scans_takes_those_of_the_largest_weight_and_its_card_names_no_other(two_scans):
    data = training("slice2d", two_scans).task.settings.data
    one = data.model_copy(update={"scans": [*data.scans, *data.validation], "scan_count": 1})
    task = training("slice2d", two_scans).task.settings.model_copy(update={"data": one}).build()
    assert [entry["file"] for entry in task.card.data] == ["scan1.nii.gz"] and len(task.scans) == 1
