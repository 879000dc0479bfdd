"""A diffusion prior that sees a whole volume at once, without patches: for small grids."""

from __future__ import annotations

from pdframe.hooks import Entry, hookimpl
from pdframe_volume.references import EDM


@hookimpl
def pdframe_register() -> list[Entry]:
    return [
        Entry(
            "prior",
            "volume3d",
            "pdframe_volume.prior:VolumePriorConfig",
            "3D diffusion prior of the whole volume without patches, for small grids; train your own weights",
            cite=EDM,
        ),
        Entry(
            "task",
            "volume3d",
            "pdframe_volume.training:VolumeTrainingConfig",
            "train the whole-volume prior on CT scans",
            cite=EDM,
        ),
    ]
