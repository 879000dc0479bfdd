"""The JSON Schemas of trainings, samplings and benches; test_config.py has that of an experiment."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from pdframe import config, layers
from pdframe.bench.config import Bench
from pdframe.train import Training


@pytest.mark.parametrize(
    ("model", "path", "right", "wrong"),
    [
        (Training, "benchmarks/quality/train_patch3d.toml", "couch_share", "couch_shore"),
        (Training, "benchmarks/quality/train_blend3.toml", "learning_rate", "learning_rata"),
        (config.Sampling, "docs/examples/sample.toml", "spacing_mm", "spacing_cm"),
        (Bench, "benchmarks/quality/chest_v1.toml", "sigma_max", "sigma_mox"),
        (Bench, "benchmarks/quality/sparse_view.toml", "timeout_s", "timeout_m"),
    ],
)
def test_trainings_samplings_and_benches_have_a_schema_too(model, path, right, wrong):
    schema = config.schema(model)
    jsonschema.Draft202012Validator.check_schema(schema)
    table = layers.merged(layers.read(Path(__file__).parent.parent / path))
    if model is Training:
        table = {"task": {"name": "patch3d"}, **table, "data": {**table["data"], "root": "FOLDER"}}
    as_json = json.dumps(table, default=str)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(json.loads(as_json))
    assert right in as_json and not validator.is_valid(json.loads(as_json.replace(right, wrong, 1)))


def test_a_task_without_data_has_its_place_in_the_schema(foreign):
    source = (
        "from pdframe.hooks import Config, Entry, hookimpl\n@hookimpl\ndef pdframe_register():\n"
        "    return [Entry('task', 'toy', 'acme_task:Toy', '')]\nclass Toy(Config):\n    size: int = 3\n"
        "    def build(self): return self\n"
    )
    foreign("acme-task", {"acme_task": source}, entry="acme_task")
    validator = jsonschema.Draft202012Validator(config.schema(Training))
    validator.validate({"task": {"name": "toy", "size": 4}})
    assert not validator.is_valid({"task": {"name": "toy", "sise": 4}})
