"""The config: every key, strict and all at once, overrides, arms and studies."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rayfed import methods
from rayfed.adapters.lora import OverLoRA
from rayfed.config.load import READY, merge, ready, variables
from rayfed.config.schema import Config, Study, load_config
from rayfed.errors import ConfigError
from tests.tiny import make_places
from tests.tiny_lm import make_data, make_lm

# The contract, value by value. What users, the commands and the reports are built against.
CONTRACT = """
name: quickstart
seed: 0
rounds: 30
task:       {data: digits, model: mlp}
federation:
  clients: 60
  per_round: 20
  participation: {kind: uniform}
  partition: {kind: dirichlet, alpha: 0.3}
  groups: {kind: rotation, count: 3}
  holdout: {kind: clients, fraction: 0.1}
local:      {epochs: 1, batch_size: 16, optimizer: {name: sgd, lr: 0.1}, schedule: {kind: constant}}
init:       {from: null}
adapter:    {kind: none}
method:     {name: disue, clusters: 3}
aggregate:  {kind: mean}
attacks:    []
transforms: []
evaluate:   {every: 5, clients: all, finetune_epochs: 0}
resources:  {actors: auto, cpus_per_actor: 1, gpus_per_actor: auto, cohort: auto, executor: auto, server: {cpus: 0, gpus: 0, place: driver}}
devices:    {profile: none}
storage:    {path: runs, snapshot_every: 5, keep: 2}
failures:   {client_error: raise, actor_death: {retries: 3}, stragglers: {deadline_s: null, over_select: 0}}
stop:       {metric: null, at: null}
track:      [tensorboard]
"""
SHAPED = ("task", "federation", "local", "method", "resources")  # examples in the contract, or with more keys
STUDY = """
seeds:      [0, 1, 2]
arms:       {fedavg: {method: {name: fedavg}}, ifca: {method: {name: ifca, clusters: 3}}, disue: {}}
claim:      {metric: accuracy/global, at: 10, better: disue, than: fedavg}
"""
LEAST: dict[str, Any] = {"task": {"data": "digits", "model": "mlp"}, "method": "fedavg"}


def good(**keys: Any) -> Config:
    config = load_config({**LEAST, **keys})
    assert isinstance(config, Config)
    return config


def problems(*sets: str, **keys: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config({**LEAST, **keys}, sets)
    assert caught.value.exit_code == 2
    return caught.value.problems


def the_problem(*sets: str, **keys: Any) -> str:
    found = problems(*sets, **keys)
    assert len(found) == 1, found
    return found[0]


def leaves(d: Mapping[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for k, v in d.items():
        if isinstance(v, Mapping) and v:
            yield from leaves(v, (*at, k))
        else:
            yield (*at, k), v


PATHS = [path for path, _ in leaves(yaml.safe_load(CONTRACT))]


# -- every key, its default ----------------------------------------------------------------------------------------------


def test_every_key_of_the_contract_is_known_and_kept() -> None:
    asked = yaml.safe_load(CONTRACT)
    config = load_config(asked)
    assert isinstance(config, Config)
    resolved = config.to_dict()
    assert list(resolved) == list(asked)  # no more and no less, and in its order
    asked["task"] = {"data": {"name": "digits"}, "model": {"name": "mlp"}}
    kept = dict(leaves(resolved))
    for path, value in leaves(asked):
        assert kept[path] == value, ".".join(path)


def test_defaults_are_those_of_the_contract() -> None:
    said, resolved = yaml.safe_load(CONTRACT), good().to_dict()
    for key in ("seed", "rounds", *(k for k in said if k not in ("name", "seed", "rounds", *SHAPED))):
        assert resolved[key] == said[key], key
    ours = {"deterministic", "matmul", "channels_last", "visits"}
    assert {k: v for k, v in resolved["resources"].items() if k not in ours} == said["resources"]
    assert resolved["federation"]["clients"] == 60
    assert resolved["federation"]["participation"] == {"kind": "uniform"}
    local = resolved["local"]
    assert (local["batch_size"], local["optimizer"]["name"], local["optimizer"]["lr"]) == (16, "sgd", 0.1)
    assert local["schedule"]["kind"] == "constant"


@pytest.mark.parametrize("path", [p for p in PATHS if len(p) > 1 and p != ("method", "name")], ids=".".join)
def test_a_misspelt_key_is_answered_with_the_nearest(path: tuple[str, ...]) -> None:
    raw = yaml.safe_load(CONTRACT)
    section = raw
    for key in path[:-1]:
        section = section[key]
    wrong = path[-1] + "z"
    section[wrong] = section[path[-1]]
    with pytest.raises(ConfigError) as caught:
        load_config(raw)
    told = [p for p in caught.value.problems if p.startswith(".".join([*path[:-1], wrong]) + ": unknown key")]
    assert len(told) == 1, caught.value.problems
    assert f"(did you mean {path[-1]!r}?)" in told[0]


def test_a_misspelt_section() -> None:
    assert the_problem(evalute={"every": 1}).startswith(
        "evalute: unknown key (did you mean 'evaluate'?); known: name, "
    )


def test_a_config_is_frozen() -> None:
    config = good()
    with pytest.raises(ValidationError, match="frozen"):
        config.rounds = 3
    with pytest.raises(ValidationError, match="frozen"):
        config.local.optimizer.lr = 3
    assert config.with_resources(executor="vmap").resources.executor == "vmap"
    assert config.resources.executor == "auto"


def test_clients_that_train_and_clients_of_a_round() -> None:
    f = {"clients": 60, "holdout": {"kind": "clients", "fraction": 0.1}}
    assert good(federation=f).training_clients() == 54
    assert good(federation=f).per_round() == 54  # null: all that are not held out
    assert good(federation={**f, "per_round": 0.5}).per_round() == 27
    assert good(federation={**f, "per_round": 20}).per_round() == 20
    assert good(federation={**f, "per_round": 0.001}).per_round() == 1
    assert good(federation={"clients": 3, "per_round": 1.0}).per_round() == 3
    assert good(federation={"clients": 3, "per_round": 1}).per_round() == 1


# -- strict --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("rounds=0", "rounds: 0 found, should be greater than or equal to 1"),
        ("rounds=many", "rounds: 'many' found, should be a valid integer"),
        ("rounds=2.5", "rounds: 2.5 found, should be a valid integer"),
        ("rounds=null", "rounds: None found, should be a valid integer"),
        ("rounds.x=3", "rounds: {'x': 3} found, should be a valid integer"),
        ("seed=-1", "seed: -1 found, should be greater than or equal to 0"),
        ("name=", "name: None found, should be a valid string"),
        ("task.dtype=float16", "task.dtype: 'float16' found (did you mean 'float64'?), allowed: 'float32', 'float64' or 'bf16'"),
        ("task.data=digit", "task.data: 'digit' is unknown (did you mean 'digits'?)"),
        ("task.model=mpl", "task.model: 'mpl' is unknown (did you mean 'mlp'?)"),
        ("task.data={name: digits, size: 9}", "task.data.size: unknown option of digits; known: none"),
        ("task.model={name: mlp, hiden: [3]}", "task.model.hiden: unknown option of mlp (did you mean 'hidden'?)"),
        ("task.model={name: mlp, hidden: [0]}", "task.model.hidden: [0] found, allowed: a list of widths >= 1"),
        ("federation.clients=0", "federation.clients: 0 found, should be greater than or equal to 1"),
        ("federation.per_round=0", "federation.per_round: 0 found, allowed: a whole number >= 1, a fraction in (0, 1]"),
        ("federation.per_round=1.5", "federation.per_round: 1.5 found, allowed: "),
        ("federation.per_round=61", "federation.per_round: 61 found, allowed: at most 60"),
        ("federation.partition=dirichlt", "federation.partition.kind: 'dirichlt' found (did you mean 'dirichlet'?)"),
        ("federation.partition={kind: dirichlet}", "federation.partition.alpha: missing"),
        ("federation.partition={kind: dirichlet, alpha: 0}", "federation.partition.alpha: 0 found, should be greater"),
        ("federation.groups={kind: rotation, count: 5}", "at most 4"),
        ("federation.groups={kind: classes, count: 2, sets: [[1]]}", "one list per group (2)"),
        ("federation.holdout={kind: clients, fraction: 1}", "federation.holdout.fraction: 1 found, should be less than 1"),
        ("federation.holdout={kind: clients, fraction: 0.999}", "leaves no client to train"),
        ("federation.split={val: 0.5, test: 0.5}", "it must leave something to train on"),
        ("federation=3", "federation: 3 found"),
        ("local.optimizer.lr=0", "local.optimizer.lr: 0 found, should be greater than 0"),
        ("local.optimizer.name=sdg", "local.optimizer.name: 'sdg' found (did you mean 'sgd'?), allowed: 'sgd', 'adam'"),
        ("local={epochs: 1, steps: 2}", "epochs and steps are both set; choose one"),
        ("local.schedule.kind=cosin", "local.schedule.kind: 'cosin' found (did you mean 'cosine'?)"),
        ("init.from=nowhere", "init.from: 'nowhere' holds no model.safetensors"),
        ("evaluate.every=0", "evaluate.every: 0 found, should be greater than or equal to 1"),
        ("evaluate.clients=61", "evaluate.clients: 61 found, there are 60 clients"),
        ("evaluate.clients=1.5", "evaluate.clients: 1.5 found, allowed: all, a whole number >= 1 or a fraction in (0, 1]"),
        ("resources.actors=0", "resources.actors: 0 found, allowed: auto or a whole number >= 1"),
        ("resources.cpus_per_actor=0", "resources.cpus_per_actor: 0 found, should be greater than 0"),
        ("resources.gpus_per_actor=1.5", "resources.gpus_per_actor: 1.5 found, allowed: auto, a share in [0, 1]"),
        ("resources.executor=vmpa", "resources.executor: 'vmpa' found (did you mean 'vmap'?), allowed: 'auto', 'loop'"),
        ("resources.server.place=any", "resources.server.place: any needs resources.server.gpus > 0"),
        ("storage.keep=0", "storage.keep: 0 found, should be greater than or equal to 1"),
        ("failures.client_error=ignore", "failures.client_error: 'ignore' found, allowed: 'raise', 'drop' or 'retry'"),
        ("stop.metric=accuracy/global", "stop: metric and at belong together; set both or none"),
        ("track=[tensorbord]", "track.0: 'tensorbord' found (did you mean 'tensorboard'?)"),
        ("method=fedavgg", "method.name: 'fedavgg' is unknown (did you mean 'fedavg'?); known: "),
        ("method=null", "method: None found"),
        ("method=nowhere.py:Mine", "method.name: file 'nowhere.py' does not exist"),
    ],
)  # fmt: skip
def test_one_wrong_value_is_one_sentence(change: str, told: str) -> None:
    assert told in the_problem(change)


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
        load_config(raw, ["novalue"])
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
    told = {p.split(": ")[0]: p for p in found}
    assert len(told) == len(found)
    assert set(told) == set(expected)
    assert not [k for k in told if expected[k] not in told[k]]
    assert str(caught.value) == "\n".join(found)


@pytest.mark.parametrize(
    "keys",
    [
        {"local": {"epochs": 1, "steps": 1, "batch_size": 0}},
        {"seed": -1, "federation": {"per_round": 61}},
        {"seed": -1, "method": "scaffold", "local": {"optimizer": {"name": "adam"}}},
    ],
)
def test_rules_across_keys_are_told_beside_a_wrong_key(keys: dict[str, Any]) -> None:
    assert len(problems(**keys)) == 2


@pytest.mark.parametrize("key", ["rounds", "seed", "federation.clients", "federation.per_round", "local.optimizer.lr"])
def test_true_is_not_a_number(key: str) -> None:
    assert the_problem(f"{key}=true").startswith(f"{key}: True found")


@pytest.mark.parametrize("change", ["optimizer.lr=.inf", "optimizer.betas=[2, 3]", "optimizer.weight_decay=.inf"])
def test_values_that_no_run_survives(change: str) -> None:
    assert change.partition("=")[0] in the_problem(f"local.{change}")


def test_a_partition_without_a_kind_is_told_the_kinds() -> None:
    told = the_problem("federation.partition.alpha=0.1")
    assert told.startswith("federation.partition.kind: missing") and "dirichlet" in told


# -- what comes later ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "at"),
    [
        *((f"aggregate={k}", "aggregate.kind") for k in ("krum", "trimmed_mean", "median")),
        *((f"transforms=[{{kind: {k}, x: 1}}]", "transforms") for k in ("clip", "gaussian", "topk")),
        ("federation.participation=trace", "federation.participation.kind"),
        ("attacks=[{kind: label_flip, clients: 0.2}]", "attacks"),
        ("devices=trace", "devices.profile"),
    ],
)
def test_what_is_not_built_yet_is_refused_by_its_name(change: str, at: str) -> None:
    told = the_problem(change)
    assert told.startswith(f"{at}: ") and "not available yet" in told
    kind = re.search(r"kind: (\w+)|, (\w+)\]|=([\w:/-]+)$", change)
    assert kind is not None and next(g for g in kind.groups() if g) in told


@pytest.mark.parametrize("change", ["devices={profile: trace, file: x}", "aggregate={kind: krum, byzantine: 2}"])
def test_settings_of_what_is_not_built_yet_are_not_called_unknown(change: str) -> None:
    assert "not available yet" in the_problem(change)


@pytest.mark.parametrize("change", ["deadline_s=5", "over_select=2"])
def test_stragglers_are_refused_by_name(change: str) -> None:
    assert "not available yet" in the_problem(f"failures.stragglers.{change}")


def test_a_known_transform_does_not_hide_an_unknown_one() -> None:
    assert any("'klip'" in p for p in problems(transforms=[{"kind": "clip", "norm": 1}, {"kind": "klip"}]))


# -- files ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def shelves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the ready configs' variables stand for."""
    root = tmp_path_factory.mktemp("shelves")
    make_data(root / "records")
    make_lm(root / "lm", "gpt2")
    made = make_places(root)
    with pytest.MonkeyPatch.context() as m:
        m.setenv("RAYFED_INSTRUCTIONS", f"parquet:{root / 'records'}")
        m.setenv("RAYFED_LM", str(root / "lm"))
        m.setenv("RAYFED_DATA", f"parquet:{made['data']}")
        m.setenv("RAYFED_MODEL", str(made["bert"]))
        yield


