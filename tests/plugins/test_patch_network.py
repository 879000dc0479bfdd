"""The network: the paper's size, the preconditioning, the presets."""

from __future__ import annotations

import pytest
import torch
from pdframe_patch.network import PRESETS, Inputs, PatchNetwork

from pdframe import machine
from pdframe.core.seeds import generator
from pdframe.nn.precondition import fast_bfloat16, vp_time
from pdframe.nn.unet import UNet, UNetShape


def parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


def ask(network: PatchNetwork, sigma: float, edge: int = 8, seed: int = 0):
    rng = generator(seed)
    patches = torch.randn(2, 1, edge, edge, edge, generator=rng)
    context = torch.randn(2, 1, edge, edge, edge, generator=rng)
    where = torch.rand(2, 3, edge, edge, edge, generator=rng)
    levels = torch.full((2,), sigma)
    return patches, network(patches, levels, context, levels / 10, where, torch.zeros(2, 6))


def perturbed(network: PatchNetwork) -> PatchNetwork:
    """A fresh network is silent (its last layer is zero); give every parameter a value."""
    rng = generator(5)
    for p in network.parameters():
        p.data = torch.randn(p.shape, generator=rng) * 0.1
    return network


def test_the_papers_network_has_the_papers_size():
    with torch.device("meta"):
        assert parameters(UNet(PRESETS["paper"])) / 1e6 == pytest.approx(68.59, abs=0.005)


@pytest.mark.parametrize("dims", [2, 3])
def test_one_source_serves_two_and_three_dimensions(dims):
    net = UNet(UNetShape(dims=dims, in_channels=2, width=8, multipliers=(1, 2), blocks=1, attention=(2,), fold=2))
    x = torch.randn(3, 2, *(8,) * dims, generator=generator(0))
    assert net(x, torch.zeros(3)).shape == (3, 1, *(8,) * dims)


@pytest.mark.parametrize("precondition", ["edm", "vp"])
def test_a_patch_without_noise_is_left_alone(precondition):
    network = perturbed(PatchNetwork(PRESETS["tiny"], 0.9, precondition))
    patches, answer = ask(network, 1e-4)
    torch.testing.assert_close(answer, patches, rtol=0, atol=2e-3)


def test_a_fresh_edm_network_is_the_best_linear_denoiser():
    """With a silent network EDM's skip is the Wiener filter of a white Gaussian of the declared deviation."""
    patches, answer = ask(PatchNetwork(PRESETS["tiny"], 0.9), 0.7)
    torch.testing.assert_close(answer, patches * 0.9**2 / (0.9**2 + 0.7**2))


def test_an_input_that_is_switched_off_is_not_seen():
    for off in ("context", "position", "spacing"):
        network = perturbed(PatchNetwork(PRESETS["tiny"], 0.9, inputs=Inputs(**{off: False})))
        rng = generator(1)
        cube = torch.randn(2, 1, 8, 8, 8, generator=rng)
        one = torch.ones(2)
        answers = []
        for k in range(2):
            rng = generator(2, k)
            given = {
                "context": torch.randn(2, 1, 8, 8, 8, generator=rng),
                "position": torch.randn(2, 3, 8, 8, 8, generator=rng),
                "spacing": torch.randn(2, 6, generator=rng),
            }
            fixed = {name: value if name == off else torch.ones_like(value) for name, value in given.items()}
            answers.append(network(cube, one, fixed["context"], one, fixed["position"], fixed["spacing"]))
        assert torch.equal(*answers)


def test_vp_time_inverts_the_linear_schedule():
    """sigma of DDPM's discrete schedule at t / 1000 comes back as t / 1000."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, 0)
    sigma = ((1 - abar) / abar).sqrt()
    steps = torch.tensor([50, 200, 500, 900])
    torch.testing.assert_close(vp_time(sigma[steps - 1]), steps / 1000.0, rtol=0.01, atol=0.002, check_dtype=False)


@pytest.mark.parametrize(
    ("has", "limit", "fast"),
    [
        ({"_is_amx_tile_supported", "_is_avx512_bf16_supported"}, "AVX2", False),
        ({"_is_amx_tile_supported", "_is_avx512_bf16_supported"}, "AVX512_CORE_BF16", True),
        ({"_is_amx_tile_supported"}, "AVX512_CORE_BF16", False),
        ({"_is_avx512_bf16_supported"}, None, True),
        ({"_is_avx512_bf16_supported"}, "AVX512_CORE_VNNI", False),
        (set(), None, False),
    ],
)
def test_bfloat16_is_used_where_the_cpu_multiplies_it_and_may(
    monkeypatch, has: set[str], limit: str | None, fast: bool
):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda probe=probe: probe in has, raising=False)
    assert fast_bfloat16(torch.device("cpu")) is fast
    assert ("cpu (" in machine.bfloat16()) is fast  # what `pdframe doctor` and the rows of a bench tell
