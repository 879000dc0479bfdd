"""`phantom`: volumes known in closed form, so that their projections are too."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from pdframe.core.grid import Grid
from pdframe.core.operator import ForwardOperator
from pdframe.core.problem import Dataset, Item
from pdframe.core.seeds import generator
from pdframe.ct.scan import geometry_of
from pdframe.hooks import Config
from pdframe.measure import exact_data
from pdframe_data.ellipsoids import Ellipsoid, line_integrals, random_ellipsoids, shepp_logan, voxels


class PhantomConfig(Config):
    """A phantom that fills a grid."""

    figure: Literal["shepp_logan", "ellipsoids"] = Field(
        "shepp_logan", description="the 3D Shepp-Logan head, or random ellipsoids in a water body"
    )
    shape: tuple[PositiveInt, PositiveInt, PositiveInt] = Field((128, 128, 128), description="voxels along (z, y, x)")
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field(
        (2.0, 2.0, 2.0), description="voxel size along (z, y, x)"
    )
    items: PositiveInt = Field(1, description="number of different figures of random ellipsoids")
    count: PositiveInt = Field(20, description="random ellipsoids in each")
    seed: int = Field(0, ge=0, description="seed of the random ellipsoids")

    def build(self) -> Phantom:
        return Phantom(self)


@dataclass(frozen=True)
class Phantom(Dataset):
    """Items are voxelised without aliasing; their measurements are simulated from exact line integrals."""

    settings: PhantomConfig

    def names(self) -> tuple[str, ...]:
        if self.settings.figure == "shepp_logan":
            return ("shepp_logan",)
        return tuple(f"ellipsoids_{i}" for i in range(self.settings.items))

    def load(self, name: str) -> Item:
        grid = Grid(self.settings.shape, self.settings.spacing_mm)
        parts = self.ellipsoids(name)
        outline = voxels([dataclasses.replace(parts[0], value=1.0)], grid) > 0.5
        return Item(name, voxels(parts, grid), grid, {"origin": "computed"}, {"body": outline})

    def ellipsoids(self, name: str) -> Sequence[Ellipsoid]:
        """The figure itself, in millimetres about the middle of the grid; the first part is its outline."""
        if name not in self.names():
            raise KeyError(f"no item {name!r}; there are {', '.join(self.names())}")
        extent = Grid(self.settings.shape, self.settings.spacing_mm).extent
        half_widths = [e / 2 for e in extent[::-1]]
        if name == "shepp_logan":
            return shepp_logan(half_widths)
        return random_ellipsoids(half_widths, self.settings.count, generator(self.settings.seed, name))


@exact_data.register
def _(dataset: Phantom, name: str, operator: ForwardOperator) -> Tensor | None:
    geometry = geometry_of(operator)
    return None if geometry is None else line_integrals(dataset.ellipsoids(name), geometry).float()
