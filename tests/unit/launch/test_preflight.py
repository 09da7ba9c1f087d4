"""A config judged before anything starts: its parts, and the rules across its keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rayfed import methods
from rayfed.errors import ConfigError
from rayfed.launch.preflight import load_request
from rayfed.methods._bases.over_adapter import OverAdapter
from rayfed.methods._bases.over_lora import OverLoRA
from tests.configs import LEAST, good, problems, the_problem


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("task.data=digit", "task.data: 'digit' is unknown (did you mean 'digits'?)"),
        ("task.model=mpl", "task.model: 'mpl' is unknown (did you mean 'mlp'?)"),
        ("task.data={name: digits, size: 9}", "task.data.size: unknown option of digits; known: none"),
        ("task.model={name: mlp, hiden: [3]}", "task.model.hiden: unknown option of mlp (did you mean 'hidden'?)"),
        ("task.model={name: mlp, hidden: [0]}", "task.model.hidden: [0] found, allowed: a list of widths >= 1"),
        ("federation.per_round=61", "federation.per_round: 61 found, allowed: at most 60"),
        ("federation.holdout={kind: clients, fraction: 0.999}", "leaves no client to train"),
        ("init.from=nowhere", "init.from: 'nowhere' holds no model.safetensors"),
        ("evaluate.clients=61", "evaluate.clients: 61 found, there are 60 clients"),
        ("storage.path=s4://b", "storage.path: 's4://b' found: unknown scheme s4:// (did you mean 's3'?)"),
        ("storage.path=s3://", "storage.path: 's3://' found: the place is missing, e.g. s3://bucket/runs"),
        ("resources.server.place=any", "resources.server.place: any needs resources.server.gpus > 0"),
        ("stop.metric=accuracy/global", "stop: metric belongs together with at or patience; set it and one of them, or none"),
        ("method=fedavgg", "method.name: 'fedavgg' is unknown (did you mean 'fedavg'?); known: "),
        ("method=nowhere.py:Mine", "method.name: file 'nowhere.py' does not exist"),
    ],
)  # fmt: skip
def test_what_a_part_or_a_rule_finds_is_one_sentence(change: str, sentence: str) -> None:
    assert sentence in the_problem(change)


def test_all_problems_at_once() -> None:
    raw = yaml.safe_load("""
        rouns: 3
        seed: -4
        task: {data: digitz, model: {name: mlp, hiden: [2]}}
        federation: {clients: none, partition: {kind: dirichlet, alpha: -1}, groups: {kind: rotaton}, per_round: 0}
        local: {epochs: 1, steps: 1, optimizer: {lr: fast}}
        method: {name: ifca, clusters: 0, clutsers: 3}
        adapter: promt
        evaluate: {every: 0}
        resources: {executor: vmapp}
        track: [promethus]
    """)
    with pytest.raises(ConfigError) as caught:
        load_request(raw, ["novalue"])
    found = caught.value.problems
    expected = {
        "--set novalue": "write it as a.b=value",
        "rouns": "did you mean 'rounds'?",
        "seed": "-4 found",
        "task.data": "'digitz' is unknown (did you mean 'digits'?)",
        "task.model.hiden": "did you mean 'hidden'?",
        "federation.clients": "'none' found",
        "federation.partition.alpha": "-1 found",
        "federation.groups.kind": "'rotaton' found (did you mean 'rotation'?)",
        "federation.per_round": "0 found",
        "local": "epochs and steps",
        "local.optimizer.lr": "'fast' found",
        "method.clusters": "0 found",
        "method.clutsers": "did you mean 'clusters'?",
        "adapter.kind": "'promt' found (did you mean 'prompt'?)",
        "evaluate.every": "0 found",
        "resources.executor": "'vmapp' found (did you mean 'vmap'?)",
        "track.0": "'promethus' found (did you mean 'prometheus'?)",
    }
    by_key = {p.split(": ")[0]: p for p in found}
    assert len(by_key) == len(found)
    assert set(by_key) == set(expected)
    assert not [k for k in by_key if expected[k] not in by_key[k]]
    assert str(caught.value) == "\n".join(found)


@pytest.mark.parametrize(
    "keys",
    [
        {"local": {"epochs": 1, "steps": 1, "batch_size": 0}},
        {"seed": -1, "federation": {"per_round": 61}},
        {"seed": -1, "method": "scaffold", "local": {"optimizer": {"name": "adam"}}},
    ],
)
def test_rules_across_keys_are_reported_along_with_a_wrong_key(keys: dict[str, Any]) -> None:
    assert len(problems(**keys)) == 2


def test_a_part_of_an_arm_is_named_with_the_arm() -> None:
    found = the_problem(arms={"a": {"method": "ifac"}})
    assert found.startswith("arms.a: method.name: 'ifac' is unknown (did you mean 'ifca'?)")


def test_all_problems_of_a_study_at_once_and_those_of_the_base_only_once() -> None:
    arms = {"a": {"rounds": 0}, "b": {"method": {"name": "ifca", "clusers": 2}}, "c": {}}
    found = problems(seed=-1, seeds=[1, 1], arms=arms, claim={"at": 3})
    assert [p.split(": ")[0] for p in found] == [
        "seeds", "seed", "arms.a", "arms.b", "claim.metric", "claim.better", "claim.than",
    ]  # fmt: skip


# -- methods' own settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", methods.names())
def test_each_methods_settings_are_its_own(name: str) -> None:
    stream = {"kind": "permuted"}
    planted = {
        "groups": {"kind": "rotation", "count": 2},
        "probe": 16,
        "split": {"val": 0.2},
        "stream": stream,
    }  # some methods need them
    cuts = {"fednano": ["body.0"], "sfprompt": ["body.0", "body.2"]}.get(name)
    task = LEAST["task"] | ({"split": {"after": cuts}} if cuts else {})
    if issubclass(methods.get(name), OverLoRA | OverAdapter):
        needed = " or ".join(getattr(methods.get(name), "kinds", ("lora",)))
        sentence = the_problem(method={"name": name}, federation=planted, task=task)
        assert sentence == f"adapter.kind: none found, method.name: {name} needs {needed}"
    else:
        local = {"steps": 1, "epochs": None}
        assert good(method={"name": name}, federation=planted, local=local, task=task).method.name == name
    sentence = the_problem(method={"name": name, "no_such_setting": 1}, federation=planted, task=task)
    known = ", ".join(methods.get(name).Settings.model_fields)
    assert sentence.startswith("method.no_such_setting: unknown key") and sentence.endswith(f"known: {known}")


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ({"name": "fedavg", "server_lr": 0}, "method.server_lr: 0 found, should be greater than 0"),
        ({"name": "fedavg", "clusters": 3}, "method.clusters: unknown key"),
        ({"name": "ifca", "clusters": "three"}, "method.clusters: 'three' found, should be a valid integer"),
        ({"name": "ifca", "clusers": 3}, "method.clusers: unknown key (did you mean 'clusters'?)"),
        ({"name": "disue", "signature": "heads"}, "method.signature: 'heads' found (did you mean 'head'?)"),
        ({"name": "disue", "distill_mix": 1.5}, "method.distill_mix: 1.5 found"),
        ({"name": "disue", "clusterer": "kmeens"}, "method.clusterer: "),
    ],
)
def test_a_methods_wrong_setting(method: dict[str, Any], sentence: str) -> None:
    assert the_problem(method=method).startswith(sentence)


@pytest.mark.parametrize("optimizer", [{"name": "adam"}, {"momentum": 0.9}, {"weight_decay": 0.1}])
def test_a_method_may_refuse_other_sections(optimizer: dict[str, Any]) -> None:
    assert the_problem(method="scaffold", local={"optimizer": optimizer}).startswith("local.optimizer: scaffold")
    assert good(local={"optimizer": optimizer})


OWN = """
from pydantic import Field
from rayfed.method import Method, MethodSettings

class Mine(Method):
    class Settings(MethodSettings):
        power: int = Field(2, ge=1)
"""


def test_an_own_method(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    name = f"{tmp_path / 'mine.py'}:Mine"
    assert good(method={"name": name, "power": 3}).method.options == {"power": 3}
    assert the_problem(method={"name": name, "power": 0}).startswith("method.power: 0 found")
    assert the_problem(method={"name": name, "powr": 1}).startswith("method.powr: unknown key (did you mean 'power'?)")
    assert "Other" in the_problem(method={"name": f"{tmp_path / 'mine.py'}:Other"})


def test_a_limit_on_clients_needs_actors() -> None:
    problem = the_problem("resources.visits=server", "failures.client_timeout_s=5")
    assert problem == "resources.visits: server found, allowed with failures.client_timeout_s: actors, auto"
