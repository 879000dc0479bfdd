"""What to cite: BibTeX is read, found for what settings name, and complete for what ships."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from pdframe import registry
from pdframe.cite import cited, references, used
from pdframe.cli import main
from pdframe.hooks import Entry

SHIPPED = [e for p in registry.plugins() if p.distribution == "pdframe" for e in p.entries]
#: Entries that bring nothing that has an author: files of the user, textbook noise. Executors change no result.
OWN = {("dataset", "nifti"), ("noise", "none"), ("noise", "gaussian"), ("noise", "photon")}
TWO = "text\n@book{a1, title = {A {B} C}}\n\n@article{b-2,\n  year = {2020}\n} more"


def test_entries_are_told_apart_by_their_braces():
    assert references(TWO) == {"a1": "@book{a1, title = {A {B} C}}", "b-2": "@article{b-2,\n  year = {2020}\n}"}
    assert references("") == {}
    with pytest.raises(ValueError, match="'x' does not end"):
        references("@article{x, title = {open}")


def test_the_plugins_that_settings_name_are_found_wherever_they_stand():
    settings = {
        "base": {"operator": {"name": "cone_beam", "views": 20}, "metrics": {"name": "ct"}},
        "scan": [{"label": "a", "dataset": {"name": "sample"}}],
        "method": [
            {"label": "x", "name": "dds", "start": {"name": "admm_tv"}, "prior": {"name": "patch3d"}},
            {"label": "y", "name": "dds"},
            {"label": "z", "name": "no_such_solver"},
        ],
    }
    found = [(e.kind, e.name) for e in used(settings)]
    assert sorted(found) == sorted(
        [("operator", "cone_beam"), ("metric", "ct"), ("dataset", "sample"), ("solver", "dds"), ("solver", "admm_tv"),
         ("prior", "patch3d")]
    )  # fmt: skip
    keys = list(cited(used(settings)))
    assert {"joseph1982improved", "chung2024decomposed", "rudin1992nonlinear", "armato2015data"} <= set(keys)
    assert len(keys) == len(set(keys))


def test_a_broken_citation_of_a_plugin_hides_no_other():
    whole = Entry("solver", "w", "m:W", "", cite=TWO)
    assert list(cited([Entry("solver", "b", "m:B", "", cite="@article{b, {"), whole])) == ["a1", "b-2"]


@pytest.mark.parametrize("entry", SHIPPED, ids=lambda e: f"{e.kind}-{e.name}")
def test_what_ships_says_what_to_cite(entry: Entry):
    found = references(entry.cite)
    assert bool(found) or (entry.kind, entry.name) in OWN or entry.kind == "executor"
    for key, text in found.items():
        fields = dict(re.findall(r"^  (\w+) = \{(.*?)\},?$", text, flags=re.MULTILINE | re.DOTALL))
        assert {"title", "author", "year"} <= set(fields) and re.fullmatch(r"(19|20)\d\d", fields["year"]), key
        assert fields.keys() & {"doi", "eprint", "url"}, f"{key} has no address"
        assert fields["author"].split(",")[0].split()[0].lower() in key and fields["year"] in key
        assert all(re.fullmatch(r"\d+(--\d+)?", fields.get(n, "1")) for n in ("pages", "volume"))


def test_one_paper_is_written_once():
    texts: dict[str, str] = {}
    for entry in SHIPPED:
        for key, text in references(entry.cite).items():
            assert texts.setdefault(key, text) == text, key


def test_the_list_of_plugins_says_what_to_cite():
    text = CliRunner().invoke(main, ["plugins"]).output
    (line,) = [line for line in text.splitlines() if line.startswith("  dds ")]
    assert line.endswith("; cite chung2024decomposed)")
    listed = json.loads(CliRunner().invoke(main, ["plugins", "--json"]).output)["entries"]
    assert {o["name"]: o["cite"] for o in listed if o["kind"] == "solver"}["dds"].strip().startswith("@inproceedings")
