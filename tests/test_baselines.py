"""docs/baselines.md: every method has its proof, and every proof that is named is a test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pdframe import registry

ROOT = Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "baselines.md").read_text().splitlines()
    if line.startswith("| `")
]


@pytest.mark.parametrize("proof", sorted({row[2] for row in ROWS}))
def test_every_named_proof_is_a_test(proof: str):
    file, function = proof.strip("`").split("::")
    tree = ast.parse((ROOT / "tests" / file).read_text())
    assert function.startswith("test_") and function in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}


def test_every_row_names_what_is_there():
    known = {entry.name for entry in registry.entries()}
    assert {name for row in ROWS for name in re.findall(r"`(\w+)`", row[0])} <= known


@pytest.mark.parametrize("package", ["pdframe_classic", "pdframe_solvers"])
def test_every_solver_of_a_package_has_its_proof(package: str):
    told = {name for row in ROWS for name in re.findall(r"`(\w+)`", row[0])}
    assert {e.name for e in registry.entries("solver") if e.target.startswith(package)} <= told


def test_every_prior_has_its_proof():
    told = {name for row in ROWS for name in re.findall(r"`(\w+)`", row[0])}
    assert {e.name for e in registry.entries("prior") if e.target.startswith("pdframe_")} <= told