def test_variables_of_the_environment() -> None:
    problems: list[str] = []
    raw = {"a": ["${ONE}/x", "${TWO:-hf:a/b}", "${ONE:-z}"], "b": "${THREE}", "c": "${FOUR:-}"}
    found = variables(raw, {"ONE": "1"}, problems)
    assert found == {"a": ["1/x", "hf:a/b", "1"], "b": "${THREE}", "c": ""}
    assert problems == ["b: '${THREE}' needs the environment variable THREE, which is not set"]


def test_a_config_without_its_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("method: fedavg\ntask: {data: digits, model: {name: 'hf:${NOT_SET}/tiny-lm'}}\n")
    with pytest.raises(ConfigError) as told:
        load_config(file)
    (problem,) = told.value.problems
    assert (
        problem == "task.model.name: 'hf:${NOT_SET}/tiny-lm' needs the environment variable NOT_SET, which is not set"
    )


@pytest.mark.parametrize("name", ready())
def test_ready_configs_are_valid_and_begin_with_the_command_that_runs_them(name: str) -> None:
    assert isinstance(load_config(name), Config | Study)
    lines = (READY / f"{name}.yaml").read_text().splitlines()
    assert lines[0].split() == ["#", "rayfed", "run", name]
    for line in (x for x in lines if x.startswith("# rayfed run")):
        words = shlex.split(line.partition("     (")[0])
        load_config(words[3], [words[i + 1] for i, w in enumerate(words) if w == "--set"])


