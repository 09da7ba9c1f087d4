"""What a verdict was made with: the commit, a digest of the code that decides numbers, the machine."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rayfed.config import user_code
from rayfed.config.schema import Study

PACKAGE = Path(__file__).parents[1]
COUNTED = (  # what decides a run's numbers; engine, execution and storage are held to the same bits by tests
    "adapters", "cluster", "data", "distill", "fold", "keys", "methods", "metrics", "models", "optimizers", "partition",
    "schedules", "task", "training", "tree", "visits",
)  # fmt: skip


def commit(folder: Path) -> str | None:
    """Return the commit of a checkout, with `+changes` if files differ from it; None outside of one."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        return head[:12] + ("+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, encoding="utf-8", check=True)
    return done.stdout.strip()


def machine() -> str:
    """Return the processor and the number of its cores in a few words."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"


def code_digest(study: Study) -> str:
    """Return a digest of the code behind a study: its methods and partitions with all that they import, and own code files.

    Comments, docstrings and layout do not count.
    """
    roots = {f"rayfed.methods.{c.method.name}" for c in study.arms.values() if "." not in c.method.name}
    roots |= {f"rayfed.partition.{c.federation.partition.kind}" for c in study.arms.values()}
    roots |= {"rayfed.partition", "rayfed.task", "rayfed.training"}
    parts = {name: _meaning(file.read_text(encoding="utf-8")) for name, file in _closure(roots).items()}
    parts |= {name: _meaning(text.decode()) for name, text in user_code.used(study.to_dict()).items()}
    found = hashlib.sha256()
    for name in sorted(parts):
        found.update(f"{name}\0{parts[name]}\0".encode())
    return found.hexdigest()[:16]


def _meaning(source: str) -> str:
    """Return a program's syntax tree as text, without docstrings; the text itself if it is no program."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return source
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def _closure(roots: Iterable[str]) -> dict[str, Path]:
    """Return module -> file of the roots and of all counted modules that they import, also inside functions."""
    found: dict[str, Path] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        file = module_file(name)
        if name in found or file is None or name.split(".")[1] not in COUNTED:
            continue
        found[name] = file
        waiting += imported(file.read_text(encoding="utf-8"))
    return found


def module_file(name: str) -> Path | None:
    """Return the file of a module of this package, None if there is no such module."""
    words = name.split(".")
    if words[0] != PACKAGE.name or len(words) < 2:
        return None
    stem = PACKAGE.joinpath(*words[1:])
    return next((f for f in (stem.with_suffix(".py"), stem / "__init__.py") if f.is_file()), None)


def imported(source: str) -> list[str]:
    """Return the names that a program imports, `from a import b` as both a and a.b."""
    out = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            out += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            out += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return out


def changed(entry: Mapping[str, Any], digest: str, code: str | None) -> list[str]:
    """Return what has changed since a verdict's entry was judged: settings, code."""
    out = ["settings"] if entry.get("digest") != digest else []
    return [*out, "code"] if code is not None and entry.get("code") != code else out
