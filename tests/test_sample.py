"""`pdframe sample`: volumes from a prior alone."""

from __future__ import annotations

import json
import math

import pytest
import torch

from pdframe.core.grid import Grid
from pdframe.core.prior import Prior
from pdframe.core.problem import Dataset, Item
from pdframe.core.schedule import edm_sigmas
from pdframe.core.seeds import generator
from pdframe.ct.units import WATER
from pdframe.sample import draw_sample, nearest
from pdframe.testing.toys import GaussianPrior


def white(deviation: float) -> GaussianPrior:
    return GaussianPrior(mean=0.02, covariance=deviation**2 * torch.eye(512))


def test_samples_of_a_gaussian_prior_have_its_mean_and_deviation():
    """With the exact denoiser, many small steps and no fresh noise, DDIM carries noise to the prior's law."""
    prior = white(0.004)
    *_, x = draw_sample(prior, (8, 8, 8), steps=60, rng=generator(0), eta=0.0)
    assert float(x.mean()) == pytest.approx(0.02, abs=4 * 0.004 / 512**0.5)
    assert float(x.std()) == pytest.approx(0.004, rel=0.15)


@pytest.mark.parametrize("eta", [0.5, 0.85, 1.0])
def test_fresh_noise_has_the_share_that_eta_says(eta):
    """Of a white prior every step is linear: the variance of each voxel follows a recursion of numbers."""
    d, steps = 0.004, 7
    prior = white(d)
    sigmas = edm_sigmas(prior.sigma_range[1], prior.sigma_range[0], steps)
    variance = sigmas[0] ** 2
    for now, after in zip(sigmas, (*sigmas[1:], 0.0), strict=True):
        kept = d**2 / (d**2 + now**2)  # D(x) - m = kept (x - m)
        share = kept + after * math.sqrt(1 - eta**2) * (1 - kept) / now
        variance = share**2 * variance + (after * eta) ** 2
    samples = [list(draw_sample(prior, (8, 8, 8), steps=steps, rng=generator(k), eta=eta))[-1] for k in range(8)]
    assert float(torch.stack(samples).std()) == pytest.approx(math.sqrt(variance), rel=0.05)


@pytest.mark.parametrize("k", [{"rounds": 2}, {"tilings": 2}, {"rounds": 2, "tilings": 3}])
def test_k_calls_at_a_level_leave_the_law_as_it_is(k):
    """Noise put back by a round is as much as its step took away: a smaller or larger deviation would tell."""
    *_, x = draw_sample(white(0.004), (8, 8, 8), steps=60, rng=generator(0), eta=0.0, **k)
    assert float(x.mean()) == pytest.approx(0.02, abs=4 * 0.004 / 512**0.5)
    assert float(x.std()) == pytest.approx(0.004, rel=0.15)


def test_k_calls_are_made_at_every_level():
    class Counted(Prior):
        """Says at which levels it was asked."""

        sigma_range, mean, deviation = (1e-4, 1e-2), 0.02, 0.004

        def __init__(self):
            self.calls = []

        def denoise(self, x, sigma, *, rng=None):
            self.calls.append(float(sigma))
            return torch.full_like(x, self.mean)

    prior = Counted()
    assert len(list(draw_sample(prior, (8, 8, 8), steps=4, rng=generator(0), rounds=2, tilings=3))) == 4
    calls = prior.calls
    assert len(calls) == 24 and len(set(calls)) == 4


def test_the_same_generator_gives_the_same_sample():
    first, second = (list(draw_sample(white(0.004), (8, 8, 8), steps=5, rng=generator(1)))[-1] for _ in range(2))
    assert torch.equal(first, second)


