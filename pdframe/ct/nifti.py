"""NIfTI files in and out: Hounsfield units there, attenuation here; orientation and affine kept.

Inside, a volume is (z, y, x) with z towards the head (S), y towards the back (P), x towards the patient's left (L):
the order of a stack of axial slices as radiologists view them. A file's axes are brought to the closest of these
by permutation and flips alone, no value is interpolated. The way back is in the header:

    frame_mm: 4x4, from (z, y, x, 1) in the millimetres of the `Grid` to RAS millimetres of the scanner;
    stored_axes: for each axis of the file, which of (z, y, x) it is and whether it runs the other way.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pdframe.core.grid import Grid
from pdframe.core.problem import Item
from pdframe.ct.units import attenuation_to_hu, hu_to_attenuation

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img")
#: `frame_mm` of a volume that comes from no file: z, y, x run towards S, P, L; and its axes in a file are x, y, z.
FRAME = np.array([[0.0, 0.0, -1.0, 0.0], [0.0, -1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
STORED_AXES = ((2, False), (1, False), (0, False))
#: Cosine between two axes above which a grid counts as sheared; headers round to about 1e-5.
_SHEAR = 1e-3


def read_nifti(path: str | os.PathLike[str], *, fill_nonfinite_hu: float | None = None) -> Item:
    """A scan in HU as an `Item`: x (1, 1, z, y, x) attenuation in 1/mm, float32, on a grid centred at the origin.

    fill_nonfinite_hu: what to put where the file holds NaN or infinity; None refuses such a file.
    Raises FileNotFoundError, or ValueError with one line that says what is wrong with the file and what to do.
    """
    path = Path(path)
    image = _open(path)
    affine, notes = _affine(image, path)
    hu = _values(image, path)
    if not np.isfinite(hu).all():
        if fill_nonfinite_hu is None:
            bad = int((~np.isfinite(hu)).sum())
            raise ValueError(
                f"{path}: {bad} values are NaN or infinite; set fill_nonfinite_hu (-1000 is air) to read it"
            )
        hu = np.where(np.isfinite(hu), hu, np.float32(fill_nonfinite_hu))
    axes = _stored_axes(affine)
    hu, affine = _canonical(hu, affine, axes)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    grid = Grid(hu.shape, tuple(spacing))
    header = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "frame_mm": affine @ np.linalg.inv(_index_to_mm(grid)),
        "stored_axes": axes,
        "stored_dtype": str(image.get_data_dtype()),
        "notes": (*notes, *_spacing_notes(spacing), *_value_notes(image, hu)),
    }
    x = hu_to_attenuation(torch.from_numpy(np.ascontiguousarray(hu, dtype=np.float32)))[None, None]
    return Item(name_of(path), x, grid, header)


def write_nifti(
    path: str | os.PathLike[str],
    x: Tensor,
    grid: Grid,
    header: Mapping[str, object] | None = None,
    *,
    dtype: str = "int16",
    difference: bool = False,
) -> None:
    """x (1, 1, z, y, x) in 1/mm to a file in HU; whole or not at all, and the same bytes for the same values.

    header: of the item that x belongs to (`frame_mm`, `stored_axes`); any grid in that item's frame lands in the
    right place, so a crop or another spacing is right too. Without one the volume is centred on the origin.
    dtype: "int16" rounds to whole HU, "float32" does not. difference: x is a difference or a deviation, so 0 is 0 HU.
    """
    import nibabel as nib

    header = header or {}
    values = attenuation_to_hu(x.detach().double().cpu()) + (1000.0 if difference else 0.0)
    hu = values.reshape(grid.shape).numpy()
    if dtype == "int16":
        hu = np.clip(np.rint(hu), -32768, 32767)
    affine = np.asarray(header.get("frame_mm", FRAME)) @ _index_to_mm(grid)
    hu, affine = _stored(hu.astype(dtype), affine, header.get("stored_axes", STORED_AXES))
    image = nib.Nifti1Image(hu, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    data = image.to_bytes()
    path = Path(path)
    data = gzip.compress(data, compresslevel=6, mtime=0) if path.name.endswith(".gz") else data
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    os.replace(part, path)


def name_of(path: Path) -> str:
    """The file's name without its suffixes."""
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def _open(path: Path) -> Nifti1Image:
    import nibabel as nib

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.name.lower().endswith(SUFFIXES):
        raise ValueError(
            f"{path}: expected NIfTI ({', '.join(SUFFIXES)}); convert it first, e.g. with SimpleITK or mri_convert"
        )
    try:
        with _silent(nib.imageglobals.logger):  # what is wrong with a header is said here, in one line
            image = nib.load(path)
    except (
        nib.filebasedimages.ImageFileError,
        nib.spatialimages.HeaderDataError,
        OSError,
        EOFError,
        zlib.error,
    ) as error:
        raise ValueError(
            f"{path}: not a readable NIfTI file ({_one_line(error)}); copy it again from its source"
        ) from error
    if not isinstance(image, nib.Nifti1Pair):  # Nifti1Image and both of NIfTI-2 derive from it; Analyze does not
        raise ValueError(
            f"{path}: expected NIfTI, got {type(image).__name__}, which has no orientation; convert it first"
        )
    shape = image.shape
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise ValueError(
            f"{path}: expected one 3D volume, got shape {tuple(shape)}; split it into single volumes first"
        )
    if min(shape) < 1:
        raise ValueError(f"{path}: expected a volume, got shape {tuple(shape)}; copy the file again from its source")
    return image


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    """Not by its handlers: a logger that has none hands what it says to Python's, which prints it."""
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _values(image: Nifti1Image, path: Path) -> np.ndarray:
    try:
        values = np.asanyarray(image.dataobj)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path}: the file is cut short or damaged ({_one_line(error)}); copy it again") from error
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{path}: expected numbers in HU, got {values.dtype}; is it a colour image?")
    return values.reshape(values.shape[:3]).astype(np.float32)


