"""Make rtk_joseph.npz again, the witness of tests/plugins/test_ray_rtk.py. Needs itk-rtk (pip extra `bench`)."""

import sys
from pathlib import Path

import itk
import numpy as np
from itk import RTK as rtk

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "plugins"), str(HERE.parents[1] / "benchmarks" / "speed")]

from projector import rtk_image  # noqa: E402
from test_ray_rtk import ANGLES_DEGREES, BENCH, GRID, SLICE, scene  # noqa: E402

volume, data = scene()
kind = itk.Image[itk.F, 3]
pixel = (BENCH.pixel_mm[1], BENCH.pixel_mm[0], 1.0)
geometry = rtk.ThreeDCircularProjectionGeometry.New()
for angle in ANGLES_DEGREES:
    geometry.AddProjection(BENCH.source_axis_mm, BENCH.source_panel_mm, angle, BENCH.offset_mm[1], BENCH.offset_mm[0])


def run(step: object, first: np.ndarray, first_spacing: tuple, second: np.ndarray, second_spacing: tuple) -> np.ndarray:
    step.SetInput(0, rtk_image(itk, first, first_spacing))
    step.SetInput(1, rtk_image(itk, second, second_spacing))
    step.SetGeometry(geometry)
    step.Update()
    return itk.array_from_image(step.GetOutput())


# RTK turns about y: our (z, y, x) array is its (-y, z, x).
turned = volume.transpose(1, 0, 2)[::-1]
forward = rtk.JosephForwardProjectionImageFilter[kind, kind].New()
projections = run(forward, np.zeros_like(data), pixel, turned, GRID.spacing)
backward = rtk.JosephBackProjectionImageFilter[kind, kind].New()
back = run(backward, np.zeros_like(turned), GRID.spacing, data, pixel)[::-1].transpose(1, 0, 2)
np.savez_compressed(HERE / "rtk_joseph.npz", projections=projections, back_slice=back[SLICE, 2:-2, 2:-2])
