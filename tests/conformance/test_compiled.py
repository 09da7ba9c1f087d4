"""The compiling executor in machine code; `checks.compiled_is_vmap` runs every method's programs without a compiler."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.execute import compiled
from rayfed.execute.tuning import compiler, replay
from tests import toy
from tests.conformance.checks import close
from tests.conformance.test_conformance import ADAM, SHORT

pytestmark = [
    pytest.mark.skipif(bool(compiler.missing()), reason=compiler.missing()),
    pytest.mark.timeout(900),  # a compilation takes half a minute of an idle machine
]

# One method of each kind of step: plain, bent gradients, a proximal term, momentum, several models, two phases, what is carried.
METHODS: list[tuple[Any, dict[str, Any]]] = [
    ("fedavg", {"local": ADAM}),
    ("scaffold", {}),
    ("fedprox", {}),
    ("ifca", {}),
    ("fedbip", {}),
    ("fedmerge", {}),
    ({"name": "disue", **SHORT}, {}),
]


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache that the tests of this file share."""
    where = tmp_path_factory.getbasetemp() / "compiled-cache"
    monkeypatch.setenv("RAYFED_CACHE", str(where))
    yield where


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(replay, "note_down", found.append)
    return found


def packages(cache: Path) -> set[str]:
    return {p.name for p in (cache / "compiled").glob("*.pt2")}


def test_a_run_in_machine_code(cache: Path, tmp_path: Path, notes: list[str]) -> None:
    """The numbers of `vmap`; resumed, over several workers and in another order the same bits; one package for all of it."""
    plain = toy.simulate("fedavg", executor="vmap")
    first = toy.simulate("fedavg", executor="compiled")
    made = packages(cache)
    assert not notes and len(made) == 1
    close(plain.state, first.state, plain.initial, 1e-4, "float32")
    assert not tree.same(plain.state, first.state), "machine code rounds differently: this was not it"
    for seed, workers in ((3, 1), (5, 3)):
        other = toy.simulate("fedavg", executor="compiled", pool=toy.SimPool(workers, seed), order=seed)
        assert tree.same(other.state, first.state)
    whole = toy.run_folder("fedavg", tmp_path / "whole", executor="compiled")
    toy.run_folder("fedavg", tmp_path / "part", executor="compiled", stop_after=1)
    for known in list(compiled._steps):
        del compiled._steps[known]
    again = toy.run_folder("fedavg", tmp_path / "part", executor="compiled", resume=True)
    assert tree.same(again.state, whole.state) and again.rows == whole.rows and packages(cache) == made
    assert not notes
    (name,) = made
    script = f"""
import sys
from pathlib import Path
from rayfed.execute.tuning import compiler, process
process.prepare()
import torch
torch.set_num_threads({torch.get_num_threads()})
compiler.load("never read", {name.split("-")[0]!r}, Path({str(cache / "compiled")!r}))
assert "torch._inductor" not in sys.modules, "whoever loads a package needs no compiler"
"""
    assert not subprocess.run([sys.executable, "-c", script]).returncode


@pytest.mark.slow
def test_code_made_anew_has_the_same_bits(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warm = toy.simulate("fedavg", executor="compiled")
    monkeypatch.setenv("RAYFED_CACHE", str(tmp_path))
    cold = toy.simulate("fedavg", executor="compiled")
    assert packages(tmp_path) and tree.same(warm.state, cold.state)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "changes"), METHODS, ids=lambda x: json.dumps(x)[:30])
def test_a_method_in_machine_code(method: Any, changes: dict[str, Any], cache: Path, notes: list[str]) -> None:
    for dtype, tolerance in (("float64", 1e-9), ("float32", 1e-4)):
        plain, made = (toy.simulate(method, executor=e, dtype=dtype, **changes) for e in ("vmap", "compiled"))
        close(plain.state, made.state, plain.initial, tolerance, dtype)
        close(plain.clients(), made.clients(), plain.initial_clients(), tolerance, f"{dtype}, client states:")
    assert not notes and torch.get_num_threads()
