"""What a verdict was made with: the commit, a digest of the code that decides numbers, the machine."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import rayfed
from rayfed.config import user_code
from rayfed.config.schema import Study
from rayfed.data import SOURCES
from rayfed.models import families

PACKAGE = Path(__file__).parents[1]
COUNTED = (  # what decides a run's numbers; engine, execution and storage are held to the same numbers by tests
    "adapters", "augment", "clock", "cluster", "data", "distill", "fed", "fold", "fronts", "keys", "method", "methods", "metrics", "models",
    "optimizers", "participation", "partition", "schedules", "stragglers", "task", "traces", "training", "tree", "visits",
)  # fmt: skip
ALWAYS = ("fed", "fold", "metrics", "partition", "stragglers", "task", "training")
DECIDING = (
    ":/",
    ":(top,exclude)*.md",
    ":(top,exclude)rayfed/launch/claims.json",
)  # files that a sitting does not write
CHOSEN = ("adapters", "data", "models", "partition")  # packages of which a config names the module that it runs


def commit(folder: Path) -> str | None:
    """Return the commit of a checkout, with `+changes` if files differ from it, other than documents and verdicts; None outside of one."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        return head[:12] + (
            "+changes" if _git(folder, "status", "--porcelain", "--untracked-files=no", "--", *DECIDING) else ""
        )
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
    """Return a digest of the code that computes a study's numbers, and of own code files.

    That is its methods, and the partitions, data sources, networks and adapters that its arms name, with all that they import
    (`COUNTED`); comments, docstrings and layout do not count, nor does code that moves, stores, shows or schedules.
    """
    parts = {name: _meaning(file.read_text(encoding="utf-8")) for name, file in counted(study).items()}
    parts |= {name: _meaning(text.decode()) for name, text in user_code.used(study.to_dict()).items()}
    found = hashlib.sha256()
    for name in sorted(parts):
        found.update(f"{name}\0{parts[name]}\0".encode())
    return found.hexdigest()[:16]


def counted(study: Study) -> dict[str, Path]:
    """Return module (without the package's name) -> file of the code that computes a study's numbers."""
    roots = {f"{PACKAGE.name}.{name}" for name in ALWAYS}
    for c in study.arms.values():
        data = c.task.data.name.partition(":")[0]
        words = {"partition": c.federation.partition.kind, "adapters": c.adapter.kind, "data": SOURCES.get(data, "own")}
        networks = [m.name.replace("-", "_") for m in families.models(c.task.model).values()]
        for words["models"] in networks:
            roots |= {f"{PACKAGE.name}.methods.{c.method.name}"} | {f"{PACKAGE.name}.{p}.{words[p]}" for p in CHOSEN}
    found = _closure(roots)
    if "cluster" in found:  # which clusterer is a method's own setting
        found |= _closure(f"{PACKAGE.name}.cluster.{f.stem}" for f in (PACKAGE / "cluster").glob("[a-z]*.py"))
    return found


@cache
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
    """Return module (less the package) -> file of the roots and of all counted modules that they import, also inside functions."""
    found: dict[str, Path] = {}
    waiting = list(roots)
    while waiting:
        file = module_file(waiting.pop())
        if file is None or file in found.values():
            continue
        module = file.relative_to(PACKAGE).with_suffix("").parts
        if module[0] in COUNTED:
            found[".".join(module).removesuffix(".__init__")] = file
            waiting += imported(file.read_text(encoding="utf-8"))
    return found


def module_file(name: str) -> Path | None:
    """Return the file of a module of this package, or of the one that a name of its root comes from; None if there is none."""
    words = name.split(".")
    if words[0] != PACKAGE.name or len(words) < 2:
        return None
    if len(words) == 2 and words[1] in rayfed._HOME:
        return module_file(f"{PACKAGE.name}.{rayfed._HOME[words[1]]}")
    stem = PACKAGE.joinpath(*words[1:])
    return next((f for f in (stem.with_suffix(".py"), stem / "__init__.py") if f.is_file()), None)


@cache
def imported(source: str) -> tuple[str, ...]:
    """Return the names that a program imports, `from a import b` as both a and a.b."""
    out = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            out += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            out += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(out)


def changed(entry: Mapping[str, Any], digest: str, code: str | None) -> list[str]:
    """Return what has changed since a verdict's entry was judged: settings, code.

    Code under which all its verdicts were reproduced, or its first seed's values confirmed, counts as the entry's own.
    """
    again = [m for m in entry.get("reproductions", ()) if all(r["same"] for r in m["results"])]
    known = {entry.get("code"), *(m.get("code") for m in (*again, *entry.get("confirmed", ())))}
    out = ["settings"] if entry.get("digest") != digest else []
    return [*out, "code"] if code is not None and code not in known else out
