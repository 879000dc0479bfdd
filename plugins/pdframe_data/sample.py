"""`sample`: one real chest CT that comes with the package, and measurements of it that never change."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from pdframe.core.problem import Dataset, Item
from pdframe.ct.body import body_mask
from pdframe.ct.nifti import name_of, read_nifti
from pdframe.hooks import Config
from pdframe.measure import frozen_measurement

#: Made by benchmarks/quality/make_sample.py; LICENCE.md beside the files says whose scan it is.
FOLDER = Path(__file__).parent / "chest"


class SampleConfig(Config):
    """The packaged chest, 128^3 voxels of 2.75 mm; it has no settings."""

    def build(self) -> Sample:
        return Sample(FOLDER)


@dataclass(frozen=True)
class Sample(Dataset):
    """A folder with NIfTI volumes, `.safetensors` measurements of them and `origin.json`, which hashes them all."""

    folder: Path

    def names(self) -> tuple[str, ...]:
        return tuple(name_of(path) for path in sorted(self.folder.glob("*.nii.gz")))

    def load(self, name: str) -> Item:
        if name not in self.names():
            raise KeyError(f"no item {name!r}; there are {', '.join(self.names())}")
        item = read_nifti(self.folder / f"{name}.nii.gz")
        origin = json.loads((self.folder / "origin.json").read_text())
        if item.header["sha256"] != origin["files"][f"{name}.nii.gz"]:
            raise ValueError(f"{self.folder / name}.nii.gz does not match its hash; install pdframe again")
        header = {**item.header, "origin": origin["origin"], "licence": origin["licence"]}
        return Item(name, item.x, item.grid, header, {"body": body_mask(item.x, item.grid)})


@frozen_measurement.register
def _(dataset: Sample, name: str) -> Path:
    """The file, after a look at its hash."""
    path = dataset.folder / f"{name}.safetensors"
    if not path.is_file():
        known = ", ".join(p.stem for p in sorted(dataset.folder.glob("*.safetensors")))
        raise ValueError(f"the sample has no frozen measurement {name!r}; there are {known}")
    origin = json.loads((dataset.folder / "origin.json").read_text())
    if hashlib.sha256(path.read_bytes()).hexdigest() != origin["files"][path.name]:
        raise ValueError(f"{path} does not match its hash; install pdframe again")
    return path
