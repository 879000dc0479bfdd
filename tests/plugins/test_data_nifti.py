"""NIfTI in and out: values, orientation and affine survive; what cannot be read is refused in one line."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from pdframe.core.grid import Grid
from pdframe.ct.nifti import read_nifti, write_nifti
from pdframe.ct.resample import resample
from pdframe.ct.units import attenuation_to_hu, hu_to_attenuation

DATA = Path(__file__).parent.parent / "data"
PLAIN = DATA / "made_ras_plain.nii.gz"

ALIKE = ("ras_plain", "permuted_axes", "oblique", "4d_singleton", "nifti2", "qform_only", "qform_sform_disagree")
ALIKE_FILES = [f"made_{name}.nii.gz" for name in ALIKE] + ["made_big_endian.nii", "made_pair.hdr", "made_pair.img"]
REFUSED = {
    "made_4d_two_volumes.nii.gz": "one 3D volume",
    "made_no_orientation.nii.gz": "no orientation",
    "made_zero_pixdim.nii": "no orientation",
    "made_truncated.nii.gz": "cut short",
    "made_float_nan_inf.nii.gz": "fill_nonfinite_hu",
    "made_sheared_sform_tilt.nii.gz": "right angles",
    "made_directed.nrrd": "convert it first",
    "made_directed.mha": "convert it first",
    "made_directed.mhd": "convert it first",
    "made_directed.raw": "convert it first",
    "nibabel_test.mgz": "convert it first",
    "nibabel_minc2_1_scale.mnc": "convert it first",
    "nibabel_example_nifti2.nii.gz": "one 3D volume",
}


def shared(name: str) -> Path:
    folder = os.environ.get("PDFRAME_DATA")
    if not folder:
        pytest.skip("PDFRAME_DATA is not set: the folder that holds ct/ and dicom/")
    return Path(folder) / "dicom" / "nifti_and_friends" / name


def plain_hu() -> np.ndarray:
    return np.asanyarray(nib.load(PLAIN).dataobj)


def save(path: Path, values: np.ndarray, affine: np.ndarray | None) -> Path:
    image = nib.Nifti1Image(values, None)
    image.header.set_qform(None, 0)
    image.header.set_sform(affine, 0 if affine is None else 1)
    nib.save(image, path)
    return path


def refused(path: Path, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        read_nifti(path)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)


def test_axes_are_head_back_left_and_values_attenuation():
    item = read_nifti(PLAIN)
    expected = plain_hu().transpose(2, 1, 0)  # this file runs L, P, S: the order z, y, x needs no flip
    assert item.x.shape == (1, 1, 32, 40, 48) and item.x.dtype == torch.float32
    assert np.abs(attenuation_to_hu(item.x.double())[0, 0].numpy() - np.clip(expected, -1000, None)).max() < 1e-3
    assert item.grid.spacing == pytest.approx((1.0, 1.5625, 1.5625)) and item.grid.centre == (0, 0, 0)


@pytest.mark.parametrize("name", ["made_permuted_axes.nii.gz", "made_oblique.nii.gz"])
def test_committed_files_read_like_the_plain_one(name):
    assert torch.equal(read_nifti(DATA / name).x, read_nifti(PLAIN).x)


@pytest.mark.parametrize("name", ALIKE_FILES)
def test_shared_files_read_like_the_plain_one(name):
    item = read_nifti(shared(name))
    assert torch.equal(item.x, read_nifti(PLAIN).x)
    assert ("qform" in " ".join(item.header["notes"])) == ("disagree" in name)


def test_scaled_integers_read_to_their_quantum():
    x = read_nifti(shared("made_uint16_scaled.nii.gz")).x
    assert float((x - read_nifti(PLAIN).x).abs().max()) < hu_to_attenuation(torch.tensor(-999.9))


@pytest.mark.parametrize(("name", "words"), REFUSED.items())
def test_shared_files_refused_in_one_line(name, words):
    refused(shared(name), words)


def test_a_float_file_reads_where_it_is_in_the_scanner_to_the_bit(tmp_path):
    """Big-endian float32, x, y, z towards R, A, S; it holds no HU, which is noted."""
    path = shared("nibabel_reoriented_anat_moved.nii")
    item, original = read_nifti(path), nib.load(path)
    assert item.grid.shape == (22, 26, 21) and item.grid.spacing == (4.0, 4.0, 4.0)
    assert item.header["notes"] == ("no value below 0: perhaps not HU",)
    write_nifti(tmp_path / "back.nii", item.x, item.grid, item.header, dtype="float32")
    back = nib.load(tmp_path / "back.nii")
    assert np.allclose(back.affine, original.affine, atol=1e-5)
    assert np.abs(back.get_fdata() - original.get_fdata()).max() < 1e-2  # of 21200: float32 on the way through 1/mm


def test_what_is_refused_is_one_line_on_the_terminal_too(tmp_path):
    """nibabel has a log of its own, and Python prints what no handler takes; pytest's handler takes it."""
    image = nib.Nifti1Image(plain_hu(), None)
    image.header["pixdim"][1:4] = 0
    image.header.set_qform(None, 0)
    (tmp_path / "zero.nii").write_bytes(image.to_bytes())
    code = "import sys; from pdframe.ct.nifti import read_nifti\ntry: read_nifti(sys.argv[1])\n"
    code += "except ValueError as error: sys.exit(str(error))"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "zero.nii"], capture_output=True, text=True)
    assert done.returncode == 1 and "no orientation" in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_log_of_nibabel_is_as_it_was_after_a_file():
    logger = nib.imageglobals.logger
    before = (logger.disabled, list(logger.handlers))
    read_nifti(PLAIN)
    assert (logger.disabled, logger.handlers) == before


