"""What the documents say is so: commands, code, names, keys, links."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
import tomli

from pdframe import registry
from pdframe.config import Experiment, read
from pdframe.hooks import KINDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHIPPED = [(p, e) for p in registry.plugins() if p.distribution == "pdframe" for e in p.entries]
PAGES = sorted(
    p
    for pattern in ("*.md", "docs/**/*.md", "plugins/**/*.md", "benchmarks/**/*.md", "tests/**/*.md")
    for p in ROOT.glob(pattern)
)


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def table(text: str, *heading: str) -> list[list[str]]:
    """The body rows of the Markdown table with that heading, cells stripped."""
    lines = text.splitlines()
    start = lines.index(f"| {' | '.join(heading)} |") + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_readme_starts_with_its_two_commands():
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    (first, run), (second, test) = fenced[:2]
    assert (first, second) == ("bash", "bash")
    for command in (run, test):
        assert command.count("\n") == 1 and command.startswith("python3 -m venv .venv && .venv/bin/pip install -e ")
    toml = run.split()[-1]
    assert run.rstrip().endswith(f".venv/bin/pdframe run {toml}") and (ROOT / toml).is_file()
    assert test.rstrip().endswith(".venv/bin/python -m pytest")
    assert README[: README.index(test)].count("\n") < 30


def test_ci_runs_the_second_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    awk = re.search(r"command=\$\((awk .*)\)$", script, flags=re.MULTILINE)
    assert awk is not None
    got = subprocess.run(["bash", "-c", awk[1]], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert got == blocks(README, "bash")[1]


def test_the_python_of_the_readme_runs(capsys: pytest.CaptureFixture[str]):
    (example,) = blocks(README, "python")
    assert len([line for line in example.splitlines() if line]) <= 12
    exec(compile(example, "README.md", "exec"), {})
    fdk, tv = (float(line.split()[1]) for line in capsys.readouterr().out.splitlines())
    assert 15 < fdk < tv


def test_the_toml_of_the_readme_is_an_experiment():
    (example,) = blocks(README, "toml")
    experiment = read(Experiment, tomli.loads(example))
    assert [m.label for m in experiment.methods] == ["dds", "admm_tv"]


def test_the_readme_lists_what_ships():
    told = {(kind, name.strip("`"), package.strip("`")) for kind, name, _, package in
            table(README, "kind", "name", "what it is", "package")}  # fmt: skip
    assert told == {(e.kind, e.name, e.target.split(".")[0]) for _, e in SHIPPED}


def test_the_readme_lists_every_extra():
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    told = {row[0].strip("`") for row in table(README, "extra", "brings", "note")}
    assert told == set(project["optional-dependencies"])


def test_the_readme_lists_every_command():
    from pdframe.cli import main

    told = {row[0].strip("`").split()[1] for row in table(README, "command", "what it does")}
    assert told == set(main.commands)


def test_the_plugin_table_lists_what_ships():
    text = (ROOT / "plugins" / "README.md").read_text()
    told = {}
    for package, offers, _ in table(text, "package", "offers", "needs beyond numpy and torch"):
        told[package.strip("`")] = set(re.findall(r"`(\w+)`", offers))
    ships: dict[str, set[str]] = {}
    for _, entry in SHIPPED:
        ships.setdefault(entry.target.split(".")[0], set()).add(entry.name)
    assert told == ships
    folders = {p.parent.name for p in (ROOT / "plugins").glob("*/__init__.py")}
    assert set(told) == folders


def test_the_reference_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    written = (ROOT / "docs" / "reference.md").read_text()
    assert written == maker.page(), "settings have changed; run `python docs/make_reference.py`"


def test_the_reference_mentions_every_entry_and_every_key():
    """Not through the code that wrote it."""
    text = (ROOT / "docs" / "reference.md").read_text()
    for _, entry in SHIPPED:
        section = text.split(f"### {entry.kind} `{entry.name}`\n", 1)[1].split("\n### ", 1)[0]
        for key in registry.load_config_class(entry).model_fields:
            assert f"| `{key}` |" in section, f"{entry.kind} {entry.name}: {key}"
    experiment = text.split("## Experiment\n", 1)[1].split("\n## Sampling", 1)[0]
    for name, field in Experiment.model_fields.items():
        assert f"| `{name}` |" in experiment
        for key in getattr(field.annotation, "model_fields", {}):
            assert f"| `{key}` |" in experiment.split(f"`[{name}]`", 1)[1], f"{name}.{key}"


def test_the_concepts_name_every_kind():
    text = (ROOT / "docs" / "concepts.md").read_text()
    nouns = {row[0] for row in table(text, "noun", "what it is", "contract")}
    assert nouns == {*KINDS, "problem"}


def test_the_plugin_guide_shows_the_template_as_it_is():
    guide = (ROOT / "docs" / "write-a-plugin.md").read_text()
    template = ROOT / "docs" / "plugin-template"
    sources = "\n".join(p.read_text() for p in [*template.rglob("*.py"), template / "pyproject.toml"])
    shown = blocks(guide, "python") + blocks(guide, "toml")
    assert len(shown) == 6
    for block in shown:
        assert block in sources, block
    (tree,) = blocks(guide, "text")
    for line in tree.splitlines()[1:]:
        assert (template / line.split()[0]).is_file(), line


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"<!--.*?-->|^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), flags=re.MULTILINE)
            assert anchor in {_anchor(h) for h in headings}, f"{page.name} links to {target}"


def test_every_page_of_the_docs_is_in_the_index():
    index = (ROOT / "docs" / "index.md").read_text()
    pages = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    for page in pages - {"index.md", "plugin-template/README.md"}:
        assert f"]({page})" in index, page


def test_the_changelog_knows_this_version():
    version = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(rf"^## {re.escape(version)}( |$)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_exit_codes_are_those_of_the_command_line():
    (told,) = re.findall(r"Exit codes: (.*?)\n\n", README, flags=re.DOTALL)
    from pdframe import cli

    assert re.findall(r"\d+", told) == re.findall(r"\d+", (cli.__doc__ or "").split("Exit codes:")[1])


def test_the_readme_names_the_python_versions_of_the_project():
    classifiers = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    versions = [c.rsplit(" ", 1)[1] for c in classifiers if re.search(r":: 3\.\d+$", c)]
    assert f"Python {', '.join(versions[:-1])} or {versions[-1]}" in " ".join(README.split())
