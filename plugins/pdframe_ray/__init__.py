"""Cone-, fan- and parallel-beam projectors with an exact transpose, in torch and, for upright panels, numba; FDK."""

from pdframe.hooks import Entry, hookimpl
from pdframe_ray.references import JOSEPH


@hookimpl
def pdframe_register() -> list[Entry]:
    small = (("views", 5),)
    return [
        Entry(
            "operator",
            "cone_beam",
            "pdframe_ray.config:ConeBeamConfig",
            "cone beam, any device; FDK",
            small,
            cite=JOSEPH,
        ),
        Entry(
            "operator", "fan_beam", "pdframe_ray.config:FanBeamConfig", "fan beam of one slice; FBP", small, cite=JOSEPH
        ),
        Entry(
            "operator",
            "parallel_beam",
            "pdframe_ray.config:ParallelBeamConfig",
            "parallel beam; FBP",
            small,
            cite=JOSEPH,
        ),
    ]
