"""The shipped weights: what their card promises, and that their tiling leaves no seam."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import tomli
import torch
from pdframe_patch import tiling
from pdframe_patch.prior import PatchPrior
from pdframe_patch.weights import shipped_weights
from pdframe_solvers.dds import DDSConfig

from pdframe import build
from pdframe.core.noise import NoNoise
from pdframe.core.prior import denoised, prior_on
from pdframe.core.problem import Item, Problem
from pdframe.core.seeds import generator
from pdframe.ct.units import WATER

PER_HU = WATER / 1000
TRAIN_SCANS = Path(__file__).parents[2] / "benchmarks" / "quality" / "train_scans.toml"


@cache
def chest(edge: int = 80) -> Item:
    """The packaged scan, cut to so many voxels an edge to be quick."""
    dataset = build("dataset", "sample")
    item = dataset.load(dataset.names()[0])
    inner = slice((128 - edge) // 2, (128 + edge) // 2)
    cut = item.x[..., inner, inner, inner].contiguous()
    return Item(item.name, cut, type(item.grid)(cut.shape[2:], item.grid.spacing))


@pytest.fixture(scope="module")
def prior() -> PatchPrior:
    return prior_on(build("prior", "patch3d"), chest().grid)


def noisy(sigma_hu: float) -> torch.Tensor:
    x = chest().x
    return x + sigma_hu * PER_HU * torch.randn(x.shape, generator=generator(7))


def test_the_file_is_small_and_its_card_says_where_it_is_from(prior):
    assert shipped_weights().stat().st_size <= 20_000_000
    card = prior.card
    assert card.data and all(entry["cite"] and len(entry["sha256"]) == 64 for entry in card.data)
    assert card.licence and card.training["steps"] > 0 and card.training["compute"]
    assert len(card.weights_sha256) == 64  # held against the weights whenever they are loaded


def test_the_card_cites_its_scans_as_the_training_does(prior):
    """With a DOI for every collection that has one."""
    listed = tomli.loads(TRAIN_SCANS.read_text())["data"]["scans"]
    assert prior.card.data == [{key: scan[key] for key in ("file", "sha256", "cite")} for scan in listed]
    assert all("https://doi.org/10." in scan["cite"] for scan in listed if scan["cite"].startswith("TCIA"))
    assert sum(scan["cite"].startswith("TCIA") for scan in listed) == len(listed) - 1


@pytest.mark.parametrize(("sigma_hu", "at_most_hu"), [(30, 20), (100, 42), (300, 77)])
def test_it_removes_noise_from_a_scan_that_it_has_not_seen(prior, sigma_hu, at_most_hu):
    estimate = prior.denoise(noisy(sigma_hu), torch.tensor([sigma_hu * PER_HU]), rng=generator(1))
    assert float((estimate - chest().x).square().mean().sqrt()) / PER_HU < at_most_hu


@pytest.mark.parametrize("seed", [2, 3])
def test_no_seam_is_left_between_the_patches_at_the_last_noise_level(seed):
    """Jump across the last partition's faces over the jump elsewhere, each relative to the scan's own at these places.

    The estimate is that of DDS before its last data step, at its defaults, on 20 views of the packaged scan.
    """
    item, rng = chest(64), generator(seed)
    prior = prior_on(build("prior", "patch3d"), item.grid)
    operator = build("operator", "cone_beam", grid=item.grid, views=20)
    problem = Problem(operator, operator.forward(item.x), NoNoise())
    dds = DDSConfig().build(prior=prior)
    with torch.no_grad():
        state = dds.init(problem, rng)
        for _ in range(dds.total_steps - 1):
            state = dds.step(problem, state, rng)
        replay = generator(0)
        replay.set_state(rng.get_state())
        estimate = denoised(prior, state.x, dds.sigmas[-2], tilings=dds.settings.last_tilings, rng=rng)[0, 0]

    patch, shape = prior.card.patch, tuple(item.x.shape[2:])
    for _ in range(dds.settings.last_tilings):
        torch.randn([n + 2 * patch for n in shape], generator=replay)  # the border's noise comes before the offset
        offset = tiling.random_offset(patch, replay)
    faces = [(torch.arange(1, n) - o) % patch == 0 for n, o in zip(shape, offset, strict=True)]

    def jump(volume: torch.Tensor, at_faces: bool) -> float:
        jumps = [volume.diff(dim=axis).abs().movedim(axis, 0)[faces[axis] == at_faces] for axis in range(3)]
        return float(torch.cat([j.flatten() for j in jumps]).mean())

    truth = item.x[0, 0]
    at_faces, elsewhere = (jump(estimate, here) / jump(truth, here) for here in (True, False))
    assert at_faces / elsewhere == pytest.approx(1.0, abs=0.05)