def test_a_ready_name_that_is_none() -> None:
    with pytest.raises(
        ConfigError, match=r"'quikstart': no such file.*\(did you mean 'quickstart'\?\); ready: .*fedavg"
    ):
        load_config("quikstart")


def test_a_file_wins_over_a_ready_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fedavg").write_text(yaml.safe_dump({**LEAST, "name": "mine"}))
    monkeypatch.chdir(tmp_path)
    config = load_config("fedavg")
    assert isinstance(config, Config) and config.name == "mine"


def test_a_syntax_error_has_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("name: x\nrounds: 3\ntask: {data: digits, model: mlp\nmethod: fedavg\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(file) in str(caught.value) and "line 4" in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match="a config is a mapping of keys"):
        load_config(tmp_path / "c.yaml")


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"name: \xff\xfe\x00")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize("twice", ["rounds: 2\nrounds: 3\n", "arms:\n  a: {rounds: 2}\n  a: {rounds: 3}\n"])
def test_a_key_or_an_arm_given_twice(tmp_path: Path, twice: str) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(LEAST) + twice)
    with pytest.raises(ConfigError, match="twice"):
        load_config(tmp_path / "c.yaml")


# -- overrides -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("rounds=7", 7),
        ("federation.per_round=null", None),
        ("federation.per_round=", None),
        ("federation.per_round=0.25", 0.25),
        ("federation.per_round=1.0", 1.0),
        ("federation.per_round= 3", 3),
        ("local.optimizer.lr=1e-3", 0.001),  # YAML 1.1 calls that a string
        ("local.optimizer.betas=[0.5, 0.75]", (0.5, 0.75)),
        ("local.optimizer.nesterov=true", True),
        ("evaluate.clients=all", "all"),
        ("evaluate.clients=0.5", 0.5),
        ("name=a=b", "a=b"),  # only the first = counts
        ("name='3'", "3"),
        ("track=[]", []),
        ("resources.server.cpus=1", 1.0),
    ],
)
def test_set(change: str, value: Any) -> None:
    config = load_config({**LEAST, "federation": {"per_round": 5}}, [change])
    for key in change.partition("=")[0].split("."):
        config = getattr(config, key)
    assert config == value and type(config) is type(value)