@pytest.mark.parametrize("name", ["niivue_CT_pitch_rotated_u8.nii.gz", "nibabel_standard.nii.gz"])
def test_eight_bit_files_are_read_with_a_note(name):
    assert any("8-bit" in note for note in read_nifti(shared(name)).header["notes"])


def test_attenuation_taken_for_hounsfield_units_is_noted(tmp_path):
    path = tmp_path / "attenuation.nii"
    write_nifti(path, hu_to_attenuation(0.03 * torch.rand(1, 1, 4, 4, 4)), Grid((4, 4, 4), (1.0,) * 3), dtype="float32")
    assert any("perhaps attenuation in 1/mm" in note for note in read_nifti(path).header["notes"])


def test_truncated_gzip_is_refused():
    refused(DATA / "made_truncated.nii.gz", "cut short")


def test_garbage_is_refused(tmp_path):
    path = tmp_path / "garbage.nii.gz"
    path.write_bytes(gzip.compress(b"not a scan" * 100))
    refused(path, "not a readable NIfTI")


def test_odd_headers_are_refused(tmp_path):
    hu, affine = plain_hu(), nib.load(PLAIN).affine
    refused(save(tmp_path / "two.nii", np.stack([hu, hu], -1), affine), "one 3D volume")
    refused(save(tmp_path / "lost.nii", hu, None), "no orientation")
    sheared = affine.copy()
    sheared[1, 2] = 0.35
    refused(save(tmp_path / "sheared.nii", hu, sheared), "right angles")
    refused(save(tmp_path / "flat.nii", hu, affine * [0, 1, 1, 1]), "spacing")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_nifti(tmp_path / "nowhere.nii.gz")


def test_nonfinite_values_are_refused_or_filled(tmp_path):
    hu = plain_hu().astype(np.float32)
    hu[3, 4, 5], hu[0, 0, 0] = np.nan, np.inf
    path = save(tmp_path / "holes.nii.gz", hu, nib.load(PLAIN).affine)
    refused(path, "2 values are NaN or infinite")
    filled = read_nifti(path, fill_nonfinite_hu=40.0).x
    assert float(attenuation_to_hu(filled[0, 0, 5, 4, 3].double())) == pytest.approx(40.0, abs=1e-3)


@pytest.mark.parametrize("name", ["made_ras_plain.nii.gz", "made_permuted_axes.nii.gz", "made_oblique.nii.gz"])
def test_written_file_has_the_orientation_affine_and_values_of_the_one_read(name, tmp_path):
    item, original = read_nifti(DATA / name), nib.load(DATA / name)
    write_nifti(tmp_path / "out.nii.gz", item.x, item.grid, item.header)
    written = nib.load(tmp_path / "out.nii.gz")
    assert np.array_equal(written.affine, original.affine)
    assert np.array_equal(written.get_fdata(), np.clip(original.get_fdata(), -1000, None))


def test_crop_and_new_spacing_stay_where_they_were_in_the_scanner(tmp_path):
    item = read_nifti(DATA / "made_oblique.nii.gz")
    part = Grid((20, 10, 12), (2.0, 3.0, 2.5), (-3.0, 4.0, 5.0))
    write_nifti(tmp_path / "part.nii.gz", resample(item.x, item.grid, part), part, item.header)
    back = read_nifti(tmp_path / "part.nii.gz")
    shift = np.linalg.inv(item.header["frame_mm"]) @ back.header["frame_mm"]
    assert np.abs(shift[:3, :3] - np.eye(3)).max() < 1e-6
    assert shift[:3, 3] == pytest.approx(part.centre, abs=1e-4)
    assert back.grid.spacing == pytest.approx(part.spacing)


def test_same_volume_gives_the_same_bytes_and_no_torn_file(tmp_path):
    x, grid = torch.full((1, 1, 3, 4, 5), 0.02), Grid((3, 4, 5), (1.0, 1.0, 1.0))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_nifti(tmp_path / name, x, grid)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]
    assert float(np.abs(nib.load(tmp_path / "a.nii.gz").get_fdata()).max()) == 0


def test_a_difference_keeps_its_zero(tmp_path):
    x, grid = torch.full((1, 1, 2, 2, 2), 0.001), Grid((2, 2, 2), (1.0, 1.0, 1.0))
    write_nifti(tmp_path / "d.nii", x, grid, dtype="float32", difference=True)
    assert nib.load(tmp_path / "d.nii").get_fdata() == pytest.approx(50.0, abs=1e-3)
