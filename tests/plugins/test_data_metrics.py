"""PSNR, SSIM and RMSE against scikit-image, and what window and mask do."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pdframe.ct.metrics import psnr_db, rmse_hu, ssim
from pdframe.ct.units import hu_to_attenuation
from pdframe.ct.windows import Window

GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    truth = 0.06 * torch.rand(1, 1, 18, 24, 20, generator=rng)
    return truth + 0.004 * torch.randn(truth.shape, generator=rng), truth


def in_window(mu: torch.Tensor, low: float, high: float) -> np.ndarray:
    return np.clip((mu[0, 0].double().numpy() / 0.02 - 1) * 1000, low, high)


@pytest.mark.parametrize(("low", "high"), [(-1000.0, 1000.0), (-160.0, 240.0)])
def test_agrees_with_scikit_image(pair, low, high):
    a, b = (in_window(v, low, high) for v in pair)
    window, span = Window(low, high), high - low
    # float32 HU carry about 1e-4 HU of rounding; relative to a window that is 1e-6 and less.
    assert psnr_db(*pair, window=window) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=span), abs=1e-4)
    assert ssim(*pair, window=window) == pytest.approx(
        structural_similarity(a, b, data_range=span, **GAUSSIAN), abs=1e-6
    )
    slices = [structural_similarity(p, q, data_range=span, **GAUSSIAN) for p, q in zip(a, b, strict=True)]
    assert ssim(*pair, window=window, axes=(1, 2)) == pytest.approx(np.mean(slices), abs=1e-6)


def test_masked_ssim_is_the_mean_of_the_map_in_the_mask(pair):
    a, b = (in_window(v, -1000, 1000) for v in pair)
    mask = torch.zeros_like(pair[0], dtype=torch.bool)
    mask[..., 7:12, 6:15, 8:14] = True
    _, image = structural_similarity(a, b, data_range=2000, full=True, **GAUSSIAN)
    assert ssim(*pair, mask) == pytest.approx(image[7:12, 6:15, 8:14].mean(), abs=1e-6)


def test_perfect_reconstruction_is_perfect(pair):
    truth = pair[1]
    assert psnr_db(truth, truth) == float("inf") and rmse_hu(truth, truth) == 0
    assert ssim(truth, truth) == pytest.approx(1.0)


def test_rmse_is_in_hu_and_blind_outside_the_window_and_the_mask():
    truth = hu_to_attenuation(torch.tensor([[0.0, 100.0, 2000.0, 900.0]]))[None, None]
    x = hu_to_attenuation(torch.tensor([[30.0, 60.0, 3000.0, 1400.0]]))[None, None]
    assert rmse_hu(x, truth) == pytest.approx(((30**2 + 40**2 + 0 + 100**2) / 4) ** 0.5, abs=1e-2)
    mask = torch.tensor([[True, True, True, False]])[None, None]
    assert rmse_hu(x, truth, mask) == pytest.approx((2500 / 3) ** 0.5, abs=1e-2)


def test_empty_or_foreign_mask_is_one_clear_error(pair):
    with pytest.raises(ValueError, match="marks none"):
        psnr_db(*pair, torch.zeros_like(pair[0], dtype=torch.bool))
    with pytest.raises(ValueError, match="shape of the volume"):
        psnr_db(*pair, torch.ones(1, 1, 2, 2, 2, dtype=torch.bool))


def test_small_volumes_are_measured_whole():
    rng = torch.Generator().manual_seed(3)
    truth = 0.02 * torch.rand(1, 1, 4, 5, 6, generator=rng)
    assert 0 < ssim(truth + 0.002 * torch.randn(truth.shape, generator=rng), truth) < 1


def test_a_window_needs_low_below_high():
    with pytest.raises(ValueError, match="low < high"):
        Window(100.0, 100.0)
