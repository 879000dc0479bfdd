"""The command line: listings, exit codes, one-line errors, and how little it imports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from pdframe.cli import exit_code, main
from pdframe.hooks import BackendMissing
from pdframe.mistakes import ConfigError
from pdframe.registry import RegistryError

PLUGIN = """
from pdframe.hooks import Entry, hookimpl

@hookimpl
def pdframe_register():
    return [
        Entry("operator", "mini_scan", "mini_parts:Scan", "A small scan."),
        Entry("solver", "mini_filter", "mini_parts:Filter", "A filter."),
        Entry("solver", "mini_gpu", "mini_parts:Filter", "On a GPU.", requires=("no_such_library_xyz",), extra="gpu"),
        Entry("dataset", "mini_data", "mini_parts:Data", "Data."),
    ]
"""
PARTS = """
from pdframe.hooks import Config
class Scan(Config):
    views: int = 4
    def build(self, grid): return self
class Filter(Config):
    steps: int = 1
    def build(self): return self
class Data(Config):
    def build(self): return self
"""
TOML = '[dataset]\nname = "mini_data"\n[operator]\nname = "mini_scan"\n[solver]\nname = "mini_filter"\n'
HEAVY = ("torch", "numpy", "scipy", "numba", "nibabel", "matplotlib", "odl", "astra", "deepinv")


@pytest.fixture
def site(foreign):
    return foreign("mini-ct", {"mini": PLUGIN, "mini_parts": PARTS}, entry="mini", version="0.7")


@pytest.fixture
def toml(tmp_path, site):
    path = tmp_path / "x.toml"
    path.write_text(TOML)
    return str(path)


def call(*args):
    return CliRunner().invoke(main, args)


def stand_in(monkeypatch, action):
    """Puts `action` in the place of `pdframe.run.run_experiment`, to see what the command line makes of it."""
    import types

    module = types.ModuleType("pdframe.run")
    module.run_experiment = action
    monkeypatch.setitem(sys.modules, "pdframe.run", module)


def test_plugins_lists_what_is_there_and_what_is_missing(site, foreign):
    foreign("broken-ct", {"broken_ct": "import no_such_library_xyz"}, entry="broken")
    text = call("plugins").output
    assert "A small scan.  (mini, mini-ct 0.7)" in text
    assert 'needs no_such_library_xyz: pip install "mini-ct[gpu]"' in text
    assert "broken  (broken-ct 1.0)  ModuleNotFoundError" in text
    listing = json.loads(call("plugins", "--json").output)
    offers = {(o["kind"], o["name"]): o for o in listing["entries"]}
    assert offers["solver", "mini_filter"]["usable"] and not offers["solver", "mini_gpu"]["usable"]
    assert offers["solver", "mini_gpu"]["missing"] == ["no_such_library_xyz"]
    assert [f["plugin"] for f in listing["failures"] if f["distribution"] == "broken-ct"] == ["broken"]


def test_schema_prints_a_schema_for_the_installed_plugins(site):
    schema = json.loads(call("schema").output)
    jsonschema.Draft202012Validator.check_schema(schema)
    titles = [choice["title"] for choice in schema["properties"]["operator"]["oneOf"]]
    assert "mini_scan" in titles


def test_run_passes_the_experiment_and_the_options_on(toml, tmp_path, monkeypatch):
    seen = {}

    def run_experiment(experiment, **options):
        seen.update(options, views=experiment.operator.settings.views)

    stand_in(monkeypatch, run_experiment)
    result = call("run", toml, "--set", "operator.views=9", "--out", str(tmp_path / "o"), "--fresh")
    assert (result.exit_code, result.stderr) == (0, "")
    assert seen == {"views": 9, "out_dir": tmp_path / "o", "fresh": True, "console": True}


def test_a_failed_run_is_one_line_and_exit_code_1(toml, monkeypatch):
    def run_experiment(experiment, **options):
        raise FloatingPointError("the volume\nholds NaN")

    stand_in(monkeypatch, run_experiment)
    result = call("run", toml)
    assert result.exit_code == 1
    assert (
        result.stderr.startswith("pdframe: FloatingPointError: the volume holds NaN") and result.stderr.count("\n") == 1
    )
    monkeypatch.setenv("PDFRAME_TRACEBACK", "1")
    assert "Traceback" in call("run", toml).stderr


def test_ctrl_c_is_one_line_and_exit_code_130(toml, monkeypatch):
    def run_experiment(experiment, **options):
        raise KeyboardInterrupt

    stand_in(monkeypatch, run_experiment)
    result = call("run", toml)
    assert (result.exit_code, result.stderr) == (130, "pdframe: interrupted\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "{toml}", "--set", "operator.veiws=1"], "operator.veiws: unknown key; did you mean `views`?"),
        (["run", "{toml}", "--set", "solver.name=mini_fliter"], "did you mean `mini_filter`"),
        (["run", "no/such.toml"], "cannot be read: No such file"),
        (["run"], "Missing argument 'TOML'"),
        (["run", "{toml}", "--frehs"], "No such option"),
        (["rnu"], "No such command"),
        (["sample", "--set", "samples=0", "--set", "prior.name=no"], "samples: should be greater than or equal to 1"),
        (["doctor", "{toml}", "--set", "sed=1"], "sed: unknown key; did you mean `seed`?"),
    ],
)
def test_usage_and_config_errors_are_exit_code_2(args, message, toml):
    result = call(*[a.format(toml=toml) for a in args])
    assert result.exit_code == 2 and message in result.stderr
    assert "Traceback" not in result.output + result.stderr


def test_several_mistakes_are_one_line_each(toml):
    result = call("run", toml, "--set", "sed=1", "--set", "operator.veiws=2")
    lines = result.stderr.splitlines()
    assert len(lines) == 2 and all(line.startswith("pdframe: --set ") for line in lines)


def test_a_missing_back_end_is_exit_code_3_before_anything_runs(toml, monkeypatch):
    stand_in(monkeypatch, lambda *a, **k: pytest.fail("the run was started"))
    result = call("run", toml, "--set", "solver.name=mini_gpu")
    assert result.exit_code == 3 and result.stderr.count("\n") == 1
    assert 'needs no_such_library_xyz, not installed here: pip install "mini-ct[gpu]"' in result.stderr


def test_exit_codes_of_exceptions():
    found = [exit_code(e) for e in (ConfigError("x"), RegistryError("x"), BackendMissing("x"), OSError("x"))]
    assert found == [2, 2, 3, 1]


def spawn(*args, **env):
    command = [sys.executable, "-m", "pdframe", *args]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, timeout=120, check=False)


def test_the_process_exits_as_promised(tmp_path, site):
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    (tmp_path / "x.toml").write_text(TOML)
    assert spawn("--version").stdout.startswith("pdframe ")
    for args, code in [
        (["plugins"], 0),
        (["nonsense"], 2),
        (["run", str(tmp_path / "x.toml"), "--set", "solver.stpes=1"], 2),
        (["run", str(tmp_path / "x.toml"), "--set", "solver.name=mini_gpu"], 3),
    ]:
        done = spawn(*args, PYTHONPATH=path)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr


def test_ctrl_c_stops_a_real_process(tmp_path, site):
    (tmp_path / "x.toml").write_text(TOML.replace("mini_data", "slow_data"))
    (site / "mini.py").write_text(PLUGIN.replace("mini_data", "slow_data"))
    waiting = "import sys, time\nprint('waiting', flush=True)\ntime.sleep(60)\n"
    (site / "mini_parts.py").write_text(waiting + PARTS)
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "pdframe", "run", str(tmp_path / "x.toml")],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "pdframe: interrupted\n")


@pytest.mark.parametrize("command", [["--help"], ["plugins"], ["plugins", "--json"], ["run", "--help"]])
def test_a_quick_command_imports_nothing_heavy_and_is_quick(command):
    code = (
        "import sys\nfrom pdframe.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n"
        f"    heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "    sys.exit(f'imported {heavy}' if heavy else end.code)\n"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    # The promise is 0.5 s; the best of three on a busy machine gets three times that.
    assert min(seconds) < 1.5


ABSENT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("odl", "astra", "deepinv"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize(("command", "said"), [("--help", "Usage: pdframe"), ("plugins", "cone_beam")])
def test_the_front_door_opens_quickly_where_odl_astra_and_deepinv_are_absent(command, said, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(ABSENT)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    refused = subprocess.run([sys.executable, "-c", "import odl"], capture_output=True, text=True, env=env, check=False)
    assert "sitecustomize.py" in refused.stderr  # so they are absent indeed, installed or not
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = spawn(command, **env)
        seconds.append(time.perf_counter() - start)
        assert (done.returncode, done.stderr) == (0, "") and said in done.stdout
    assert min(seconds) < 0.5


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on memory")
def test_memory_that_is_refused_is_told_with_what_to_do(tmp_path):
    import resource

    example = Path(__file__).parent.parent / "docs" / "examples" / "phantom.toml"
    command = [
        sys.executable,
        "-m",
        "pdframe",
        "run",
        example,
        "--out",
        tmp_path,
        "--set",
        "dataset.shape=[3000,3000,3000]",
    ]
    limit = 16 * 2**30
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "take a smaller grid or batch" in done.stderr
