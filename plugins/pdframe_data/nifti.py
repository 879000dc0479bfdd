"""`nifti`: scans in files, each brought to one grid around the body, or left on its own."""

from __future__ import annotations

import dataclasses
import glob
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from pdframe.core.grid import Grid
from pdframe.core.problem import Dataset, Item
from pdframe.ct.body import body_mask
from pdframe.ct.nifti import SUFFIXES, name_of, read_nifti
from pdframe.ct.resample import fit_grid, overlap, resample
from pdframe.hooks import Config
from pdframe.measure import native_item

Triple = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class NiftiConfig(Config):
    """NIfTI files in Hounsfield units."""

    path: Path = Field(description="a file, a folder, or a pattern such as scans/*.nii.gz")
    shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None = Field(
        None, description="voxels along (z, y, x), placed around the body; default: the whole scan"
    )
    spacing_mm: Triple | None = Field(None, description="voxel size along (z, y, x); default: as in the file")
    fill_nonfinite_hu: float | None = Field(None, description="replaces NaN and infinity; default: refuse such files")

    def build(self) -> Nifti:
        return Nifti(files(self.path), self)


def files(path: Path) -> tuple[Path, ...]:
    """The NIfTI files that a path means, sorted; ValueError with one line if there is none."""
    if path.is_dir():
        found = [p for p in path.iterdir() if p.name.endswith(SUFFIXES)]
    elif path.is_file():
        found = [path]
    else:
        found = [Path(p) for p in glob.glob(str(path), recursive=True) if p.endswith(SUFFIXES)]
    found = [p for p in found if p.suffix != ".img" or p.with_suffix(".hdr") not in found]
    if not found:
        raise ValueError(f"{path}: no NIfTI file ({', '.join(SUFFIXES)}) there; give a file, a folder or a pattern")
    return tuple(sorted(found))


@dataclass(frozen=True)
class Nifti(Dataset):
    """One item per file, centred on the origin of its grid. `masks["body"]` is the patient without couch."""

    paths: tuple[Path, ...]
    settings: NiftiConfig

    def names(self) -> tuple[str, ...]:
        return tuple(name_of(p) for p in self.paths)

    def load(self, name: str) -> Item:
        scan, target = self._read(name)
        x = resample(scan.x, scan.grid, target)
        item = centred(dataclasses.replace(scan, x=x, grid=target), target)
        return dataclasses.replace(item, masks={"body": body_mask(x, item.grid)})

    def native(self, name: str) -> Item:
        """The scan on its own grid, in the frame of `load(name)`, air outside the box that `load` cuts out of it."""
        scan, target = self._read(name)
        return centred(dataclasses.replace(scan, x=confined(scan.x, scan.grid, target)), target)

    def _read(self, name: str) -> tuple[Item, Grid]:
        """The scan as the file has it, and the grid that it is to be brought to."""
        if name not in self.names():
            raise KeyError(f"no item {name!r}; there are {', '.join(self.names())}")
        path = self.paths[self.names().index(name)]
        scan = read_nifti(path, fill_nonfinite_hu=self.settings.fill_nonfinite_hu)
        spacing = self.settings.spacing_mm or scan.grid.spacing
        if self.settings.shape is not None:
            return scan, fit_grid(scan.grid, body_mask(scan.x, scan.grid), self.settings.shape, spacing)
        shape = [ceil(e / s - 1e-6) for e, s in zip(scan.grid.extent, spacing, strict=True)]
        return scan, Grid(tuple(shape), spacing, scan.grid.centre)


@native_item.register
def _(dataset: Nifti, name: str) -> Item:
    return dataset.native(name)


def confined(x: Tensor, grid: Grid, box: Grid) -> Tensor:
    """x with air outside the box of another grid; voxels that its faces cut keep the share that lies inside.

    What is to be found has no mass outside its grid, so what is measured should have none there either.
    """
    for axis in range(3):
        share = overlap(grid, box, axis).to(x)
        x = x * share.reshape([-1 if a == axis else 1 for a in range(3)])
    return x


def centred(item: Item, target: Grid) -> Item:
    """The same item with the origin of its millimetre frame in the middle of `target`."""
    shift = np.eye(4)
    shift[:3, 3] = target.centre
    centre = tuple(c - t for c, t in zip(item.grid.centre, target.centre, strict=True))
    grid = dataclasses.replace(item.grid, centre=centre)
    header = {**item.header, "frame_mm": np.asarray(item.header["frame_mm"]) @ shift}
    return dataclasses.replace(item, grid=grid, header=header)
