"""The training loop that any trainable prior plugs into.

AdamW, warm-up, a constant rate and a linear decay to zero at the end, gradient clipping, exponential moving average,
validation, a JSONL log and a curve, resume after a kill at any moment, several processes by DDP. What is trained on
what is the business of a `Trainable`; draws are a function of (seed, step, item), so a resumed run continues the
same loss curve, and so does a run split over more processes.
"""

from __future__ import annotations

import abc
import copy
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli
import torch
from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema
from torch import Tensor, nn

from pdframe import layers, machine, runfolder
from pdframe.config import TaskPart, dump, read
from pdframe.core.interface import Interface
from pdframe.hooks import Config
from pdframe.mistakes import ConfigError, as_mistake


class TrainConfig(Config):
    """Settings of the loop."""

    steps: int = Field(20000, ge=1)
    batch: int = Field(8, ge=1, description="items a step, over all processes")
    learning_rate: float = Field(5e-4, gt=0)
    warmup_steps: int = Field(200, ge=0)
    decay_fraction: float = Field(0.3, ge=0, le=1, description="share of the steps at the end with a falling rate")
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the moving average of the weights, a step")
    log_every: int = Field(20, ge=1)
    validate_every: int = Field(500, ge=1)
    checkpoint_every_s: float = Field(300.0, gt=0)
    device: str = "auto"


class Training(Config):
    """What `pdframe train` reads: [train] for the loop, [task] for what is trained, [data] for what it is trained on.

    What [data] may hold is the business of the task: it is the task's own setting `data`.
    """

    title: str = ""
    train: TrainConfig = TrainConfig()
    task: TaskPart

    @model_validator(mode="before")
    @classmethod
    def _data_of_the_task(cls, raw: Any) -> Any:
        if not (isinstance(raw, Mapping) and "data" in raw and isinstance(raw.get("task"), Mapping)):
            return raw
        rest = {key: value for key, value in raw.items() if key != "data"}
        return {**rest, "task": layers.over(raw["task"], {"data": raw["data"]})}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """With [data] beside [task], as it is read."""
        table = handler.resolve_ref_schema(handler(core))
        data: list[dict[str, Any]] = []
        for task in table["properties"]["task"].get("oneOf", ()):
            own = task["properties"].pop("data", None)
            data += [own] if own is not None and own not in data else []
            task["required"] = [key for key in task.get("required", ()) if key != "data"]
        if data:
            table["properties"]["data"] = {"anyOf": data}
        return table

    def run(self, out_dir: Path, on_log: Callable[[dict[str, Any]], None] = lambda row: None) -> Path:
        """Train, or go on training, in `out_dir`; the path of the checkpoint.

        ConfigError if the folder holds a training with other settings or files that are of none, or if the data cannot
        be used.
        """
        first = int(os.environ.get("RANK", 0)) == 0
        with runfolder.held(out_dir, "train") if first else nullcontext():
            kept = out_dir / runfolder.CONFIG
            self._refuse_another(kept)
            with as_mistake("task"):
                task = self.task.build()
            if first and not (out_dir / runfolder.RECORD).is_file():  # before all else: it says whose folder this is
                runfolder.write_json(out_dir / runfolder.RECORD, {"task": self.task.name, **machine.provenance()})
            if first:
                runfolder.write(kept, dump(self))
            return train(task, self.train, out_dir, on_log=on_log)

    def _refuse_another(self, kept: Path) -> None:
        """ConfigError if a training was begun with other settings; where the data lie and what is logged may change."""
        if not kept.is_file():
            return
        before, now = (_told_apart(tomli.loads(text)) for text in (kept.read_text(), dump(self)))
        if changed := sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)):
            key = changed[0]
            what = f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
            raise ConfigError(
                f"{kept.parent} holds a training with other settings ({what}): "
                "choose another folder (--out), or put it back"
            )


