"""Errors: their exit codes, what they list, and hints at similar names."""

from __future__ import annotations

import pickle

import pytest

from rayfed.errors import ConfigError, Fenced, Interrupted, PlacementError, RunFailed, nearest


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError, 2), (PlacementError, 3), (RunFailed, 4), (Fenced, 4), (Interrupted, 130)]
)
def test_exit_codes_are_those_of_the_readme(error: type, code: int) -> None:
    assert error("why").exit_code == code and "why" in str(error("why"))


def test_all_problems_are_in_the_text_and_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(ConfigError(["a: one", "b: two"])))
    assert error.problems == ["a: one", "b: two"] and str(error) == "a: one\nb: two"
    assert ConfigError("a: one").problems == ["a: one"]


def test_a_run_that_failed_ends_with_how_to_resume() -> None:
    error = RunFailed("it broke")
    error.hint = "continue with: rayfed resume r"
    assert str(error) == "it broke\ncontinue with: rayfed resume r"


def test_the_nearest_name_is_similar_or_not_named() -> None:
    assert nearest("fedvag", ["ifca", "fedavg"]) == " (did you mean 'fedavg'?)"
    assert nearest("zzz", ["ifca", "fedavg"]) == "" and nearest("x", []) == ""
