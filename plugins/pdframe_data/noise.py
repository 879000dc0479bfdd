"""The noise models of the core, as a TOML names them."""

from __future__ import annotations

from pydantic import Field

from pdframe.core.noise import GaussianNoise, NoNoise, PhotonNoise
from pdframe.hooks import Config


class NoNoiseConfig(Config):
    """No noise."""

    def build(self) -> NoNoise:
        return NoNoise()


class GaussianConfig(Config):
    """Independent noise of one standard deviation."""

    deviation: float = Field(gt=0, description="standard deviation, in the unit of the data")

    def build(self) -> GaussianNoise:
        return GaussianNoise(self.deviation)


class PhotonConfig(Config):
    """Log-corrected photon counts."""

    photons: float = Field(1e5, gt=0, description="mean count of an unattenuated ray (I0)")
    electronic: float = Field(5.0, ge=0, description="standard deviation of the read-out noise, in counts")

    def build(self) -> PhotonNoise:
        return PhotonNoise(self.photons, self.electronic)
