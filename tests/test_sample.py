"""`pdframe sample`: volumes from a prior alone."""

from __future__ import annotations

import json

import pytest
import torch

from pdframe.core.seeds import generator
from pdframe.sample import draw_sample
from pdframe.testing.toys import GaussianPrior


def white(deviation: float) -> GaussianPrior:
    return GaussianPrior(mean=0.02, covariance=deviation**2 * torch.eye(512))


def test_samples_of_a_gaussian_prior_have_its_mean_and_deviation():
    """With the exact denoiser, many small steps and no fresh noise, DDIM carries noise to the prior's law."""
    prior = white(0.004)
    *_, x = draw_sample(prior, (8, 8, 8), steps=60, rng=generator(0), eta=0.0)
    assert float(x.mean()) == pytest.approx(0.02, abs=4 * 0.004 / 512**0.5)
    assert float(x.std()) == pytest.approx(0.004, rel=0.15)


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
