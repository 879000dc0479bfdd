"""TOML to settings: plugins' own keys, mistakes told by place and nearest name, layers, dump, hash, schema."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import tomli

from pdframe import config
from pdframe.core import budget as core_budget
from pdframe.mistakes import ConfigError
from pdframe.train import load_training

PLUGIN = """
from pdframe.hooks import Entry, hookimpl

@hookimpl
def pdframe_register():
    parts = ["dataset", "operator", "noise", "prior", "metric"]
    return [Entry(kind, f"toy_{kind}", f"toy_parts:{kind.title()}", "") for kind in parts] + [
        Entry("solver", "toy_sampler", "toy_parts:Sampler", ""),
        Entry("solver", "toy_filter", "toy_parts:Filter", ""),
    ]
"""
PARTS = """
from pathlib import Path
from typing import Literal
from pydantic import Field
from pdframe.hooks import Config

class Box(Config):
    depth: int = 1

class Dataset(Config):
    file: Path | None = None
    files: list[Path] = []
    named: dict[str, Path] = {}
    box: Box = Box()
    boxes: list[Box] = []
    def build(self): return self

class Operator(Config):
    views: int = Field(20, ge=1)
    spacing_mm: tuple[float, float] = (1, 1)
    orbit: Literal["circle", "helix"] = "circle"
    filtered: bool = False
    def build(self, grid): return (self, grid)

class Noise(Config):
    photons: float = 1e5
    def build(self): return self

class Prior(Config):
    weights: str | Path = "shipped"
    def build(self): return self

class Metric(Config):
    def build(self): return self

class Sampler(Config):
    steps: int = 50
    def build(self, prior): return (self, prior)

class Filter(Config):
    cutoff: float = 1.0
    def build(self): return self
