"""The page's code runs, is conformant, and is what it says it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rayfed import tree
from tests import toy
from tests.conformance.checks import CHECKS, Case
from tests.conftest import ROOT

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "writing-a-method.md").read_text(), re.S)


@pytest.fixture(scope="module")
def ditto(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("method") / "ditto.py"
    file.write_text(BLOCKS[0])
    return f"{file}:Ditto"


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_conformance(check, ditto: str, tmp_path: Path) -> None:
    check(Case({"name": ditto, "lam": 0.5}), tmp_path)


def test_the_second_block_is_a_test_of_the_first() -> None:
    names: dict[str, object] = {}
    exec(BLOCKS[1], names)
    assert callable(names["test_ditto"])


def test_global_model_is_fedavgs(ditto: str) -> None:
    got, plain = toy.simulate({"name": ditto, "lam": 2.0}), toy.simulate("fedavg")
    assert tree.same(got.state["model"], plain.state["model"])


def test_without_pull_it_is_local_training(ditto: str) -> None:
    """Of a client asked once, from the global model of that round; with a strong pull it stays closer."""
    everyone = {"federation": {"per_round": None}}
    free, pulled = (toy.simulate({"name": ditto, "lam": lam}, rounds=1, **everyone) for lam in (0.0, 3.0))
    w = free.initial["model"]
    for c, own in free.clients().items():
        moved, held = (float(tree.flatten(tree.sub(x["v"], w)).norm()) for x in (own, pulled.clients()[c]))
        assert 0 < held < moved