def test_set_of_a_part_with_options() -> None:
    config = load_config("fedavg", ["task.model={name: mlp, hidden: [8]}", "task.model.hidden=[4, 4]"])
    assert isinstance(config, Config)
    assert (config.task.model.name, config.task.model.options) == ("mlp", {"hidden": [4, 4]})


def test_later_sets_win_and_the_source_is_untouched() -> None:
    raw = {
        **LEAST,
        "method": {"name": "ifca", "clusters": 2},
        "federation": {"partition": {"kind": "dirichlet", "alpha": 1}},
    }
    before = copy.deepcopy(raw)
    config = load_config(raw, ["rounds=3", "rounds=4", "method.clusters=5", "federation.partition.alpha=9"])
    assert isinstance(config, Config)
    assert (config.rounds, config.method.options) == (4, {"clusters": 5})
    assert raw == before


@pytest.mark.parametrize("change", ["rounds", "", "rounds 3"])
def test_set_without_a_value(change: str) -> None:
    assert the_problem(change) == f"--set {change}: write it as a.b=value"


def test_set_of_what_is_no_yaml() -> None:
    assert the_problem("track=[tensorboard").startswith("--set track=[tensorboard: ")


@pytest.mark.parametrize("change", ["task.model.hidden=[8]", "method.server_lr=0.5"])
def test_set_beside_a_name_in_its_short_form(change: str) -> None:
    assert isinstance(load_config(LEAST, [change]), Config)