"""
MINIMAL = """
[dataset]
name = "toy_dataset"
[operator]
name = "toy_operator"
[prior]
name = "toy_prior"
[solver]
name = "toy_sampler"
"""
FULL = """
title = "all of it"
seed = 3
device = "cpu"
samples = 2
item = "a"
[dataset]
name = "toy_dataset"
file = "scans/a.nii"
files = ["scans/b.nii"]
named = { c = "scans/c.nii" }
boxes = [{ depth = 2 }]
[operator]
name = "toy_operator"
views = 8
[noise]
name = "toy_noise"
[measurement]
seed = 1
simulate_on = "grid"
[prior]
name = "toy_prior"
[solver]
name = "toy_sampler"
steps = 4
[[compare]]
label = "smooth"
name = "toy_filter"
cutoff = 0.5
[[compare]]
label = "other prior"
name = "toy_sampler"
prior = { name = "toy_prior", weights = "tuned" }
[budget]
seconds = 60
[metrics]
name = "toy_metric"
[report]
window_hu = [-200, 200]
"""


@pytest.fixture(autouse=True)
def toy(foreign):
    foreign("toy-plugin", {"toy": PLUGIN, "toy_parts": PARTS}, entry="toy")


@pytest.fixture
def full(tmp_path):
    path = tmp_path / "full.toml"
    path.write_text(FULL)
    return path


def test_a_minimal_experiment_has_every_default():
    e = config.load(tomli.loads(MINIMAL))
    assert (e.seed, e.device, e.samples, e.item, e.title) == (0, "auto", 1, "", "")
    assert (e.measurement.simulate_on, e.measurement.frozen, e.measurement.detector_oversampling) == ("native", "", 1)
    assert e.noise is None and e.metrics is None and e.compare == () and e.source is None
    assert e.operator.settings.views == 20 and e.report.window_hu == (-1000.0, 400.0)


def test_a_full_experiment_reads_plugins_labels_and_priors(full):
    e = config.load(full)
    assert e.source == full and e.operator.settings.views == 8 and e.budget.seconds == 60
    assert [m.label for m in e.methods] == ["toy_sampler", "smooth", "other prior"]
    sampler, smooth, other = e.methods
    assert sampler.prior == e.prior and smooth.prior is None and other.prior.settings.weights == "tuned"
    assert [p.kind for p in e.parts].count("solver") == 3 and len(e.parts) == 9
    assert sampler.build(prior="P", grid="unasked") == (sampler.settings, "P")


def test_an_experiment_is_frozen(full):
    with pytest.raises(Exception, match="frozen"):
        config.load(full).seed = 5


def test_paths_are_relative_to_the_file_that_writes_them(full, tmp_path, monkeypatch):
    child = tmp_path / "deep" / "child.toml"
    child.parent.mkdir()
    child.write_text('extends = "../full.toml"\n[dataset]\nfiles = ["mine.nii", "/data/far.nii"]\n')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    d = config.load(child, ["dataset.named.d=typed.nii"]).dataset.settings
    assert d.file == tmp_path / "scans/a.nii"
    assert d.files == [tmp_path / "deep/mine.nii", Path("/data/far.nii")]
    assert d.named == {"c": tmp_path / "scans/c.nii", "d": tmp_path / "elsewhere/typed.nii"}


def test_a_frozen_measurement_is_a_name_or_a_file(full):
    assert config.load(full, ["measurement.frozen=chest_20"]).measurement.frozen == "chest_20"
    found = config.load(full, ["measurement.frozen='m/chest.npz'"]).measurement.frozen
    assert found == Path("m/chest.npz").resolve()


MISTAKES = {
    "solver.stpes=3": "solver.stpes: unknown key; did you mean `steps`?",
    "solver.lable=b": "solver.lable: unknown key; did you mean `label`?",
    "solver.steps=fifty": "solver.steps: should be a valid integer",
    'solver.steps="3"': "solver.steps: should be 3 without quotes",
    "solver.steps=1.5": "solver.steps: should be a valid integer, got a number with a fractional part, got 1.5",
    "solver.label=3": "solver.label: should be text, got 3",
    "solver.name=toy_smapler": "solver.name: no solver is called 'toy_smapler'; did you mean `toy_sampler`",
    "solver.name=3": "solver.name: should be text, got 3",
    "compare.0.cutof=1": "compare.0.cutof: unknown key; did you mean `cutoff`?",
    "compare.1.prior.wieghts=x": "compare.1.prior.wieghts: unknown key; did you mean `weights`?",
    "compare.0.prior.name=toy_prior": "compare.0.prior: solver 'toy_filter' uses no prior",
    "compare.0.label=toy_sampler": "two methods are labelled 'toy_sampler'; give one another `label`",
    "compare.2.cutoff=1": "compare.2.cutoff=1: there is no element 2: the list has 2, counted from 0",
    "dataset.box.dpeth=1": "dataset.box.dpeth: unknown key; did you mean `depth`?",
    "dataset.boxes.0.depth=true": "dataset.boxes.0.depth: should be a number, got true",
    "dataset.file=3": "dataset.file: should be the path of a file or folder, got 3",
    "dataset=4": 'dataset: should be a table such as {name = "..."}, got 4',
    "operator.views=0": "operator.views: should be greater than or equal to 1, got 0",
    "operator.orbit=ring": "operator.orbit: should be 'circle' or 'helix', got 'ring'",
    "operator.spacing_mm=[1.0]": "operator.spacing_mm",
    "measurment.seed=1": "measurment: unknown key; did you mean `measurement`?",
    "measurement.sed=1": "measurement.sed: unknown key; did you mean `seed`?",
    "budget.seconds=nan": "budget.seconds: should be a finite number",
    "report.window_hu=[3, 1]": "report: window_hu must be (low, high) with low < high, got [3.0, 1.0]",
    "sed=1": "sed: unknown key; did you mean `seed`?",
    "xyzzy=1": "xyzzy: unknown key; known keys: title, seed",
}


@pytest.mark.parametrize("change", MISTAKES)
def test_a_mistake_is_told_by_place_and_nearest_name(change, full):
    with pytest.raises(ConfigError) as caught:
        config.load(full, [change])
    message = str(caught.value)
    assert MISTAKES[change] in message
    assert "pydantic" not in message and "type=" not in message and "\n" not in message


def test_a_mistake_names_the_file_that_holds_it(full, tmp_path):
    child = tmp_path / "child.toml"
    child.write_text('extends = "full.toml"\n[solver]\nstpes = 3\n')
    with pytest.raises(ConfigError, match=r"child\.toml: solver\.stpes"):
        config.load(child)
    full.write_text(FULL.replace("views = 8", "veiws = 8"))
    child.write_text('extends = "full.toml"\n')
    with pytest.raises(ConfigError, match=r"full\.toml: operator\.veiws"):
        config.load(child)
    with pytest.raises(ConfigError, match="--set solver.steps=x: solver.steps"):
        config.load(child, ["operator.name=toy_operator", "solver.steps=x"])


def test_all_mistakes_are_told_at_once(full):
    with pytest.raises(ConfigError) as caught:
        config.load(full, ["solver.stpes=3", "operator.veiws=1", "sed=1"])
    assert {".".join(map(str, m.place)) for m in caught.value.mistakes} == {"solver.stpes", "operator.veiws", "sed"}


def test_what_is_required_is_said(full):
    with pytest.raises(ConfigError, match="operator: required, but missing"):
        config.load({"dataset": {"name": "toy_dataset"}, "solver": {"name": "toy_filter"}})
    with pytest.raises(ConfigError, match=r"solver\.name: required, but missing"):
        config.load(tomli.loads(MINIMAL.replace('name = "toy_sampler"', "")))
    with pytest.raises(ConfigError, match=r"solver 'toy_sampler' needs a \[prior\] table"):
        config.load(tomli.loads(MINIMAL.replace('[prior]\nname = "toy_prior"', "")))


def test_unreadable_files_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        config.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(ConfigError, match=r"bad\.toml: is not a TOML file: .*line 1"):
        config.load(tmp_path / "bad.toml")
    (tmp_path / "child.toml").write_text('extends = "gone.toml"')
    with pytest.raises(ConfigError, match=r"gone\.toml: cannot be read \(extended by child\.toml\)"):
        config.load(tmp_path / "child.toml")


def test_set_reads_toml_values_bare_words_and_list_places(full):
    changes = [
        "title=two words",
        "seed=7",
        "operator.filtered=true",
        "compare.0.cutoff=0.25",
        "report.window_hu=[0, 9]",
    ]
    e = config.load(full, changes)
    assert (e.title, e.seed, e.operator.settings.filtered) == ("two words", 7, True)
    assert e.compare[0].settings.cutoff == 0.25 and e.report.window_hu == (0, 9)
    assert config.load(full, ["title=a = b"]).title == "a = b"
    for bad in ("seed", "=3", "a b=3"):
        with pytest.raises(ConfigError, match="--set"):
            config.load(full, [bad])


def test_another_plugin_does_not_inherit_the_settings_of_the_first(full):
    e = config.load(full, ["solver.name=toy_filter", "solver.cutoff=0.3"])
    assert (e.solver.name, e.solver.settings.cutoff) == ("toy_filter", 0.3)
    assert config.load(full, ["solver.name=toy_sampler"]).solver.settings.steps == 4


def test_extends_lays_files_over_each_other(full, tmp_path):
    (tmp_path / "few.toml").write_text("[operator]\nviews = 4\n")
    (tmp_path / "child.toml").write_text('extends = ["full.toml", "few.toml"]\nseed = 9\n[solver]\nsteps = 1\n')
    e = config.load(tmp_path / "child.toml")
    assert (e.operator.settings.views, e.seed, e.solver.settings.steps, e.samples) == (4, 9, 1, 2)
    (tmp_path / "wrong.toml").write_text("extends = 3")
    with pytest.raises(ConfigError, match="extends: should be a file name"):
        config.load(tmp_path / "wrong.toml")


def test_extends_in_a_circle_is_refused(tmp_path):
    (tmp_path / "a.toml").write_text('extends = "b.toml"')
    (tmp_path / "b.toml").write_text('extends = "c.toml"')
    (tmp_path / "c.toml").write_text('extends = "b.toml"')
    with pytest.raises(ConfigError, match=r"circle: b\.toml -> c\.toml -> b\.toml"):
        config.load(tmp_path / "a.toml")


def test_the_dump_reads_back_as_the_same_experiment(full, tmp_path):
    e = config.load(full)
    copy = tmp_path / "copy.toml"
    copy.write_text(config.dump(e))
    again = config.load(copy)
    assert dict(again) == dict(e) and config.sha256(again) == config.sha256(e)
    assert "simulate_on" in copy.read_text() and 'orbit = "circle"' in copy.read_text()


def test_the_hash_is_of_the_meaning_not_of_the_place_or_the_spelling(full, tmp_path):
    e = config.load(full)
    moved = tmp_path / "other machine" / "full.toml"
    moved.parent.mkdir()
    moved.write_text(FULL.replace("seed = 3\n", "").replace('title = "all of it"', 'seed=3\ntitle = "all of it"'))
    assert config.sha256(config.load(moved)) == config.sha256(e)
    assert config.sha256(config.load(full, ["operator.orbit=circle"])) == config.sha256(e)
    changes = ["seed=4", "operator.views=9", "dataset.file='x.nii'", "compare.1.prior.weights=raw", "budget.steps=3"]
    hashes = {config.sha256(config.load(full, [c])) for c in changes} | {config.sha256(e)}
    assert len(hashes) == len(changes) + 1


def test_the_budget_of_a_file_is_the_budget_of_a_solve(full):
    assert config.load(full).budget.build() == core_budget.Budget(seconds=60)


def test_the_schema_accepts_what_load_accepts_and_refuses_what_it_refuses(full):
    schema = config.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft7Validator.check_schema(schema)
    for validator in (jsonschema.Draft202012Validator(schema), jsonschema.Draft7Validator(schema)):
        validator.validate(tomli.loads(FULL))
        validator.validate(tomli.loads(MINIMAL))
        validator.validate(tomli.loads('extends = "a.toml"\n' + MINIMAL))
        for right, wrong in [
            ("steps = 4", "stpes = 4"),
            ("steps = 4", 'steps = "4"'),
            ("views = 8", "views = 0"),
            ('label = "smooth"', "label = 3"),
            ('"toy_filter"', '"toy_sampler"'),
            ('weights = "tuned"', 'wieghts = "tuned"'),
            ("[measurement]", "[measurment]"),
            ('simulate_on = "grid"', 'simulate_on = "moon"'),
            ("seconds = 60", "seconds = 0"),
        ]:
            assert right in FULL
            assert not validator.is_valid(tomli.loads(FULL.replace(right, wrong, 1))), wrong


def test_a_plugin_that_cannot_be_loaded_is_left_out_of_the_schema(foreign):
    source = (
        "from pdframe.hooks import Entry, hookimpl\n@hookimpl\ndef pdframe_register():\n"
        "    return [Entry('prior', 'lost', 'no_such_module_xyz:C', '')]\n"
    )
    foreign("lost-prior", {"lost": source}, entry="lost")
    names = [choice["title"] for choice in config.schema()["properties"]["prior"]["anyOf"][0]["oneOf"]]
    assert "toy_prior" in names and "lost" not in names


def test_a_sampling_needs_one_spacing_per_axis():
    s = config.load_sampling({"prior": {"name": "toy_prior"}}, ["shape=[8, 8]", "spacing_mm=[1.0, 2.0]"])
    assert s.shape == (8, 8) and s.prior.name == "toy_prior"
    with pytest.raises(ConfigError, match="one positive value per axis"):
        config.load_sampling({"prior": {"name": "toy_prior"}}, ["shape=[8, 8]"])


def test_a_training_reads_the_loop_and_its_task(foreign):
    plugin = (
        "from pdframe.hooks import Entry, hookimpl\n@hookimpl\ndef pdframe_register():\n"
        "    return [Entry('task', 'toy_task', 'task_parts:Task', '')]\n"
    )
    parts = "from pdframe.hooks import Config\nclass Task(Config):\n    data: dict[str, str]\n"
    parts += "    def build(self): return self\n"
    foreign("toy-task", {"task": plugin, "task_parts": parts}, entry="task")
    t = load_training({"task": {"name": "toy_task"}}, ["data.root=here", "train.steps=5"])
    assert (t.train.steps, t.task.settings.data) == (5, {"root": "here"})
    with pytest.raises(ConfigError, match=r"--set train.stpes=5: train.stpes: unknown key; did you mean `steps`"):
        load_training({"task": {"name": "toy_task", "data": {"root": "x"}}}, ["train.stpes=5"])
