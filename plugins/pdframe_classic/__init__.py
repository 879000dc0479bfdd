"""Classical reconstruction: direct inversion, least squares, total variation (as a solver and as a prior)."""

from pdframe.hooks import Entry, hookimpl
from pdframe_classic.references import (
    ADMM,
    CONJUGATE_GRADIENTS,
    FAST_PROJECTION,
    FDK,
    KAK_SLANEY,
    PRIMAL_DUAL,
    SIRT,
    TIKHONOV,
    TV,
)


@hookimpl
def pdframe_register() -> list[Entry]:
    return [
        Entry("solver", "fdk", "pdframe_classic.direct:FDKConfig", "Filtered back-projection of a cone beam", cite=FDK),
        Entry(
            "solver",
            "fbp",
            "pdframe_classic.direct:FBPConfig",
            "Filtered back-projection, parallel or fan beam",
            cite=KAK_SLANEY,
        ),
        Entry(
            "solver",
            "cgls",
            "pdframe_classic.least_squares:CGLSConfig",
            "Weighted least squares by conjugate gradients, with optional Tikhonov damping",
            example=(("iterations", 4),),
            cite=CONJUGATE_GRADIENTS,
        ),
        Entry(
            "solver",
            "sirt",
            "pdframe_classic.sirt:SIRTConfig",
            "Simultaneous iterative reconstruction (SIRT), stopped early, with non-negativity",
            example=(("steps", 8),),
            cite=SIRT,
        ),
        Entry(
            "solver",
            "tikhonov",
            "pdframe_classic.tikhonov:TikhonovConfig",
            "Tikhonov regularisation of the slope or of the volume itself, by preconditioned conjugate gradients",
            cite=TIKHONOV + CONJUGATE_GRADIENTS,
        ),
        Entry(
            "solver",
            "admm_tv",
            "pdframe_classic.admm_tv:ADMMTVConfig",
            "Total variation with non-negativity, by ADMM",
            example=(("steps", 6),),
            cite=TV + ADMM,
        ),
        Entry(
            "solver",
            "pdhg_tv",
            "pdframe_classic.pdhg_tv:PDHGTVConfig",
            "Total variation with non-negativity, by the primal-dual method of Chambolle and Pock",
            example=(("steps", 12),),
            cite=TV + PRIMAL_DUAL,
        ),
        Entry(
            "prior",
            "tv",
            "pdframe_classic.tv_prior:TVPriorConfig",
            "Total variation as a denoiser, for `admm` above all",
            cite=TV + FAST_PROJECTION,
        ),
    ]
