"""The training loop: learns, resumes after a kill with the same curve, splits over processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pdframe_patch.training import draw
from pdframe_patch.weights import load_weights
from safetensors import safe_open

from pdframe.core.seeds import generator
from pdframe.lock import FolderBusy, only_one
from pdframe.mistakes import ConfigError
from pdframe.train import TrainConfig, _rate, _update_average, load_training


@pytest.fixture(scope="module")
def toml(two_scans) -> Path:
    path = two_scans / "tiny.toml"
    path.write_text(
        """
        [train]
        steps = 12
        batch = 4
        learning_rate = 2e-3
        warmup_steps = 2
        log_every = 2
        validate_every = 6
        checkpoint_every_s = 1e-9
        device = "cpu"
        [task]
        name = "patch3d"
        preset = "tiny"
        patch = 8
        slots = 2
        refresh_steps = 6
        [data]
        root = "."
        scans = [{file = "scan0.nii.gz"}]
        validation = [{file = "scan1.nii.gz"}]
        [task.grids]
        protocol_mm = 5.0
        protocol_voxels = 16
        extent_mm = [60.0, 90.0]
        """
    )
    return path


def losses(out: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def straight(toml, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("straight")
    load_training(toml).run(out)
    return out


def test_a_run_leaves_weights_a_log_and_a_curve(straight):
    assert [step for step, _ in losses(straight)] == [2, 4, 6, 8, 10, 12]
    assert (straight / "curve.png").stat().st_size > 1000
    network, card = load_weights(straight / "weights.safetensors")
    assert card.training["steps"] == 12 and card.training["validation"]["loss"] > 0
    assert card.data[0]["file"] == "scan0.nii.gz" and card.patch_flops > 0


def test_a_drawn_patch_and_its_context_hold_the_noise_that_is_declared(toml):
    task = load_training(toml).task.build()
    (volume,) = task._validation_volumes
    draws = [draw(volume, (0, 4, 8), 0.3, task.card, generator(seed)) for seed in range(40)]
    noise = torch.stack([(d.noisy - d.clean) / 0.3 for d in draws])
    assert float(noise.mean()) == pytest.approx(0, abs=0.04) and float(noise.std()) == pytest.approx(1, abs=0.03)
    assert all(float(d.sigma) == pytest.approx(0.3) for d in draws)
    below = torch.stack([d.context[0] - volume.context for d in draws])
    assert float(below.std()) == pytest.approx(float(draws[0].context_sigma), rel=0.05)
    clean, inside = draws[0].clean[0], draws[0].inside[0].bool()
    assert bool(inside.all()) and torch.equal(clean, volume.values[0:8, 4:12, 8:16])


def test_weights_are_averaged_with_the_decay_that_is_set():
    average, network = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    before, now = average.weight.detach().clone(), network.weight.detach().clone()
    _update_average(average, network, 0.9)
    torch.testing.assert_close(average.weight.detach(), 0.9 * before + 0.1 * now)


def test_longer_training_lowers_the_validation_loss(toml, tmp_path):
    longer = ["train.steps=200", "train.validate_every=40", "train.learning_rate=5e-3", "train.checkpoint_every_s=600"]
    load_training(toml, longer).run(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    first, *_, last = (row["validation"]["loss"] for row in rows if "validation" in row)
    assert last < 0.8 * first  # 0.25 against 0.35 when it was written


def test_the_variance_preserving_form_learns_too(toml, tmp_path):
    longer = ["train.steps=120", "train.validate_every=40", "train.learning_rate=5e-3", "train.checkpoint_every_s=600"]
    load_training(toml, [*longer, "task.precondition=vp"]).run(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    first, *_, last = (row["validation"]["rmse_hu_at_200"] for row in rows if "validation" in row)
    assert last < first and load_weights(tmp_path / "weights.safetensors")[1].precondition == "vp"


def test_a_killed_run_goes_on_with_the_same_curve(toml, straight, tmp_path):
    """kill -9 at whatever moment the third line of the log appears, then the same command again."""
    command = [sys.executable, "-m", "pdframe", "train", str(toml), "--out", str(tmp_path)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())})
    log, patience = tmp_path / "log.jsonl", time.monotonic() + 120
    while not (log.is_file() and log.read_text().count('"loss"') >= 3) and time.monotonic() < patience:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(losses(tmp_path)) >= 1
    load_training(toml).run(tmp_path)
    assert losses(tmp_path) == losses(straight)
    a, b = (load_weights(out / "weights.safetensors")[0] for out in (tmp_path, straight))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


#: Trains, and kills itself as soon as the log has a line of the step that is asked for.
KILLED = """
import os, signal, sys
from pathlib import Path
from pdframe.train import load_training

