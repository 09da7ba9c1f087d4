"""Configs read without the schema."""

from __future__ import annotations

from rayfed.storage.saved_config import flatten, method_name, section


def test_sections_and_methods_of_any_config() -> None:
    assert method_name({"method": "fedavg"}) == method_name({"method": {"name": "fedavg"}}) == "fedavg"
    assert method_name({}) == method_name({"method": {}}) == "?"
    assert section({"task": {"data": "digits"}}, "task") == {"data": "digits"}
    assert section({"task": "digits"}, "task") == section({}, "task") == {}


def test_flat_settings_are_text() -> None:
    config = {"a": {"b": {"c": 1, "d": [1, 2]}, "e": {}}, "f": "x", "g": None}
    assert flatten(config) == {"a.b.c": "1", "a.b.d": "[1, 2]", "a.e": "{}", "f": "x", "g": "null"}
