"""Deblurring: a Gaussian blur and Landweber's iteration."""

from pdframe.hooks import Entry, hookimpl


@hookimpl
def pdframe_register() -> list[Entry]:
    small = (("width_mm", 2.0),)
    return [
        Entry("operator", "blur", "pdframe_blur.blur:BlurConfig", "Gaussian blur on any grid", example=small),
        Entry("solver", "landweber", "pdframe_blur.landweber:LandweberConfig", "Projected Landweber iteration"),
    ]
