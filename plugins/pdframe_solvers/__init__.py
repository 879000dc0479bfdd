"""Solvers that use a learned prior."""

from pdframe.hooks import Entry, hookimpl
from pdframe_solvers.references import DDS


@hookimpl
def pdframe_register() -> list[Entry]:
    return [
        Entry(
            "solver",
            "dds",
            "pdframe_solvers.dds:DDSConfig",
            "Decomposed diffusion sampling: denoise, conjugate gradients on the data, DDIM step",
            example=(("steps", 4), ("cg", 3)),
            cite=DDS,
        )
    ]
