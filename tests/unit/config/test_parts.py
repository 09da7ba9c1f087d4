"""A folder as a registry, seen in that of the rules of aggregation."""

from __future__ import annotations

from rayfed import aggregate
from rayfed.aggregate.krum import Krum
from rayfed.config.schema import Kind

KINDS = aggregate.KINDS


def test_a_file_is_a_part() -> None:
    assert KINDS.get("krum") is Krum
    made = KINDS.make(Kind.model_validate({"kind": "krum", "f": 2}))
    assert isinstance(made, Krum) and made.settings.f == 2
    assert "mean" not in KINDS.names() and not any(n.startswith("_") for n in KINDS.names())


def test_what_is_wrong_is_a_sentence() -> None:
    assert KINDS.problems(Kind(kind="mean"), "x") == []
    assert KINDS.problems(Kind.model_validate({"kind": "krum", "f": 2}), "x") == []
    assert KINDS.problems(Kind.model_validate({"kind": "krum", "f": -1}), "x.0") == [
        "x.0.f: -1 found, should be greater than or equal to 0"
    ]
    (found,) = KINDS.problems(Kind(kind="crum"), "x")
    assert found.startswith("x.kind: 'crum' found (did you mean 'krum'?), allowed: mean, ")
    assert KINDS.problems(Kind.model_validate({"kind": "mean", "f": 1}), "x") == ["x.f: unknown key; known: kind"]
