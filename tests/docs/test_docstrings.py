"""The examples in the docstrings of what users import run, and everything that is public has one."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import rayfed
from tests import toy

MODULES = ("api", "fed", "fold", "method", "task", "training", "visits", "wire")
DOZEN = {  # what is public, by where it is defined
    "api.run", "api.Run", "fed.Fed.ask", "fed.Replies", "fold.mean", "fold.total", "method.Method", "task.Task", "training.sgd_visit",
    "visits.Visit", "visits.measure", "visits.visit", "wire.Part", "wire.Wire",
}  # fmt: skip


def examples() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in MODULES:
        module = importlib.import_module(f"rayfed.{name}")
        yield from (t for t in finder.find(module, f"rayfed.{name}") if t.examples)


EXAMPLES = {t.name.removeprefix("rayfed."): t for t in examples()}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names that examples find: a run, and what a method's `round` is given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("session"))
        patch.setattr("rayfed.report.write_report", lambda path: None)  # pictures take longer than all runs
        config = {"task": {"data": "digits", "model": "linear"}, "federation": {"clients": 4}, "method": "fedavg"}
        fed = toy.make_fed(toy.config("fedavg"))
        fed.begin(1)
        yield {
            "rayfed": rayfed, "torch": torch, "fed": fed, "task": fed.task, "state": fed.method.init(fed.task, 1),
            "run": rayfed.run(config, sets=["rounds=2"], local=True), "__name__": "__main__",  # as in a session
        }  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example(name: str, given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    test = EXAMPLES[name]
    test.globs = {**test.globs, **given}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    with capsys.disabled():
        failed = runner.run(test, clear_globs=False).failed
    assert not failed


def test_all_that_is_public_has_an_example() -> None:
    assert set(EXAMPLES) >= DOZEN
    assert {n.rpartition(".")[2] for n in DOZEN} - {"ask"} <= set(rayfed.__all__)
