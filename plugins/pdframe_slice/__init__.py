"""Diffusion priors that know slices: one at a time, or three (DiffusionBlend++); network, grouping, training."""

from __future__ import annotations

from pdframe.hooks import Entry, hookimpl
from pdframe_slice.references import DDS, DIFFUSION_BLEND, DIFFUSION_MBIR, EDM


@hookimpl
def pdframe_register() -> list[Entry]:
    return [
        Entry(
            "prior",
            "slice2d",
            "pdframe_slice.prior:Slice2DConfig",
            "2D diffusion prior applied slice by slice along z, as in DDS and DiffusionMBIR",
            cite=DDS + DIFFUSION_MBIR + EDM,
        ),
        Entry(
            "prior",
            "blend3",
            "pdframe_slice.prior:Blend3Config",
            "diffusion prior of three slices, grouped anew at every call, as in DiffusionBlend++",
            cite=DIFFUSION_BLEND + EDM,
        ),
        Entry(
            "task",
            "slice2d",
            "pdframe_slice.training:Slice2DTrainingConfig",
            "train the 2D slice prior on CT scans",
            cite=DDS + DIFFUSION_MBIR + EDM,
        ),
        Entry(
            "task",
            "blend3",
            "pdframe_slice.training:Blend3TrainingConfig",
            "train the three-slice prior on CT scans",
            cite=DIFFUSION_BLEND + EDM,
        ),
    ]
