"""Where the seconds of one `denoise` of the patch prior go, and how its cost grows with the volume.

    python benchmarks/speed/denoise.py [--threads 2] [--sizes 64 128 256]

For each cube: seconds of a whole `denoise` call, seconds inside the network (timed around each of its calls), patches,
milliseconds a patch, and microseconds a voxel beside the law ((N / P + 1) P / N)^3 less the patches of pure padding,
that is the voxels of all patches evaluated over those of the volume.
Writes denoise.md.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from pdframe_patch.prior import PatchPrior, PatchPriorConfig
from torch import nn

from pdframe.core.grid import Grid
from pdframe.core.prior import prior_on
from pdframe.core.seeds import generator


class Timed(nn.Module):
    """A network that keeps the time spent in it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seconds, self.patches = network, 0.0, 0

    def forward(self, patches: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        began = now(patches.device)
        answer = self.network(patches, *rest)
        self.seconds += now(patches.device) - began
        self.patches += len(patches)
        return answer


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def row(prior: PatchPrior, edge: int, device: torch.device, repeats: int) -> str:
    shape = (edge,) * 3
    ready = prior_on(prior, Grid(shape, (352 / edge,) * 3))
    timed = Timed(prior.network)
    ready = replace(ready, network=timed)
    x = torch.rand(1, 1, *shape, generator=generator(0)).to(device) * 0.02
    sigma = torch.tensor([0.002], device=device)
    best = None
    with torch.no_grad():
        for repeat in range(repeats + 1):
            timed.seconds, timed.patches = 0.0, 0
            began = now(device)
            ready.denoise(x, sigma, rng=generator(1))
            total = now(device) - began
            if repeat and (best is None or total < best[0]):  # the first call warms up
                best = (total, timed.seconds, timed.patches)
    total, network, patches = best
    law = patches * prior.card.patch**3 / edge**3
    return (
        f"| {edge}^3 | {total:.2f} | {100 * network / total:.1f} % | {patches} | {1e3 * total / patches:.2f} "
        f"| {1e6 * total / edge**3:.2f} | {law:.2f} | {1e6 * total / edge**3 / law:.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prior = PatchPriorConfig().build()
    prior.network.to(device)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {options.threads} threads"
    lines = [
        "# Cost of one `denoise` of `patch3d`\n",
        f"{time.strftime('%Y-%m-%d')}, {machine}, torch {torch.__version__}, shipped weights, one random partition.\n",
        "| volume | seconds | in the network | patches | ms a patch | us a voxel | law | us a voxel / law |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for edge in options.sizes:
        lines.append(row(prior, edge, device, options.repeats))
        print(lines[-1], flush=True)
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
