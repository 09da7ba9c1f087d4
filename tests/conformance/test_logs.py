"""Every name that a method logs has a meaning, and no meaning is of a name that nothing logs."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from types import ModuleType

import pytest

from rayfed import methods
from rayfed.metrics import meaning


def logged(module: ModuleType) -> list[str]:
    """Patterns of the names that `fed.log` is given in a module; what is not written there is `.+`."""
    found = []
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "log":
            if ast.unparse(node.func.value) != "fed":
                continue
            name = node.args[0]
            pieces = name.values if isinstance(name, ast.JoinedStr) else [name]
            found.append("".join(re.escape(p.value) if isinstance(p, ast.Constant) else ".+" for p in pieces))
    return found


def modules(name: str) -> list[ModuleType]:
    """The files whose code is a method's own: its own and those of its bases."""
    classes = [c for c in methods.get(name).__mro__ if c.__module__.startswith("rayfed.")]
    return [importlib.import_module(m) for m in dict.fromkeys(c.__module__ for c in classes)]


@pytest.mark.parametrize("name", methods.names())
def test_every_logged_name_has_a_meaning(name: str) -> None:
    logs, patterns = methods.get(name).logs, [p for m in modules(name) for p in logged(m)]
    for pattern in patterns:
        assert any(re.fullmatch(pattern, n) for n in logs), f"{pattern} is logged, and Method.logs has {list(logs)}"
    for n, (text, unit) in logs.items():
        assert any(re.fullmatch(p, n) for p in patterns), f"Method.logs has {n}, which nothing logs"
        assert text and unit and meaning(n, logs) == (text, unit, "-")
        assert meaning(n) is None, f"{n} has a meaning of rayfed's own"


def test_methods_log() -> None:
    assert sum(len(methods.get(n).logs) for n in methods.names()) > 30
    assert "lora/gap" in methods.get("fedit").logs and not methods.get("fedavg").logs