@pytest.mark.parametrize(
    ("base", "change", "merged"),
    [
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}, {"a": {"x": 1, "y": 3}}),
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"x": 1}}, {"a": None}, {"a": None}),
        ({"p": {"kind": "dirichlet", "alpha": 1}}, {"p": {"kind": "iid"}}, {"p": {"kind": "iid"}}),
        ({"p": {"kind": "dirichlet", "alpha": 1}}, {"p": "iid"}, {"p": {"kind": "iid"}}),
        ({"p": {"kind": "a", "x": 1, "n": 2}}, {"p": {"kind": "a", "x": 3}}, {"p": {"kind": "a", "x": 3, "n": 2}}),
        ({"method": {"name": "ifca", "clusters": 4}}, {"method": {"name": "disue"}}, {"method": {"name": "disue"}}),
        ({"method": {"name": "ifca", "clusters": 4}}, {"method": "ifca"}, {"method": {"name": "ifca", "clusters": 4}}),
        ({"method": {"name": "ifca", "clusters": 4}}, {"method": "disue"}, {"method": {"name": "disue"}}),
        ({"name": "a", "rounds": 3}, {"name": "b"}, {"name": "b", "rounds": 3}),  # the run's name chooses nothing
    ],
)  # fmt: skip
def test_merge(base: Any, change: Any, merged: Any) -> None:
    before = copy.deepcopy((base, change))
    assert merge(base, change) == merged
    assert (base, change) == before