def test_a_prior_in_a_toml_gives_files_a_picture_and_a_record(tmp_path):
    from pdframe_patch.network import PRESETS
    from pdframe_patch.weights import Card, save_weights

    from pdframe.config import load_sampling
    from pdframe.sample import sample

    card = Card(patch=8, unet=PRESETS["tiny"])
    save_weights(tmp_path / "w.safetensors", card.network(), card)
    settings = {
        "samples": 2,
        "shape": [8, 16, 16],
        "spacing_mm": [20.0, 20.0, 20.0],
        "steps": 2,
        "prior": {"name": "patch3d", "weights": str(tmp_path / "w.safetensors")},
        "nearest": {"name": "sample"},
    }
    rows = sample(load_sampling(settings), out_dir=tmp_path / "out")
    assert [row["file"] for row in rows] == ["sample_0.nii.gz", "sample_1.nii.gz"]
    assert rows[0]["nearest_rmse_hu"] > 0
    assert (tmp_path / "out" / "figure.png").stat().st_size > 5000
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["samples"] == rows and record["status"] == "done" and len(record["prior_sha256"]) == 64
    assert rows[0]["usage"]["network_calls"] == 2 and rows[0]["usage"]["seconds"] > 0

    stamp = (tmp_path / "out" / "sample_0.nii.gz").stat().st_mtime_ns
    assert sample(load_sampling(settings), out_dir=tmp_path / "out") == rows
    assert (tmp_path / "out" / "sample_0.nii.gz").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="other settings"):
        sample(load_sampling(settings, ["steps=3"]), out_dir=tmp_path / "out")


def test_the_prior_works_on_the_device_that_was_asked_for(tmp_path, monkeypatch):
    """The meta device stands in for a GPU: it computes nothing, and mixes with no other."""
    import pdframe.sample
    from pdframe.config import load_sampling

    seen = []

    class Zero:
        sigma_range, mean = (0.001, 0.1), 0.02

        def denoise(self, x, sigma, *, rng=None):
            seen.append((x.device.type, sigma.device.type))
            return 0 * x / sigma.reshape(-1, 1, 1, 1, 1)

    *_, x = draw_sample(Zero(), (4, 4, 4), steps=2, rng=generator(0), device="meta")
    assert x.device.type == "meta" and seen == [("meta", "meta")] * 2

    def stop(*given, device, **settings):
        raise InterruptedError(str(device))

    monkeypatch.setattr(pdframe.sample, "draw_sample", stop)
    sampling = load_sampling({"device": "meta", "shape": [4, 4, 4], "prior": {"name": "patch3d"}})
    with pytest.raises(InterruptedError, match="^meta$"):
        pdframe.sample.sample(sampling, out_dir=tmp_path)


BOX = Grid((24, 24, 24), (12.0, 12.0, 12.0))


def body(grid: Grid, half_mm: float, value: float) -> torch.Tensor:
    """A square column along z, from end to end."""
    _, y, x = (((torch.arange(n) - (n - 1) / 2) * s).abs() for n, s in zip(grid.shape, grid.spacing, strict=True))
    inside = (y[:, None] < half_mm) & (x < half_mm)
    return (inside * value).expand(1, 1, *grid.shape).clone()


class Known(Dataset):
    def __init__(self, **items: tuple[Grid, torch.Tensor]) -> None:
        self.items = {name: Item(name, x, grid) for name, (grid, x) in items.items()}

    def names(self):
        return tuple(self.items)

    def load(self, name):
        return self.items[name]


def test_a_thin_slab_is_nearest_to_nothing():
    """Padded with air it is nearer to a column than most columns are, since the air around both agrees."""
    x = body(BOX, 60, WATER)
    x[:, :, :8] = 0
    low = Grid((6, 24, 24), BOX.spacing)
    whole = body(BOX, 100, WATER)
    known = Known(slab=(low, body(low, 60, WATER)), whole=(BOX, whole))
    padded = torch.zeros_like(x)
    padded[:, :, 9:15] = body(low, 60, WATER)
    assert (padded - x).square().mean() < (whole - x).square().mean()
    said = []
    found, away = nearest(x, BOX, known, said.append), float((whole - x).square().mean().sqrt())
    assert found.name == "whole" and found.rmse_hu == pytest.approx(1000 * away / WATER)
    assert said == ["not compared with slab: it covers less than half of the samples' height"]
    assert nearest(x, BOX, Known(slab=(low, body(low, 60, WATER)))) is None


def test_a_scan_is_compared_where_it_was_taken():
    """What is the same as far as it reaches is 0 HU away; a whole column of another width is not."""
    x, part = body(BOX, 60, WATER), Grid((14, 18, 18), BOX.spacing)
    known = Known(wider=(BOX, body(BOX, 75, WATER)), part=(part, body(part, 60, WATER)))
    found = nearest(x, BOX, known)
    assert found.name == "part" and found.rmse_hu < 1e-3
    assert found.x.shape == x.shape and float(found.x[:, :, 0].abs().max()) == 0
