"""A bench folder as a run would leave it, made by hand: volumes of a phantom, their metrics, invented costs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w
import torch
from torch import Tensor

import pdframe
from pdframe.bench.calibration import calibrate
from pdframe.core.problem import Item
from pdframe.core.seeds import generator
from pdframe.ct.nifti import write_nifti

#: label -> (settings, blur in voxels, noise in 1/mm at 20 views, seconds, network TFLOP, operator calls, steps)
METHODS: dict[str, tuple[dict[str, Any], float, float, float, float, int, int]] = {
    "FDK": ({"name": "fdk"}, 0.6, 3.2e-3, 0.2, 0.0, 1, 1),
    "CGLS": ({"name": "cgls", "iterations": 12}, 1.4, 1.1e-3, 1.6, 0.0, 24, 12),
    "TV": ({"name": "admm_tv", "weight": 5e-5}, 0.9, 5e-4, 21.0, 0.0, 261, 120),
    "patch3d + DDS": (
        {"name": "dds", "steps": 10, "prior": {"name": "patch3d"}, "start": {"name": "admm_tv", "weight": 5e-5}},
        0.55, 4e-4, 53.0, 18.0, 431, 10,
    ),
    "DDS from noise": ({"name": "dds", "steps": 30, "prior": {"name": "patch3d"}}, 0.6, 4.5e-4, 88.0, 54.0, 520, 30),
    "slow": ({"name": "admm_tv", "steps": 100_000}, 0.0, 0.0, 0.0, 0.0, 0, 0),
}  # fmt: skip
PROBLEMS = {"8 views": (8, 1.9), "20 views": (20, 1.0)}
SAMPLED = "patch3d + DDS"
WINDOW = (-900, 950)


def write_demo(folder: Path, *, items=None, scans=2, seeds=(0, 1), samples=4, methods=METHODS) -> Path:
    """The folder of a bench with two problems; of its methods one fails everywhere and one once."""
    items = items or [_varied(_phantom(), scan) for scan in range(scans)]
    settings = _settings(methods, len(items), seeds)
    text = tomli_w.dumps(settings)
    digest = hashlib.sha256(text.encode()).hexdigest()
    cases = [_id(p, f"patient {i + 1}", seed) for p in PROBLEMS for i in range(len(items)) for seed in seeds]
    _write(folder / "bench.toml", text)
    _write(folder / "bench.json", json.dumps({"cases": cases, "methods": list(methods)}))
    for problem in PROBLEMS:
        for scan, item in enumerate(items):
            for seed in seeds:
                place = (problem, f"patient {scan + 1}", seed)
                _case(folder, _id(*place), place, item, methods, (digest, samples))
    return folder


def _id(problem: str, scan: str, seed: int) -> str:
    return f"{problem}-{scan}-{seed}".replace(" ", "-")


def _phantom() -> Item:
    return pdframe.build("dataset", "phantom", shape=(16, 20, 24), spacing_mm=(28.0, 16.0, 10.0)).load("shepp_logan")


def hounsfield(x: Tensor) -> Tensor:
    """(z, y, x) in HU, as a page keeps them: whole."""
    return (1000.0 * (x[0, 0].double() / 0.02 - 1.0)).round()


def _settings(methods: dict[str, Any], scans: int, seeds: tuple[int, ...]) -> dict[str, Any]:
    shared = {"noise": {"name": "photon", "photons": 1e5}, "metrics": {"name": "ct", "window_hu": list(WINDOW)}}
    return {
        "title": "Sparse views, a demonstration",
        "seeds": list(seeds),
        "problem": [
            {"label": label, "set": {"operator": {"name": "cone_beam", "views": views}, **shared}}
            for label, (views, _) in PROBLEMS.items()
        ],
        "scan": [
            {"label": f"patient {i + 1}", "split": "test", "dataset": {"name": "phantom"}, "item": "shepp_logan"}
            for i in range(scans)
        ],
        "method": [{"label": label, **told[0]} for label, told in methods.items()],
    }


def _case(folder: Path, case: str, place: tuple[str, str, int], item: Item, methods: Any, shared: Any) -> None:
    from safetensors.torch import save_file

    problem, scan, seed = place
    digest, samples = shared
    (folder / "truth").mkdir(parents=True, exist_ok=True)
    save_file({"x": item.x.contiguous()}, folder / "truth" / f"{case}.safetensors")
    _write(folder / "cases" / case / "case.json", json.dumps({"id": case, "grid": asdict(item.grid)}))
    y_sha256 = hashlib.sha256(case.encode()).hexdigest()
    for slot, (label, told) in enumerate(methods.items()):
        at = folder / "rows" / case / f"method-{slot}"
        row = {
            "case": case, "problem": problem, "scan": scan, "split": "test", "seed": seed, "method": label,
            "y_sha256": y_sha256, "bench_sha256": digest, "timing": label != "CGLS",
            "config": {"label": label, **told[0]},
            "budget": {"seconds": 120.0, "network_flops": None}, "date": "2026-03-01T10:00:00+00:00",
            "command": f"pdframe bench run demo.toml --only '{problem}/{scan}/{seed}/{label}'",
            "machine": {"cpu": "Example CPU 2.0 GHz", "cores": 2, "memory_gib": 24.0, "torch": "2.13.0",
                        "pdframe": "0.1.0"},
            "curve": [], "calibration": None,
        }  # fmt: skip
        if told[3] == 0.0:
            reason = "no result within 120 s: the worker was ended"
            row |= {"status": "timeout", "reason": reason, "rows": []}
        elif label == "CGLS" and (problem, seed) == ("8 views", 0) and scan == "patient 1":
            row |= {"status": "out_of_memory", "reason": "the worker asked for 9.1 GB, the limit is 8 GB", "rows": []}
        else:
            row |= _solved(at, told, place, item, samples if label == SAMPLED else 1)
        _write(at / "row.json", json.dumps(row))


def _solved(at: Path, told: Any, place: tuple[str, str, int], item: Item, samples: int) -> dict[str, Any]:
    metric = pdframe.build("metric", "ct", window_hu=WINDOW)
    harder = PROBLEMS[place[0]][1]
    _, blur, noise, seconds, tflop, calls, steps = told
    drawn = torch.stack(
        [
            _degraded(item.x, blur * harder, noise * harder, generator(place[2], *map(str, place), i, blur))
            for i in range(samples)
        ]
    )
    mean = drawn.mean(0)
    at.mkdir(parents=True, exist_ok=True)
    write_nifti(at / "volume.nii.gz", mean, item.grid, item.header)
    views = PROBLEMS[place[0]][0]
    usage = {
        "network_calls": steps if tflop else 0, "network_voxels": tflop * 1e6, "network_flops": tflop * 1e12,
        "forward_calls": calls, "adjoint_calls": calls, "view_calls": calls * 2 * views,
        "seconds": seconds * (1 + 0.1 * place[2]), "network_seconds": 0.6 * seconds if tflop else 0.0,
        "operator_seconds": 0.3 * seconds, "peak_memory_bytes": int(6e8 + 2e7 * seconds),
    }  # fmt: skip
    measured = metric.measure(drawn[0], item.x)
    rows = [{"estimate": "sample", "samples": 1, "metrics": measured, "residual": 1.0 + noise * 100, "usage": usage}]
    found: dict[str, Any] = {"status": "finished", "reason": "The solver reached its own stopping rule.", "rows": rows}
    if samples > 1:
        of_all = {k: v * samples if k != "peak_memory_bytes" else v for k, v in usage.items()}
        rows.append({"estimate": f"mean of {samples}", "samples": samples, "metrics": metric.measure(mean, item.x),
                     "residual": 1.0, "usage": of_all})  # fmt: skip
        found["calibration"] = calibrate(drawn[:, 0, 0], item.x[0, 0])
    found["curve"] = _curve(rows[0], steps)
    return found


def _curve(row: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    """Rises to the row's own quality, as snapshots of a solver do."""
    points, end = [], row["metrics"]
    for i in range(1, min(steps, 12) + 1):
        share = i / min(steps, 12)
        usage = row["usage"]
        spent = {name: share * usage[name] for name in ("seconds", "network_flops", "network_voxels", "view_calls")}
        short = (1 - share) ** 2
        quality = {"psnr_db": end["psnr_db"] - 9 * short, "rmse_hu": end["rmse_hu"] * (1 + short)}
        points.append({"step": round(share * steps), **spent, **quality})
    return points


def _degraded(x: Tensor, blur: float, noise: float, rng: torch.Generator) -> Tensor:
    reach = max(1, round(3 * blur))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / blur) ** 2)
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = 2 * reach + 1
        pad = [0] * 6
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = reach
        x = torch.nn.functional.conv3d(
            torch.nn.functional.pad(x, pad, mode="replicate"), (weights / weights.sum()).view(shape)
        )
    return (x + noise * torch.randn(x.shape, generator=rng)).clamp_min(0)


def _varied(item: Item, scan: int) -> Item:
    """Another patient: the same body with a lesion of its own, so that no two truths agree."""
    x = item.x.clone()
    nz, ny, nx = x.shape[2:]
    at = (nz // 3 + 2 * scan, ny // 2, nx // 3 + 2 * scan)
    x[..., at[0] : at[0] + nz // 8 + 1, at[1] : at[1] + ny // 8 + 1, at[2] : at[2] + nx // 8 + 1] = 0.024 + 0.002 * scan
    return Item(item.name, x, item.grid, item.header)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
