"""`ct`: image quality in an explicit window of Hounsfield units."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field, model_validator
from torch import Tensor

from pdframe.core.problem import Metric, quick_form
from pdframe.ct.metrics import psnr_db, rmse_hu, ssim
from pdframe.ct.windows import METRIC, Window
from pdframe.hooks import Config


class CTMetricConfig(Config):
    """PSNR, SSIM and RMSE after clipping both volumes to a window."""

    window_hu: tuple[float, float] = Field((METRIC.low_hu, METRIC.high_hu), description="window [low, high], HU")

    @model_validator(mode="after")
    def _window_opens(self) -> CTMetricConfig:
        Window(*self.window_hu)
        return self

    def build(self) -> CTMetric:
        return CTMetric(Window(*self.window_hu))


@dataclass(frozen=True)
class CTMetric(Metric):
    """See `pdframe.ct.metrics`. Axial slices are those of the first spatial axis."""

    window: Window

    def measure(self, x: Tensor, truth: Tensor, mask: Tensor | None = None) -> dict[str, float]:
        """psnr_db, ssim (all axes at once), ssim_slices (mean over axial slices), rmse_hu."""
        in_plane = tuple(range(1, x.ndim - 2))
        return {
            "psnr_db": psnr_db(x, truth, mask, window=self.window),
            "ssim": ssim(x, truth, mask, window=self.window),
            "ssim_slices": ssim(x, truth, mask, window=self.window, axes=in_plane),
            "rmse_hu": rmse_hu(x, truth, mask, window=self.window),
        }


@dataclass(frozen=True)
class CTErrors(Metric):
    """What `CTMetric` gives without its similarities, which cost most."""

    window: Window

    def measure(self, x: Tensor, truth: Tensor, mask: Tensor | None = None) -> dict[str, float]:
        """psnr_db, rmse_hu."""
        return {
            "psnr_db": psnr_db(x, truth, mask, window=self.window),
            "rmse_hu": rmse_hu(x, truth, mask, window=self.window),
        }


@quick_form.register
def _(metric: CTMetric) -> Metric:
    return CTErrors(metric.window)
