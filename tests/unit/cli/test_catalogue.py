"""validate, cp, methods and tasks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from rayfed import methods
from rayfed.config.load import READY, ready
from rayfed.config.schema import Study
from rayfed.launch import method_pages, system_pages
from rayfed.launch.preflight import load_request
from tests.unit.cli.commands import Call


def test_validate_prints_the_resolved_config(call: Call, tmp_path: Path) -> None:
    said = call("validate", "fedavg", "--set", "rounds=7")
    assert said.code == 0 and said.err == ""
    assert load_request(yaml.safe_load(said.out)) == load_request("fedavg", ["rounds=7"])
    assert json.loads(call("validate", "fedavg", "--json").out) == load_request("fedavg").to_dict()
    study = load_request(yaml.safe_load(call("validate", "quickstart").out))
    assert isinstance(study, Study) and list(study.arms) == ["fedavg", "ifca", "disue", "disue_living"]
    assert list(tmp_path.iterdir()) == []


def test_validate_tries_the_families_of_models(call: Call) -> None:
    """What a method sends has to be of one shape in all of them: known before a run."""
    said = call("validate", "fedgh", "--set", "method=fedavg")
    assert said.code == 2 and "arms.fedgh: method.name: fedavg found, task.model has families" in said.err
    assert call("validate", "fedgh", "--set", "task.model.deep.share=0.5").code == 2


def test_cp_never_overwrites_without_force(call: Call, tmp_path: Path) -> None:
    assert call("cp", "quickstart", "mine.yaml").code == 0
    mine = tmp_path / "mine.yaml"
    plain, copied = ((f).read_text().splitlines() for f in (READY / "quickstart.yaml", mine))
    assert [p for p, c in zip(plain, copied, strict=True) if p != c] == [
        "# yaml-language-server: $schema=../schema.json"
    ]
    mine.write_text("edited")
    said = call("cp", "quickstart", "mine.yaml")
    assert said.code == 2 and "mine.yaml exists; --force overwrites it" in said.err and mine.read_text() == "edited"
    assert call("cp", "fedavg", "mine.yaml", "--force").code == 0
    assert load_request(mine) == load_request("fedavg")
    assert set(ready()) >= {"quickstart", "fedavg"}


def test_methods(call: Call) -> None:
    listed = [line.split()[0] for line in call("methods").out.splitlines()]
    assert listed == methods.names() == list(json.loads(call("methods", "--json").out))
    assert {"disue", "fedavg", "fedavg_finetune", "ifca", "local_only", "scaffold"} <= set(listed)


def test_one_method(call: Call) -> None:
    said, about = call("methods", "ifca").out, json.loads(call("methods", "ifca", "--json").out)
    assert said == method_pages.page("ifca")
    assert about["name"] == "ifca" and about == json.loads(json.dumps(method_pages.describe("ifca"), default=str))


def test_systems(call: Call) -> None:
    said, about = call("systems").out, json.loads(call("systems", "--json").out)
    heads = [line for line in said.splitlines() if not line.startswith(" ")]
    assert list(about) == system_pages.names() and [h.split()[0] for h in heads] == [*about, *system_pages.missing()]
    for name, a in about.items():
        assert all(
            part in said
            for part in (a["paper"], f"needs: {a['requires']}", f"{a['verdict']} ({', '.join(a['family'])})")
        ), name
    assert call("systems", "fed-merge").out == system_pages.page("fed-merge")
    assert json.loads(call("systems", "fed-merge", "--json").out) == about["fed-merge"]


def test_tasks(call: Call) -> None:
    said = call("tasks").out
    for word in ("digits", "parquet:DIR", "synthetic:blobs", "hf:NAME_OR_PATH", "linear", "mlp", "cnn", "vit-tiny"):
        assert re.search(rf"^(data|model) +{re.escape(word)} ", said, re.M), word
    assert json.loads(call("tasks", "digits", "--json").out)["model"] == {}
    assert list(json.loads(call("tasks", "digits", "--json").out)["data"]) == ["digits"]


def test_papers_as_bibtex(call: Call) -> None:
    said = call("methods", "scaffold", "--bibtex")
    assert said.code == 0 and said.out.startswith("@misc{karimireddy") and "eprint" in said.out
    assert call("methods", "--bibtex").code == 2 and call("methods", "scaffold", "--bibtex", "--json").code == 2


def test_ask_writes_a_config_or_asks_back(call: Call, tmp_path: Path) -> None:
    said = call("ask", "fedprox, 3 rounds, 8 bits")
    assert said.code == 0 and load_request(yaml.safe_load(said.out)).method.name == "fedprox"
    assert call("ask", "fedprox, 3 rounds", "--out", "mine.yaml").code == 0
    assert load_request(tmp_path / "mine.yaml").rounds == 3
    said = call("ask", "fedprox, three rounds, quantum", "--out", "other.yaml")
    assert said.code == 2 and "open: 'quantum': not understood" in said.err and not (tmp_path / "other.yaml").exists()
    assert json.loads(call("ask", "3 rounds", "--json").out)["config"]["rounds"] == 3
    assert "exists already" in call("ask", "3 rounds", "--out", "mine.yaml").err
