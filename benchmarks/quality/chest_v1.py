"""Protocol `chest-v1`: tuning on val/, then the table on test/.

    python benchmarks/quality/chest_v1.py tune  DATA --views 20 8 --method tv
    python benchmarks/quality/chest_v1.py table DATA --views 20 8 --seeds 3

DATA is a folder with val/ and test/. `tune` runs every trial that chest_v1_trials.toml lists for the method on the
validation scans and appends to chest_v1_tuning.jsonl; `table` runs the settings of chest_v1_methods.toml on the test
scans and writes chest_v1_results.jsonl and chest_v1.md. Each method has the same number of trials. Runs resume.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
from pathlib import Path

import numpy as np
import tomli
import torch

from pdframe.config import load, sha256

HERE = Path(__file__).parent
VALIDATION = ("chest_lidc_0003",)
TEST = ("chest_lidc_0001", "chest_nsclcrg_r01001")
OUTSIDE = (  # out of the prior's range, reported all the same
    "abdomen_totalseg_3mm",
    "head_vtk_headsq_quarter",
    "phantom_catphan_cbct",
    "phantom_plastic_head",
)


def run_one(scan: Path, views: int, seed: int, method: dict, runs: Path, samples: int = 1) -> list[dict]:
    """The rows of one method on one scan."""
    settings = tomli.loads((HERE / "chest_v1.toml").read_text())
    settings["dataset"]["path"], settings["operator"]["views"] = str(scan), views
    settings["measurement"]["seed"] = settings["seed"] = seed
    settings["solver"] = {k: v for k, v in method.items() if k != "prior"}
    settings["samples"] = samples
    if "prior" in method:
        settings["prior"] = method["prior"]
    experiment = load(settings)
    name = f"{scan.name.split('.')[0]}-{views}-{seed}-{method['label']}-{sha256(experiment)[:10]}".replace(" ", "_")
    result = experiment.run(runs / name)
    return [
        {
            "method": row["method"],
            "samples": row["samples"],
            "residual": row["residual"],
            **row["metrics"],
            **row["usage"],
        }
        for row in result.rows
    ]


def trials(method: str, views: int) -> list[dict]:
    """The settings that the trial file lists for a method at a number of views."""
    spec = tomli.loads((HERE / "chest_v1_trials.toml").read_text())[f"{method}_{views}"]
    return [{**spec["settings"], **case} for case in spec["cases"]]


def tune(options: argparse.Namespace) -> None:
    log = HERE / "chest_v1_tuning.jsonl"
    known = [json.loads(text) for text in log.read_text().splitlines()] if log.is_file() else []
    for views in options.views:
        for settings, scan in itertools.product(trials(options.method, views), VALIDATION):
            if any((k["views"], k["scan"], k["settings"]) == (views, scan, settings) for k in known):
                continue
            rows = run_one(options.data / "val" / f"{scan}.nii.gz", views, 0, settings, options.runs / "tune")
            line = {"method": options.method, "views": views, "scan": scan, "settings": settings, **_short(rows)}
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(views, settings, round(line["psnr_db"], 2), round(line["seconds"]), flush=True)


def _short(rows: list[dict]) -> dict:
    return {k: v for k, v in rows[0].items() if isinstance(v, int | float | str) and k != "method"}


def table(options: argparse.Namespace) -> None:
    methods = tomli.loads((HERE / "chest_v1_methods.toml").read_text())
    out, lines = HERE / "chest_v1_results.jsonl", []
    scans = (*TEST, *OUTSIDE) if options.outside else TEST
    for scan, views, seed in itertools.product(scans, options.views, range(options.seeds)):
        for settings in methods[f"views_{views}"]:
            settings = dict(settings)
            samples = settings.pop("samples", 1)
            rows = run_one(
                options.data / "test" / f"{scan}.nii.gz", views, seed, settings, options.runs / "table", samples
            )
            lines += [{"scan": scan, "views": views, "seed": seed, **row} for row in rows]
            print(scan, views, seed, _short(rows), flush=True)
    part = out.with_suffix(".part")
    part.write_text("".join(json.dumps(line) + "\n" for line in lines))
    part.replace(out)
    (HERE / "chest_v1.md").write_text(report(lines))


def report(lines: list[dict]) -> str:
    """Markdown: per scan and method, and paired differences with TV, by bootstrap over scans and seeds."""
    text = [
        "# chest-v1\n",
        f"Machine: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}. PSNR and SSIM over HU [-1000, 1000] on the whole volume; mean over noise seeds.\n",
    ]
    for views in sorted({line["views"] for line in lines}, reverse=True):
        chosen = [line for line in lines if line["views"] == views]
        labels = list(dict.fromkeys(line["method"] for line in chosen))
        scans = list(dict.fromkeys(line["scan"] for line in chosen))
        text += [f"\n## {views} views\n", "| scan | " + " | ".join(labels) + " |", "|---" * (len(labels) + 1) + "|"]
        for scan in scans:
            cells = []
            for label in labels:
                rows = [r for r in chosen if r["scan"] == scan and r["method"] == label]
                cells.append(
                    f"{np.mean([r['psnr_db'] for r in rows]):.2f} / {np.mean([r['ssim'] for r in rows]):.3f}"
                    if rows
                    else ""
                )
            text.append(f"| {scan} | " + " | ".join(cells) + " |")
        text += paired(chosen, labels)
    return "\n".join(text) + "\n"


def paired(chosen: list[dict], labels: list[str]) -> list[str]:
    """Gain over TV in dB on the test chests: mean, 95 % interval over all pairs, and the worst pair."""
    lines = []
    value = {(r["scan"], r["seed"], r["method"]): r["psnr_db"] for r in chosen if r["scan"] in TEST}
    keys = sorted({key[:2] for key in value})
    rng = np.random.default_rng(0)
    for label in labels:
        gains = np.array([value[(*k, label)] - value[(*k, "TV")] for k in keys if (*k, label) in value])
        if label == "TV" or not len(gains):
            continue
        means = rng.choice(gains, (10000, len(gains))).mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        patients = len({k[0] for k in keys})
        lines.append(
            f"\n{label} - TV: {gains.mean():+.2f} dB, 95 % interval [{low:+.2f}, {high:+.2f}] over "
            f"{patients} patients x {len(gains) // patients} noise seeds; worst {gains.min():+.2f} dB."
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["tune", "table"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--views", type=int, nargs="+", default=[20])
    parser.add_argument("--method", default="tv")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/chest_v1"))
    parser.add_argument("--outside", action="store_true", help="also the scans out of the prior's range")
    options = parser.parse_args()
    {"tune": tune, "table": table}[options.task](options)


if __name__ == "__main__":
    main()
