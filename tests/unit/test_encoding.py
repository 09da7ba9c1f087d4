"""Text is read and written as UTF-8, whatever the locale is."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayfed.storage.text_files import read_json, read_yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(f for d in ("rayfed", "actors", "tune_spaces", "benchmarks") for f in (ROOT / d).rglob("*.py"))
MODES = {"open": (1, "r"), "fdopen": (1, "r"), "NamedTemporaryFile": (0, "w+b"), "TemporaryFile": (0, "w+b")}
NOT_TEXT = {
    "os",
    "tarfile",
    "Image",
    "tokenize",
    "RunFolder",
    "sink",
    "sinks",
}  # whose `open` gives no text, or says itself in what


def left_to_the_locale(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls that read or write text in the locale's encoding."""
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        function = call.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        of = function.value if isinstance(function, ast.Attribute) else None
        owner = of.attr if isinstance(of, ast.Attribute) else getattr(of, "id", "")
        given = {k.arg: k.value for k in call.keywords}
        if "encoding" in given or None in given:
            continue
        text = given.get("text") or given.get("universal_newlines")
        if name in ("read_text", "write_text") or (isinstance(text, ast.Constant) and text.value is True):
            yield call
        if name not in MODES or (name == "open" and owner in NOT_TEXT):
            continue
        place, mode = MODES[name]
        place -= name == "open" and of is not None  # path.open(mode)
        found = given.get("mode") or (call.args[place] if len(call.args) > place else ast.Constant(mode))
        if isinstance(found, ast.Constant) and isinstance(found.value, str) and "b" not in found.value:
            yield call


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("open(f)", True),
        ("open(f, 'w')", True),
        ("open(f, 'rb')", False),
        ("open(f, encoding='utf-8')", False),
        ("f.open()", True),
        ("f.open('wb')", False),
        ("f.open(mode='a')", True),
        ("f.read_text()", True),
        ("f.write_text(t, 'utf-8')", True),
        ("f.write_text(t, encoding='utf-8')", False),
        ("os.fdopen(1, 'w')", True),
        ("os.open(f, os.O_RDONLY)", False),
        ("NamedTemporaryFile('w')", True),
        ("NamedTemporaryFile()", False),
        ("subprocess.run(c, text=True)", True),
        ("subprocess.run(c, encoding='utf-8')", False),
    ],
)
def test_calls_that_are_found(line: str, found: bool) -> None:
    assert bool(list(left_to_the_locale(ast.parse(line)))) is found


def test_every_file_names_its_encoding() -> None:
    wrong = [
        f"{f.relative_to(ROOT)}:{c.lineno}: {ast.unparse(c)}"
        for f in FILES
        for c in left_to_the_locale(ast.parse(f.read_bytes()))
    ]
    assert len(FILES) > 100 and not wrong, "\n".join(wrong)


CONFIG = """
name: blätter
rounds: 1
task: {data: "own_é.py:make", model: linear}
federation: {clients: 2}
method: fedavg
track: []
"""
DATA = '''
"""Own data: Blätter."""
import numpy as np
from rayfed.data import Dataset, Part

def make(seed):
    x, y = np.random.default_rng(0).normal(size=(24, 2)), np.arange(24) % 2
    return Dataset("blätter", Part(x[:16], y[:16]), Part(x[16:], y[16:]), 2, ("grün", "日本"), "tabular")
'''


def test_a_run_under_a_locale_without_utf8(tmp_path: Path) -> None:
    """Under C and POSIX Python's own encoding is ASCII, unless a variable says otherwise."""
    (tmp_path / "c.yaml").write_text(CONFIG.replace("own_é", "own"), encoding="utf-8")
    (tmp_path / "own.py").write_text(DATA, encoding="utf-8")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    environment = {k: v for k, v in os.environ.items() if k not in ("LANG", "PYTHONIOENCODING")} | plain
    code = "import sys; from rayfed.cli import main; sys.argv[0] = 'rayfed'; main()"
    done = {}
    for words in (["validate", "c.yaml"], ["run", "c.yaml", "--local"]):
        command = [sys.executable, "-c", code, *words]
        done[words[0]] = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
        assert done[words[0]].returncode == 0, done[words[0]].stderr.decode()
    assert "bl" in done["validate"].stdout.decode()
    (run,) = (tmp_path / "runs").iterdir()
    assert read_yaml(run / "config.yaml")["name"] == "blätter"
    assert read_json(run / "summary.json")["status"] == "done"
    assert "blätter" in (run / "report.html").read_bytes().decode("utf-8")
