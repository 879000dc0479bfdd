"""A training as a TOML tells it: the loop's settings, and the task that a plugin brings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pdframe.config import TaskPart
from pdframe.hooks import Config
from pdframe.train import TrainConfig, train


class Training(Config):
    """What `pdframe train` reads: [train] for the loop, [task] for what is trained and on what."""

    title: str = ""
    train: TrainConfig = TrainConfig()
    task: TaskPart

    def run(self, out_dir: Path, on_log: Callable[[dict[str, Any]], None] = lambda row: None) -> Path:
        """Train, or go on training, in `out_dir`; the path of the checkpoint."""
        return train(self.task.build(), self.train, out_dir, on_log=on_log)
