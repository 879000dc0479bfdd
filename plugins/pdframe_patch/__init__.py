"""The global-aware 3D patch diffusion prior (arXiv 2512.18161): network, tiling, training, weights."""

from __future__ import annotations

from pdframe.hooks import Entry, hookimpl
from pdframe_patch.references import EDM, PATCH


@hookimpl
def pdframe_register() -> list[Entry]:
    return [
        Entry(
            "prior",
            "patch3d",
            "pdframe_patch.prior:PatchPriorConfig",
            "3D patch diffusion prior that sees the whole volume downsampled; any grid, shipped weights for chest CT",
            cite=PATCH + EDM,
        ),
        Entry(
            "task",
            "patch3d",
            "pdframe_patch.training:PatchTrainingConfig",
            "train the 3D patch diffusion prior on CT scans",
            cite=PATCH + EDM,
        ),
    ]
