"""Solvers that use a learned prior."""

from pdframe.hooks import Entry, hookimpl
from pdframe_solvers.references import DAPS, DDS, DIFFPIR, DIFFUSION_MBIR, DPS, PLUG_AND_PLAY, RED_DIFF


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
        ),
        Entry(
            "solver",
            "dds_ztv",
            "pdframe_solvers.dds_ztv:DDSZTVConfig",
            "DDS with total variation along z, for priors that know one slice at a time",
            example=(("steps", 4), ("cg", 3)),
            cite=DDS + DIFFUSION_MBIR,
        ),
        Entry(
            "solver",
            "dps",
            "pdframe_solvers.dps:DPSConfig",
            "Diffusion posterior sampling: guidance by the gradient of the misfit, through the prior or without it",
            example=(("steps", 4),),
            cite=DPS,
        ),
        Entry(
            "solver",
            "diffpir",
            "pdframe_solvers.diffpir:DiffPIRConfig",
            "Plug-and-play restoration by diffusion: denoise, proximal data step, noise seen from the corrected volume",
            example=(("steps", 4), ("cg", 3)),
            cite=DIFFPIR,
        ),
        Entry(
            "solver",
            "red_diff",
            "pdframe_solvers.red_diff:REDDiffConfig",
            "Regularisation by denoising diffusion: one volume, optimised by Adam",
            example=(("steps", 4),),
            cite=RED_DIFF,
        ),
        Entry(
            "solver",
            "daps",
            "pdframe_solvers.daps:DAPSConfig",
            "Decoupled annealing: flow to a clean volume, draw it given the data, noise it to the next level",
            example=(("steps", 4), ("cg", 3)),
            cite=DAPS,
        ),
        Entry(
            "solver",
            "admm",
            "pdframe_solvers.admm:ADMMConfig",
            "Plug-and-play ADMM with any prior, its noise level annealed",
            example=(("steps", 6), ("anneal", 3), ("cg", 3)),
            cite=PLUG_AND_PLAY,
        ),
    ]
