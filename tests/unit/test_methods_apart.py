"""A method is one file: nothing else names it, and without its file the rest goes on."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rayfed import methods

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [p for folder in ("rayfed", "actors") for p in (ROOT / folder).rglob("*.py")]


def imported(file: Path) -> set[str]:
    """Dotted names a file imports, `from a import b` as a.b too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
    return found


def test_nothing_imports_a_method() -> None:
    names = {f"rayfed.methods.{n}" for n in methods.names()}
    for file in SOURCES:
        assert not imported(file) & names, file


@pytest.mark.parametrize("folder", ["engine", "fed.py", "fold.py", "execute"])
def test_the_engine_knows_no_method_by_name(folder: str) -> None:
    at = ROOT / "rayfed" / folder
    for file in [at] if at.is_file() else sorted(at.rglob("*.py")):
        said = {n.value for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Constant)}
        assert not said & set(methods.names()), file


def test_every_method_has_a_test_and_every_test_there_a_method() -> None:
    """tests/methods/conftest.py leaves a file out that no method is called after: it would never run."""
    tested = {p.stem.removeprefix("test_") for p in (ROOT / "tests" / "methods").glob("test_*.py")}
    elsewhere = {"fedbip_l"}  # test_fedbip.py: one class, two groupings
    assert tested == methods.ready() - elsewhere


@pytest.mark.slow
def test_removing_a_method_is_deleting_one_file(tmp_path: Path) -> None:
    for folder in ("rayfed", "actors"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "rayfed" / "methods" / "scaffold.py").unlink()

    def rayfed(*words: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(
            [sys.executable, "-m", "rayfed", *words], cwd=tmp_path, env=env, capture_output=True, text=True
        )

    listed = rayfed("methods")
    assert listed.returncode == 0
    assert {line.split()[0] for line in listed.stdout.splitlines()} == set(methods.names()) - {"scaffold"}
    small = ["--set", "federation.clients=6", "--set", "federation.per_round=2", "--set", "federation.groups.count=2"]
    done = rayfed("run", "fedavg", "--local", "--set", "rounds=1", *small, "--out", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    refused = rayfed("validate", "scaffold")
    assert refused.returncode == 2 and "'scaffold' is unknown" in refused.stderr
