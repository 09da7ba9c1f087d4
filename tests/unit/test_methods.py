"""The registry of methods: by name, by file, from an installed package; and what is said of others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayfed import Method, methods
from rayfed.methods.fedavg import FedAvg
from tests.configs import refusal

OWN = "from rayfed import Method\n\n\nclass Mine(Method): ...\n\n\nclass Other: ...\n"


def test_a_ready_method_is_the_one_of_its_file() -> None:
    assert methods.get("fedavg") is FedAvg and "fedavg" in methods.ready() <= set(methods.names())
    assert not [n for n in methods.ready() if n.startswith("_")]


def test_an_unknown_name_gets_the_nearest() -> None:
    said = refusal(methods.get, "fedvag")
    assert said.startswith("method.name: 'fedvag' is unknown (did you mean 'fedavg'?); known: ") and "scaffold" in said


def test_a_class_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    assert issubclass(methods.get(f"{file}:Mine"), Method)
    assert refusal(methods.get, f"{file}:Mien").endswith(
        "has no Method named 'Mien' (did you mean 'Mine'?); it has: Mine"
    )
    assert refusal(methods.get, f"{file}:Other").endswith("has no Method named 'Other'; it has: Mine")
    assert refusal(methods.get, f"{tmp_path / 'none.py'}:Mine").endswith("none.py' does not exist")
    file.write_text("1 / 0\n")
    assert "cannot be imported: ZeroDivisionError" in refusal(methods.get, f"{file}:Mine")


@pytest.mark.parametrize(("offered", "taken"), [(FedAvg, True), (dict, False)])
def test_a_method_of_an_installed_package(monkeypatch: pytest.MonkeyPatch, offered: Any, taken: bool) -> None:
    entry = SimpleNamespace(name="theirs", dist="their-package", load=lambda: offered)
    monkeypatch.setattr(methods, "entry_points", lambda group: [entry])
    assert "theirs" in methods.names()
    if taken:
        assert methods.get("theirs") is offered
    else:
        assert refusal(methods.get, "theirs") == "method.name: 'theirs' of package their-package is not a rayfed.Method"