def fall(row):
    if row["step"] == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

load_training(sys.argv[1], [f"train.checkpoint_every_s={sys.argv[3]}"]).run(Path(sys.argv[2]), on_log=fall)
"""


def test_lines_of_the_log_beyond_the_last_state_come_again(toml, straight, tmp_path):
    """Killed at step 6 with the state of step 4, and at step 10 with no later one, its last line torn."""
    for every_s, step in ((1e-9, 6), (600, 10)):
        command = [sys.executable, "-c", KILLED, str(toml), str(tmp_path), str(every_s), str(step)]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())})
        assert done.returncode == -signal.SIGKILL
    with safe_open(tmp_path / "state.safetensors", framework="pt") as state:
        assert state.metadata()["step"] == "4"
    before = losses(tmp_path)
    assert [step for step, _ in before] == [2, 4, 6, 8, 10]
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 10, "secon')

    load_training(toml).run(tmp_path)
    assert losses(tmp_path) == losses(straight) and losses(tmp_path)[:5] == before
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "validation" in row] == [6, 12]
    a, b = (load_weights(out / "weights.safetensors")[0] for out in (tmp_path, straight))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_two_processes_follow_the_curve_of_one(toml, straight, tmp_path):
    """DDP over gloo: the items of a batch are the same draws however they are split."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29617"),
        *("-m", "pdframe", "train", str(toml), "--out", str(tmp_path)),
    ]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [s for s, _ in losses(tmp_path)] == [s for s, _ in losses(straight)]
    for (_, a), (_, b) in zip(losses(tmp_path), losses(straight), strict=True):
        assert a == pytest.approx(b, rel=0.02)


def test_state_of_another_network_is_refused(toml, straight, tmp_path):
    (tmp_path / "state.safetensors").write_bytes((straight / "state.safetensors").read_bytes())
    with pytest.raises(ValueError, match="another network"):
        load_training(toml, ['task.preset="compact"', "task.patch=16"]).run(tmp_path)


def test_a_folder_belongs_to_one_training(toml, straight, tmp_path):
    out = Path(shutil.copytree(straight, tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"with other settings \(task.inputs.context was True, is False\)"):
        load_training(toml, ["task.inputs.context=false"]).run(out)
    load_training(toml, ["train.log_every=3", "train.device=auto"]).run(out)  # done before: nothing is learned anew
    assert losses(out) == losses(straight)
    (out / "weights.safetensors").unlink()  # killed between its last state and its export
    load_training(toml).run(out)
    network, again = load_weights(straight / "weights.safetensors")[0], load_weights(out / "weights.safetensors")[0]
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), again.parameters(), strict=True))
    with only_one(out), pytest.raises(FolderBusy):
        load_training(toml).run(out)


def test_a_missing_or_other_scan_is_named(toml, tmp_path):
    with pytest.raises(ConfigError, match="task: .*data.root"):
        load_training(toml, ['data.scans=[{file="none.nii.gz"}]']).run(tmp_path)
    with pytest.raises(ConfigError, match="task: .*SHA-256 differs"):
        load_training(toml, [f'data.scans=[{{file="scan0.nii.gz", sha256="{"0" * 64}"}}]']).run(tmp_path)


def test_the_rate_warms_up_holds_and_falls_to_zero():
    config = TrainConfig(steps=100, warmup_steps=10, decay_fraction=0.2, learning_rate=1.0)
    rates = [_rate(config, step) for step in range(100)]
    assert rates[0] == 0.1 and rates[9] == rates[50] == rates[79] == 1.0
    assert rates[90] == pytest.approx(0.5) and rates[99] == pytest.approx(0.05)
