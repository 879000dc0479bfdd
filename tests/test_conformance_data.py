"""The checks of datasets, metrics and noise models catch what breaks their contracts."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from pdframe.core.grid import Grid
from pdframe.core.noise import Noise
from pdframe.core.problem import Dataset, Item, Metric
from pdframe.core.seeds import generator
from pdframe.testing.data import check_dataset, check_metric, check_noise

GRID = Grid((3, 4, 5), (1.0, 1.0, 1.0))
SHARED = generator(0, "a stream that nobody was given")


def failed(checks) -> set[str]:
    return {check.name for check in checks if not check.passed}


@dataclass(frozen=True)
class SpoiltNoise(Noise):
    """White noise of deviation 0.1 with one fault."""

    fault: str

    def sample(self, clean: torch.Tensor, *, rng: torch.Generator) -> torch.Tensor:
        if self.fault == "random":
            torch.rand(1)
        drawn = torch.randn(clean.shape, generator=SHARED if self.fault == "unseeded" else rng)
        y = clean + 0.1 * drawn
        return {"shape": y[..., :-1], "nan": y / 0 * 0}.get(self.fault, y)

    def inverse_variance(self, y: torch.Tensor) -> torch.Tensor:
        return torch.full_like(y, {"loud": 50.0, "negative": -100.0}.get(self.fault, 100.0))


@pytest.mark.parametrize(
    ("fault", "claim"),
    [
        ("shape", "a draw has the form of the clean data"),
        ("nan", "a draw has the form of the clean data"),
        ("unseeded", "an equal generator gives an equal draw"),
        ("random", "an equal generator gives an equal draw"),
        ("loud", "inverse variances are positive and tell the spread"),
        ("negative", "inverse variances are positive and tell the spread"),
    ],
)
def test_a_spoilt_noise_model_is_caught(fault: str, claim: str):
    clean = torch.rand(1, 1, 6, 7, generator=generator(1))
    assert claim in failed(check_noise(SpoiltNoise(fault), clean))
    assert not failed(check_noise(SpoiltNoise("none"), clean))


@dataclass(frozen=True)
class SpoiltMetric(Metric):
    """A mean squared error with one fault."""

    fault: str

    def measure(self, x: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor | None = None) -> dict[str, float]:
        if self.fault == "input":
            x.add_(1.0)
        square = (x - reference) ** 2
        if mask is not None:
            square = square[mask] * (2.0 if self.fault == "mask" else 1.0)
        value = float(square.mean())
        faults = {"blind": 1.0, "infinite": float("inf"), "tensor": torch.tensor(value)}
        return {} if self.fault == "silent" else {"mse": faults.get(self.fault, value)}


@pytest.mark.parametrize(
    ("fault", "claim"),
    [
        ("silent", "it gives named finite numbers"),
        ("infinite", "it gives named finite numbers"),
        ("tensor", "it gives named finite numbers"),
        ("blind", "it tells a better volume from a worse one"),
        ("mask", "a full mask is no mask"),
        ("input", "the volumes are left as they were"),
    ],
)
def test_a_spoilt_metric_is_caught(fault: str, claim: str):
    truth = torch.rand(1, 1, *GRID.shape, generator=generator(1))
    x = truth + 0.1 * torch.rand(truth.shape, generator=generator(2))
    assert claim in failed(check_metric(SpoiltMetric(fault), x.clone(), truth.clone()))
    assert not failed(check_metric(SpoiltMetric("none"), x, truth))


@dataclass(frozen=True)
class SpoiltDataset(Dataset):
    """Two volumes, with one fault."""

    fault: str

    def names(self) -> tuple[str, ...]:
        found = ("a", "a") if self.fault == "twice" else ("a", "b")
        return () if self.fault == "empty" else found

    def load(self, name: str) -> Item:
        if name not in ("a", "b"):
            raise KeyError("no such item" if self.fault == "mute" else f"{name!r} is not among a, b")
        if self.fault == "random":
            torch.rand(1)
        x = torch.rand(1, 1, *GRID.shape, generator=SHARED if self.fault == "unseeded" else generator(1))
        faults = {"shape": x[..., :-1], "double": x.double(), "nan": x / 0 * 0}
        mask = torch.ones(1, 1, 3, 4, 4, dtype=torch.bool) if self.fault == "mask" else torch.ones_like(x).bool()
        return Item("c" if self.fault == "name" else name, faults.get(self.fault, x), GRID, {}, {"body": mask})


@pytest.mark.parametrize(
    ("fault", "claim"),
    [
        ("twice", "names are unique and in a fixed order"),
        ("empty", "names are unique and in a fixed order"),
        ("name", "items hold what they say"),
        ("shape", "items hold what they say"),
        ("double", "items hold what they say"),
        ("nan", "items hold what they say"),
        ("mask", "items hold what they say"),
        ("unseeded", "loading twice gives the same"),
        ("mute", "an unknown name is refused with the known ones"),
        ("random", "loading leaves global randomness alone"),
    ],
)
def test_a_spoilt_dataset_is_caught(fault: str, claim: str):
    assert claim in failed(check_dataset(SpoiltDataset(fault)))
    assert not failed(check_dataset(SpoiltDataset("none")))
