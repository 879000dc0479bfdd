"""Pictures of a bench for where no page can be shown: of each problem one case, slices of all methods, error maps."""

from __future__ import annotations

from pathlib import Path

from pdframe import runfolder
from pdframe.ct.nifti import read_nifti
from pdframe.ct.windows import Window
from pdframe.report.figure import Shown, draw
from pdframe.report.page_data import Told, shown_cases
from pdframe.report.tables import number

#: As in the picture of a run: from air to bone, so that soft tissue and lung are both told apart.
WINDOW_HU = (-1000.0, 400.0)


def write_pictures(told: Told) -> list[Path]:
    """slices-<problem>.png in the bench folder, of the first case of each problem; none for what is no CT volume."""
    from safetensors.torch import load_file

    written: dict[str, Path] = {}
    for case in shown_cases(told):
        if case.problem in written or told.folder is None:
            continue
        tensors = load_file(case.truth)
        grid = read_nifti(case.methods[0][1]).grid
        shown = [Shown(label, read_nifti(path).x, _psnr(told, case.name, label)) for label, path in case.methods]
        path = told.folder / f"slices-{runfolder.folder_names([case.problem])[0]}.png"
        mask = next((value for name, value in tensors.items() if name.startswith("mask.")), None)
        title = f"{case.problem}, {case.scan}, seed {case.seed}"
        draw(path, tensors["x"], shown, grid, window=Window(*WINDOW_HU), mask=mask, title=title)
        written[case.problem] = path
    return list(written.values())


def _psnr(told: Told, case: str, method: str) -> str:
    """What stands below a method's name: the metric of the volume that is kept, that of the last estimate."""
    own = [row for row in told.rows if row["case"] == case and row["method"] == method]
    value = own[-1]["metrics"].get(told.summary.metric) if own else None
    unit = " dB" if told.summary.metric.endswith("_db") else ""
    return "" if value is None else f"{number(value, told.summary.metric)}{unit}"
