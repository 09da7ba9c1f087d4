"""The JSON schema that editors read: as the file holds it, true of every ready config, and of nothing with a wrong key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from rayfed.config.load import READY, ready
from rayfed.launch import config_schema
from rayfed.launch.new_project import write_project


@pytest.fixture(scope="module")
def judge() -> Any:
    made = config_schema.schema()
    Draft202012Validator.check_schema(made)
    return Draft202012Validator(made)


def test_the_file_is_up_to_date() -> None:
    assert config_schema.FILE.read_text(encoding="utf-8") == config_schema.text(), (
        "python -m rayfed.launch.config_schema"
    )


@pytest.mark.parametrize("name", ready())
def test_ready_configs_name_it_and_fit(name: str, judge: Any) -> None:
    text = (READY / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.splitlines()[1] == f"{config_schema.LINE}../schema.json"
    assert (READY / ".." / "schema.json").resolve() == config_schema.FILE
    assert [e.message for e in judge.iter_errors(yaml.safe_load(text))] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"round": 3},
        {"local": {"epocs": 1}},
        {"method": {"name": "ifca", "clusterz": 3}},
        {"federation": {"partition": {"kind": "dirichlet", "alpha": "much"}}},
        {"seeds": [-1]},
    ],
)
def test_wrong_keys_are_seen(wrong: dict[str, Any], judge: Any) -> None:
    least = {"task": {"data": "digits", "model": "mlp"}, "method": "fedavg"}
    assert not [*judge.iter_errors(least)] and [*judge.iter_errors({**least, **wrong})]


def test_copies_name_its_place(tmp_path: Path) -> None:
    text = config_schema.with_schema((READY / "fedavg.yaml").read_text(encoding="utf-8"))
    assert text.splitlines()[1] == f"{config_schema.LINE}{config_schema.FILE.as_uri()}"
    config = write_project(tmp_path / "new")[0].read_text(encoding="utf-8")
    assert config.splitlines()[0] == text.splitlines()[1]
