"""What keeps the house in order: who may import whom, what an import may do, how long a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
import tomli

ROOT = Path(__file__).parents[1]
SHIPPED = [p for top in ("pdframe", "plugins", "tests") for p in sorted((ROOT / top).rglob("*.py"))]
LIBRARY = [p for p in SHIPPED if p.relative_to(ROOT).parts[0] != "tests"]
PYPROJECT = tomli.loads((ROOT / "pyproject.toml").read_text())
MAX_LINES = 400
#: Files that are themselves the heavy library's code; whoever needs them imports them inside a function.
KERNELS = {"pdframe/core/compiled.py", "pdframe/nn/norm_kernel.py", "plugins/pdframe_ray/kernels.py"}
HEAVY = {"matplotlib", "nibabel", "numba", "odl", "deepinv", "astra", "scipy", "skimage", "itk", "optuna"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def run(code: str, *flags: str) -> str:
    done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_contracts_hold():
    pytest.importorskip("importlinter", reason="import-linter is not installed")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-cache",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    contracts = len(PYPROJECT["tool"]["importlinter"]["contracts"])
    assert f"{contracts} kept, 0 broken" in done.stdout


def test_every_plugin_folder_is_declared_everywhere():
    folders = {p.name for p in (ROOT / "plugins").iterdir() if (p / "__init__.py").is_file()}
    assert set(PYPROJECT["project"]["entry-points"]["pdframe"].values()) == folders
    assert set(PYPROJECT["tool"]["importlinter"]["root_packages"]) == {"pdframe", *folders}
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(wheel) == {"pdframe", *(f"plugins/{f}" for f in folders)}
    for contract in PYPROJECT["tool"]["importlinter"]["contracts"][:2]:
        assert set(contract.get("forbidden_modules", contract.get("modules"))) == folders


def test_installed_entry_points_are_those_of_pyproject():
    points = {p.name: p.value for p in distribution("pdframe").entry_points if p.group == "pdframe"}
    assert points == PYPROJECT["project"]["entry-points"]["pdframe"], "install again: `pip install -e .`"


def test_a_plugin_package_holds_only_its_hook():
    """Registering is data: listing plugins imports these files, so they import nothing but the hooks and BibTeX."""
    for package in sorted((ROOT / "plugins").glob("*/__init__.py")):
        tree = ast.parse(package.read_text())
        imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
        modules = {n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in imports}
        references = package.parent / "references.py"
        assert modules <= {"__future__", "pdframe.hooks", f"{references.parent.name}.references"}, name(package)
        if references.is_file():
            code = ast.parse(references.read_text()).body[1:]
            assert all(isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant) for n in code), name(references)
        assert [f.name for f in tree.body if isinstance(f, ast.FunctionDef)] == ["pdframe_register"], name(package)


@pytest.mark.parametrize("path", SHIPPED, ids=name)
def test_a_file_tells_one_story(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_no_function_is_longer_than_a_screen_and_a_half():
    too_long = []
    for path in LIBRARY:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = node.end_lineno - body[0].lineno + 1 if body else 0
                too_long += [f"{name(path)}:{node.lineno} {node.name}: {lines} lines"] if lines > 60 else []
    assert not too_long, "\n".join(too_long)


def test_no_module_is_named_after_nothing():
    vague = {"utils", "util", "common", "base", "helpers", "helper", "manager", "misc"}
    assert [name(p) for p in LIBRARY if p.stem in vague] == []


def test_heavy_libraries_are_imported_in_the_function_that_needs_them():
    found = []
    for path in LIBRARY:
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found += [f"{name(path)}:{node.lineno} {n}" for n in names if n.split(".")[0] in HEAVY]
    assert [f for f in found if f.split(":")[0] not in KERNELS] == []


MODULES = [
    name(p).removeprefix("plugins/").removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    for p in LIBRARY
    if p.stem != "__main__" and name(p) not in KERNELS
]


def test_importing_everything_changes_nothing():
    code = f"""
import importlib, os, random, sys, warnings
import numpy, torch
def world():
    return (hash(random.getstate()), numpy.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes(),
            dict(os.environ), numpy.get_printoptions(), warnings.filters[:], torch.get_default_dtype(),
            torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), sys.path[:], os.getcwd())
before = world()
for module in {MODULES!r}:
    importlib.import_module(module)
after = world()
print([i for i, (a, b) in enumerate(zip(before, after)) if a != b])
print(sorted({{m.split(".")[0] for m in sys.modules}} & {HEAVY!r}))
"""
    changed, heavy = run(code).split("\n")[:2]
    assert changed == "[]"
    assert heavy == "[]"


def test_importing_pdframe_costs_nothing():
    code = (
        "import sys; n = len(sys.modules); import pdframe; print([m for m in sys.modules if m.startswith('pdframe')])"
    )
    assert run(code).strip() == "['pdframe']"
    assert "torch" not in run("import sys, pdframe.hooks, pdframe.registry, pdframe.cli; print(list(sys.modules))")


def test_the_public_names_are_there_and_are_those_that_a_type_checker_sees():
    import pdframe

    tree = ast.parse(Path(pdframe.__file__).read_text())
    guarded = next(n for n in tree.body if isinstance(n, ast.If))
    seen = {a.asname: n.module for n in guarded.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert sorted(seen) == pdframe.__all__
    for public, module in seen.items():
        assert getattr(pdframe, public) is getattr(sys.modules[module], public), public
    assert pdframe.__version__ == distribution("pdframe").version
    assert set(pdframe.__all__) <= set(dir(pdframe))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        pdframe.nonsense  # noqa: B018


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listed.stdout.split("\0") if line and (ROOT / line).is_file()]


def test_no_file_names_a_folder_of_somebodys_machine():
    folders = re.compile(r"(?<![\w.])/(?:work|tmp|home|root|Users)/\w")
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{name(path)}:{i}" for i, line in enumerate(text.splitlines(), 1) if folders.search(line)]
    assert found == []