def _affine(image: Nifti1Image, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Voxel index (file order) -> RAS mm, and what to note. sform wins over qform, as the standard recommends."""
    header = image.header
    codes = int(header["qform_code"]), int(header["sform_code"])
    if codes == (0, 0):
        raise ValueError(
            f"{path}: no orientation (qform and sform codes are 0); set one, e.g. with nibabel's set_sform"
        )
    scale = np.diag([{"meter": 1000.0, "micron": 1e-3}.get(header.get_xyzt_units()[0], 1.0)] * 3 + [1.0])
    affine = scale @ np.array(image.affine, dtype=np.float64)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or lengths.min() <= 0:
        raise ValueError(f"{path}: voxel spacing must be positive and finite: got {lengths} mm; repair the header")
    directions = affine[:3, :3] / lengths
    worst = float(np.abs(directions.T @ directions - np.eye(3)).max())
    if worst > _SHEAR:
        raise ValueError(
            f"{path}: its axes are not at right angles (cosine {worst:.2f}; a tilted gantry?); resample it straight"
        )
    agree = not all(codes) or np.allclose(scale @ image.get_qform(), affine, atol=1e-2)
    return affine, () if agree else ("qform and sform disagree: sform is used",)


def _spacing_notes(spacing: np.ndarray) -> tuple[str, ...]:
    """Signs that the header counts in another unit than it says: no scanner has voxels so small or so large."""
    if 0.02 <= spacing.min() and spacing.max() <= 20:
        return ()
    return (f"voxels of {' x '.join(f'{s:.3g}' for s in spacing)} mm: perhaps the header's unit is not mm",)


def _value_notes(image: Nifti1Image, hu: np.ndarray) -> tuple[str, ...]:
    """Signs that the values may not be Hounsfield units; nothing in the format says so."""
    notes = []
    if -5 < hu.min() and 0 < hu.max() < 5:
        notes.append(f"values from {hu.min():.3g} to {hu.max():.3g}: perhaps attenuation in 1/mm or 1/cm, not HU")
    elif image.get_data_dtype().itemsize == 1:
        notes.append("8-bit values: perhaps a display window, not HU")
    elif hu.min() >= 0:
        notes.append("no value below 0: perhaps not HU")
    if hu.max() > 32000:
        notes.append(f"values reach {hu.max():.0f}: perhaps not HU")
    return tuple(notes)


def _stored_axes(affine: np.ndarray) -> tuple[tuple[int, bool], ...]:
    """For each file axis: which of (z, y, x) it is nearest to, and whether it runs against S, P or L."""
    import nibabel as nib

    axes = []
    for ras_axis, sign in nib.io_orientation(affine):
        toward = 1 if ras_axis == 2 else -1
        axes.append((2 - int(ras_axis), sign != toward))
    return tuple(axes)


def _canonical(
    values: np.ndarray, affine: np.ndarray, axes: tuple[tuple[int, bool], ...]
) -> tuple[np.ndarray, np.ndarray]:
    """File order to (z, y, x)."""
    order = [[axis for axis, _ in axes].index(a) for a in range(3)]
    reverse = [axes[f][1] for f in order]
    return _flip(values.transpose(order), affine[:, [*order, 3]], reverse)


def _stored(
    values: np.ndarray, affine: np.ndarray, axes: tuple[tuple[int, bool], ...]
) -> tuple[np.ndarray, np.ndarray]:
    """(z, y, x) to file order."""
    order = [axis for axis, _ in axes]
    return _flip(values.transpose(order), affine[:, [*order, 3]], [reverse for _, reverse in axes])


def _flip(values: np.ndarray, affine: np.ndarray, reverse: list[bool]) -> tuple[np.ndarray, np.ndarray]:
    affine = affine.copy()
    for axis, turn in enumerate(reverse):
        if turn:
            values = np.flip(values, axis)
            affine[:, 3] += affine[:, axis] * (values.shape[axis] - 1)
            affine[:, axis] *= -1
    return values, affine


def _index_to_mm(grid: Grid) -> np.ndarray:
    """(z, y, x, 1) voxel index -> millimetres of the grid."""
    matrix = np.diag([*grid.spacing, 1.0])
    matrix[:3, 3] = [c - (n - 1) / 2 * s for c, n, s in zip(grid.centre, grid.shape, grid.spacing, strict=True)]
    return matrix


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
