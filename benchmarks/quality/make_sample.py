"""Makes the packaged sample (plugins/pdframe_data/chest) from the scan that it is of. Protocol `chest-v1`.

    python benchmarks/quality/make_sample.py SCAN.nii.gz

SCAN is `chest_lidc_0001.nii.gz`, SHA-256 below: LIDC-IDRI-0001, 2 x 2 in-plane mean. The volume is the scan on 128^3
voxels of 2.75 mm around the body. The measurements are made from the scan's native grid (256 x 256 x 133), each pixel
the mean intensity of 2 x 2 samples.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

from pdframe import build
from pdframe.ct.geometry import covers
from pdframe.ct.nifti import write_nifti
from pdframe.measure import save, simulate

SCAN_SHA256 = "fc64ff2525309d35da60a9be6f67534419d56ea33ccd9b861a02d26a57791302"
OUT = Path(__file__).parents[2] / "plugins" / "pdframe_data" / "chest"
NAME = "chest_lidc_0001"

PROTOCOL = "chest-v1"
GRID = {"shape": (128, 128, 128), "spacing_mm": (2.75, 2.75, 2.75)}
SCANNER = {
    "source_axis_mm": 1000.0,
    "source_panel_mm": 1500.0,
    "panel": (192, 192),
    "pixel_mm": (4.125, 4.125),
}
NOISE = {"photons": 1e5, "electronic": 5.0}
OVERSAMPLING = 2
SEEDS = {20: 20, 8: 8}


def main(scan: Path) -> None:
    if hashlib.sha256(scan.read_bytes()).hexdigest() != SCAN_SHA256:
        sys.exit(f"{scan}: not the scan that the sample is of (SHA-256 differs)")
    dataset = build("dataset", "nifti", path=scan, **GRID)
    item = dataset.load(dataset.names()[0])
    OUT.mkdir(parents=True, exist_ok=True)
    write_nifti(OUT / f"{NAME}.nii.gz", item.x, item.grid, item.header)
    noise = build("noise", "photon", **NOISE)
    for views, seed in SEEDS.items():
        operator = build("operator", "cone_beam", grid=item.grid, views=views, **SCANNER)
        if not covers(operator.geometry, item.grid):
            sys.exit("the panel does not cover the volume")
        measured = simulate(dataset, dataset.names()[0], operator, noise, seed=seed, oversampling=OVERSAMPLING)
        record = {**measured.record, "item": NAME, "protocol": PROTOCOL, "scan_sha256": SCAN_SHA256}
        save(dataclasses.replace(measured, record=record), OUT / f"chest_v1_{views}_views.safetensors")
        print(views, "views", tuple(measured.y.shape), record)
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(OUT.glob("*.[ns]*[zs]"))}
    origin = {
        "protocol": PROTOCOL,
        "origin": "LIDC-IDRI-0001, The Cancer Imaging Archive",
        "licence": "CC BY 3.0",
        "scan_sha256": SCAN_SHA256,
        "files": files,
    }
    (OUT / "origin.json").write_text(json.dumps(origin, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
