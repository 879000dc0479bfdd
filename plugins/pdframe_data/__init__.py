"""Where volumes come from and how they are judged: datasets, noise models, the CT metric."""

from pdframe.hooks import Entry, hookimpl
from pdframe_data.references import LIDC, SHEPP_LOGAN, SSIM


@hookimpl
def pdframe_register() -> list[Entry]:
    small = (("shape", (12, 10, 8)), ("spacing_mm", (16.0, 20.0, 24.0)))
    return [
        Entry(
            "dataset",
            "sample",
            "pdframe_data.sample:SampleConfig",
            "One real chest CT, packaged, with measurements",
            cite=LIDC,
        ),
        Entry("dataset", "nifti", "pdframe_data.nifti:NiftiConfig", "Your own scans: NIfTI files in HU"),
        Entry(
            "dataset",
            "phantom",
            "pdframe_data.phantom:PhantomConfig",
            "Shepp-Logan head or random ellipsoids, projected exactly",
            example=small,
            cite=SHEPP_LOGAN,
        ),
        Entry("noise", "none", "pdframe_data.noise:NoNoiseConfig", "The measurement as it is"),
        Entry(
            "noise",
            "gaussian",
            "pdframe_data.noise:GaussianConfig",
            "Independent Gaussian noise",
            example=(("deviation", 0.1),),
        ),
        Entry("noise", "photon", "pdframe_data.noise:PhotonConfig", "Photon counting and electronic noise of CT"),
        Entry(
            "metric",
            "ct",
            "pdframe_data.metric:CTMetricConfig",
            "PSNR, SSIM (3D, by slice), RMSE in an HU window",
            cite=SSIM,
        ),
    ]