def _told_apart(table: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Every setting that decides what is learned, under its dotted name."""
    free = ("title", "device", "log_every", "validate_every", "checkpoint_every_s", "root")
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _told_apart(value, f"{place}{key}.")
        elif key not in free:
            flat[f"{place}{key}"] = value
    return flat


def load_training(source: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = ()) -> Training:
    """The training in a TOML file (or in a dict), after `overrides`: as `pdframe.load`, for `pdframe train`."""
    return read(Training, source, overrides)


class Trainable(Interface):
    """What a prior brings to be trained. `network` holds the parameters."""

    network: nn.Module

    @abc.abstractmethod
    def loss(self, network: nn.Module, step: int, items: range, device: torch.device) -> Tensor:
        """Mean loss over these items of the step's batch; a function of (step, items) and the weights alone."""

    @abc.abstractmethod
    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Numbers on data held apart; empty if there is none."""

    @abc.abstractmethod
    def export(self, network: nn.Module, path: Path, report: dict[str, object]) -> None:
        """Writes the checkpoint that a prior loads, with `report` in its card."""


@dataclass(frozen=True)
class World:
    """This process among those of `torchrun` (one if there was none)."""

    rank: int
    size: int
    device: torch.device

    def share(self, batch: int) -> range:
        """The items of the batch that this process draws."""
        return range(self.rank * batch // self.size, (self.rank + 1) * batch // self.size)


def train(
    task: Trainable, config: TrainConfig, out_dir: Path, *, on_log: Callable[[dict], None] = lambda row: None
) -> Path:
    """Trains, or goes on training, in `out_dir`; returns the path of the exported checkpoint.

    The folder gets `state.safetensors` (everything a resume needs), `log.jsonl`, `curve.png` and `weights.safetensors`
    (the moving average). `on_log` sees each line of the log as it is written.
    """
    world = _join(config)
    out_dir.mkdir(parents=True, exist_ok=True)
    network = task.network.to(world.device)
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
    )
    first, spent_s = _resume(out_dir, network, average, optimizer)
    if first > config.steps:
        raise ConfigError(
            f"{out_dir} holds a training of {first} steps, more than the {config.steps} that are asked for"
        )
    wrapped = nn.parallel.DistributedDataParallel(network) if world.size > 1 else network
    log = _Log(out_dir, first, on_log if world.rank == 0 else lambda row: None, write=world.rank == 0)
    clock, saved, losses, since = time.monotonic() - spent_s, time.monotonic(), [], first
    for step in range(first, config.steps):
        losses.append(_step(task, wrapped, optimizer, config, step, world))
        _update_average(average, network, min(config.ema, (1 + step) / (10 + step)))
        done, elapsed = step + 1, time.monotonic() - clock
        if done % config.log_every == 0 or done == config.steps:
            loss = float(torch.stack(losses).mean())
            pace = (time.monotonic() - clock - spent_s) / (done - first)
            left = pace * (config.steps - done)
            log.add(step=done, loss=loss, rate=_rate(config, step), seconds=elapsed, left_s=left)
            losses, since = [], done
            if loss != loss:  # NaN: stop before the weights are overwritten by nonsense
                raise FloatingPointError(f"the training loss is NaN at step {done}; lower learning_rate and run again")
        if done % config.validate_every == 0 or done == config.steps:
            if world.rank == 0:
                log.add(step=done, seconds=elapsed, validation=task.validate(average, world.device))
        if world.rank == 0 and (time.monotonic() - saved > config.checkpoint_every_s or done == config.steps):
            # Only whole log intervals are saved, so that a resumed log is the log of a run never stopped.
            if since == done:
                _save(out_dir, network, average, optimizer, done, elapsed)
                task.export(average, out_dir / "weights.safetensors", _report(config, done, elapsed, log.rows, world))
                log.draw()
                saved = time.monotonic()
    weights = out_dir / "weights.safetensors"
    if world.rank == 0 and first == config.steps:  # it was done before, and may have been killed before its export
        task.export(average, weights, _report(config, first, spent_s, log.rows, world))
    _leave(world)
    return weights


def _step(
    task: Trainable, network: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, world: World
) -> Tensor:
    for group in optimizer.param_groups:
        group["lr"] = _rate(config, step)
    items = world.share(config.batch)
    # DDP averages gradients over processes; shares may differ by one item, so weigh by the share.
    loss = task.loss(network, step, items, world.device) * (len(items) * world.size / config.batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
    optimizer.step()
    mean = loss.detach()
    if world.size > 1:
        torch.distributed.all_reduce(mean)
        mean /= world.size
    return mean.cpu()


def _rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, constant, linear decay to zero over the last `decay_fraction` of the steps."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    left = (config.steps - step) / max(1.0, config.decay_fraction * config.steps)
    return config.learning_rate * min(warm, left, 1.0)


@torch.no_grad()
def _update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
    for old, new in zip(average.buffers(), network.buffers(), strict=True):
        old.copy_(new)


def _join(config: TrainConfig) -> World:
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = machine.chosen(config.device)
    if device.type == "cuda" and size > 1:
        device = torch.device("cuda", local)
    if size > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return World(rank, size, device)


def _leave(world: World) -> None:
    if world.size > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _save(
    out_dir: Path,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    seconds: float,
) -> None:
    """Everything a resume needs in one file, written whole or not at all."""
    from safetensors.torch import save_file

    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
    part = out_dir / "state.part"
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    save_file(tensors, part, metadata={"step": str(step), "seconds": repr(seconds)})
    part.replace(out_dir / runfolder.STATE)


def _resume(
    out_dir: Path, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """Loads the last state into the three; (first step to do, seconds spent so far)."""
    from safetensors import safe_open

    path = out_dir / runfolder.STATE
    if not path.is_file():
        return 0, 0.0
    with safe_open(path, framework="pt") as file:
        parts: dict[str, dict] = {"network": {}, "average": {}, "optimizer": {}}
        for key in file.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
            part, rest = key.split(".", 1)
            parts[part][rest] = file.get_tensor(key)
        meta = file.metadata()
    try:
        network.load_state_dict(parts["network"])
        average.load_state_dict(parts["average"])
    except RuntimeError as error:
        raise ValueError(f"{path} is of another network: choose another folder, or remove it to start anew") from error
    state: dict[int, dict] = {}
    for key, value in parts["optimizer"].items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(meta["step"]), float(meta["seconds"])


def _report(config: TrainConfig, step: int, seconds: float, rows: list[dict], world: World) -> dict[str, object]:
    checks = [row["validation"] for row in rows if row.get("validation")]
    return {
        "steps": step,
        "batch": config.batch,
        "seconds": round(seconds),
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "validation": checks[-1] if checks else {},
    }


class _Log:
    """`log.jsonl`, and the curve drawn from it. Lines after the resumed step are dropped: they will come again."""

    def __init__(self, out_dir: Path, first: int, on_log: Callable[[dict], None], *, write: bool) -> None:
        self.path, self.on_log, self.write, self.rows = out_dir / "log.jsonl", on_log, write, []
        if self.path.is_file():
            for line in self.path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    break  # a torn last line of a killed run
                if row["step"] <= first:
                    self.rows.append(row)
        if write:
            part = self.path.with_suffix(".part")
            part.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
            part.replace(self.path)

    def add(self, **row: object) -> None:
        self.rows.append(row)
        if self.write:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        self.on_log(row)

    def draw(self) -> None:
        from pdframe.report.curve import draw_training

        draw_training(self.rows, self.path.with_name("curve.png"))