def test_a_new_kind_leaves_the_old_ones_settings_behind() -> None:
    config = load_config("quickstart", ["federation.partition.kind=iid", "federation.groups=none"])
    assert isinstance(config, Study)
    assert config.base.to_dict()["federation"]["partition"] == {"kind": "iid", "min_examples": 2}
    assert config.base.federation.groups.sets is None


# -- studies -------------------------------------------------------------------------------------------------------------


def study(**keys: Any) -> Study:
    made = load_config({**LEAST, **keys})
    assert isinstance(made, Study)
    return made


def test_the_contracts_study() -> None:
    s = load_config(yaml.safe_load(CONTRACT + STUDY))
    assert isinstance(s, Study)
    runs = s.runs()
    assert [(a, seed) for a, seed, _ in runs] == [(a, k) for a in ("fedavg", "ifca", "disue") for k in (0, 1, 2)]
    for arm, seed, c in runs:
        assert (c.seed, c.name, c.method.name) == (seed, f"quickstart-{arm}", arm)
        assert c.to_dict()["federation"] == s.base.to_dict()["federation"]  # one split for all arms
    options = {a: c.method.options for a, _, c in runs}
    assert options == {"fedavg": {}, "ifca": {"clusters": 3}, "disue": {"clusters": 3}}
    assert s.claim is not None
    assert (s.claim.metric, s.claim.at, s.claim.better, s.claim.than) == ("accuracy/global", 10, "disue", "fedavg")


def test_arms_merge_over_the_base() -> None:
    s = study(local={"epochs": 2, "batch_size": 8}, arms={"short": {"local": {"epochs": 1}}, "same": None})
    assert (s.arms["short"].local.epochs, s.arms["short"].local.batch_size) == (1, 8)
    assert s.arms["same"] == s.base


CLAIM = {"metric": "accuracy/global", "at": 1, "better": "run", "than": "run"}


def test_one_of_seeds_and_arms_makes_a_study() -> None:
    assert [(a, s) for a, s, _ in study(seeds=[4, 2]).runs()] == [("run", 4), ("run", 2)]
    assert [(a, s) for a, s, _ in study(arms={"a": {}}, seed=7).runs()] == [("a", 7)]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"seeds": [1, 2, 1]}, "seeds: [1, 2, 1] holds a seed twice"),
        ({"seeds": [1, -1]}, "seeds: [1, -1] found, allowed: a list of whole numbers >= 0"),
        ({"seeds": [True]}, "seeds: [True] found, allowed: a list of whole numbers >= 0"),
        ({"seeds": 3}, "seeds: 3 found, allowed: a list of whole numbers >= 0"),
        ({"arms": ["a", "b"]}, "arms: a mapping of names to overrides is needed"),
        ({"arms": {"a": 3}}, "arms: a mapping of names to overrides is needed"),
        ({"arms": {"a": {"method": "ifac"}}}, "arms.a: method.name: 'ifac' is unknown (did you mean 'ifca'?)"),
        ({"arms": {"a": {"arms": {}}}}, "arms.a: arms: unknown key"),
        ({"claim": {**CLAIM, "better": "rn"}, "arms": {"run": {}}}, "claim.better: 'rn' is not an arm (did you mean 'run'?)"),
        ({"claim": {**CLAIM, "at": 31}, "arms": {"run": {}}}, "claim.at: 31 found, the study has 30 rounds"),
    ],
)  # fmt: skip
def test_a_wrong_study(keys: dict[str, Any], told: str) -> None:
    assert the_problem(**keys).startswith(told)


def test_all_problems_of_a_study_at_once_and_those_of_the_base_only_once() -> None:
    arms = {"a": {"rounds": 0}, "b": {"method": {"name": "ifca", "clusers": 2}}, "c": {}}
    found = problems(seed=-1, seeds=[1, 1], arms=arms, claim={"at": 3})
    assert [p.split(": ")[0] for p in found] == [
        "seeds", "seed", "arms.a", "arms.b", "claim.metric", "claim.better", "claim.than",
    ]  # fmt: skip


@pytest.mark.parametrize("arm", ["../../elsewhere", "a/b", "", ".."])
def test_an_arm_that_cannot_be_a_folder(arm: str) -> None:
    assert the_problem(arms={arm: {}}).startswith("arms")


def test_an_arm_with_a_seed_of_its_own() -> None:
    assert "seeds" in the_problem(arms={"a": {"seed": 3}, "b": {}})


# -- there and back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [LEAST, *ready(), yaml.safe_load(CONTRACT), yaml.safe_load(CONTRACT + STUDY)],
    ids=["least", *ready(), "contract", "study"],
)
def test_what_is_written_reads_back_the_same(tmp_path: Path, source: Any) -> None:
    first = load_config(source)
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(first.to_dict(), sort_keys=False))
    again = load_config(file)
    assert again == first
    assert again.to_dict() == first.to_dict()
    if isinstance(first, Config):
        assert Config.from_dict(first.to_dict()) == first


def test_every_value_of_a_config_reads_back(tmp_path: Path) -> None:
    first = good(
        name="näme", seed=5, rounds=9,
        task={"data": {"name": "synthetic:blobs", "classes": 3}, "model": {"name": "mlp", "hidden": [4]}, "dtype": "float64"},
        federation={"clients": 9, "per_round": 0.5, "participation": "poisson", "partition": {"kind": "shards", "per_client": 3},
                    "groups": {"kind": "classes", "count": 2, "sets": [[0, 1], [2]]}, "split": {"val": 0.1, "test": 0.2}},
        local={"steps": 3, "optimizer": {"name": "adam", "betas": [0.5, 0.6], "lr": 0.001}, "schedule": {"kind": "cosine", "warmup": 2}},
        method={"name": "disue", "clusters": 2, "clusterer": "oracle"}, evaluate={"every": 2, "clients": 4},
        resources={"actors": 3, "gpus_per_actor": 0.25, "cohort": 7, "executor": "debug", "server": {"gpus": 1, "place": "any"}},
        failures={"client_error": "drop", "actor_death": {"retries": 0}}, stop={"metric": "loss/global", "at": 0.5}, track=[],
    )  # fmt: skip
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(first.to_dict()))
    assert load_config(file) == first
    assert first.federation.participation.kind == "poisson"


# -- methods' own settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", methods.names())
def test_each_methods_settings_are_its_own(name: str) -> None:
    planted = {"groups": {"kind": "rotation", "count": 2}, "probe": 8}  # some methods need them
    if issubclass(methods.get(name), OverLoRA):
        told = the_problem(method={"name": name}, federation=planted)
        assert told == f"adapter.kind: none found, method.name: {name} needs lora"
    else:
        assert good(method={"name": name}, federation=planted).method.name == name
    told = the_problem(method={"name": name, "no_such_setting": 1}, federation=planted)
    known = ", ".join(methods.get(name).Settings.model_fields)
    assert told.startswith("method.no_such_setting: unknown key") and told.endswith(f"known: {known}")


@pytest.mark.parametrize(
    ("method", "told"),
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
def test_a_methods_wrong_setting(method: dict[str, Any], told: str) -> None:
    assert the_problem(method=method).startswith(told)


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


def test_a_method_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    name = f"{tmp_path / 'mine.py'}:Mine"
    assert good(method={"name": name, "power": 3}).method.options == {"power": 3}
    assert the_problem(method={"name": name, "power": 0}).startswith("method.power: 0 found")
    assert the_problem(method={"name": name, "powr": 1}).startswith("method.powr: unknown key (did you mean 'power'?)")
    assert "Other" in the_problem(method={"name": f"{tmp_path / 'mine.py'}:Other"})
