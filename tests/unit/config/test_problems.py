"""What is wrong with a config, in sentences."""

from __future__ import annotations

from functools import partial

import pytest
import yaml

from rayfed.config.load import load_config
from rayfed.errors import ConfigError
from rayfed.launch.preflight import load_request
from tests import configs
from tests.configs import CONTRACT, PATHS

the_problem = partial(configs.the_problem, load=load_config)


@pytest.mark.parametrize("path", [p for p in PATHS if len(p) > 1 and p != ("method", "name")], ids=".".join)
def test_a_misspelt_key_is_answered_with_the_nearest(path: tuple[str, ...]) -> None:
    raw = yaml.safe_load(CONTRACT)
    section = raw
    for key in path[:-1]:
        section = section[key]
    wrong = path[-1] + "z"
    section[wrong] = section[path[-1]]
    with pytest.raises(ConfigError) as caught:
        load_request(raw)  # a method's settings are its own
    unknown = [p for p in caught.value.problems if p.startswith(".".join([*path[:-1], wrong]) + ": unknown key")]
    assert len(unknown) == 1, caught.value.problems
    assert f"(did you mean {path[-1]!r}?)" in unknown[0]


def test_a_misspelt_section() -> None:
    assert the_problem(evalute={"every": 1}).startswith(
        "evalute: unknown key (did you mean 'evaluate'?); known: name, "
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("rounds=0", "rounds: 0 found, should be greater than or equal to 1"),
        ("rounds=many", "rounds: 'many' found, should be a valid integer"),
        ("rounds=2.5", "rounds: 2.5 found, should be a valid integer"),
        ("rounds=null", "rounds: None found, should be a valid integer"),
        ("rounds.x=3", "rounds: {'x': 3} found, should be a valid integer"),
        ("seed=-1", "seed: -1 found, should be greater than or equal to 0"),
        ("name=", "name: None found, should be a valid string"),
        ("task.dtype=float16", "task.dtype: 'float16' found (did you mean 'float64'?), allowed: 'float32', 'float64', 'bf16' or 'auto'"),
        ("federation.clients=0", "federation.clients: 0 found, should be greater than or equal to 1"),
        ("federation.per_round=0", "federation.per_round: 0 found, allowed: a whole number >= 1, a fraction in (0, 1]"),
        ("federation.per_round=1.5", "federation.per_round: 1.5 found, allowed: "),
        ("federation.partition=dirichlt", "federation.partition.kind: 'dirichlt' found (did you mean 'dirichlet'?)"),
        ("federation.partition={kind: dirichlet}", "federation.partition.alpha: missing"),
        ("federation.partition={kind: dirichlet, alpha: 0}", "federation.partition.alpha: 0 found, should be greater"),
        ("federation.groups={kind: rotation, count: 5}", "at most 4"),
        ("federation.groups={kind: classes, count: 2, sets: [[1]]}", "one list per group (2)"),
        ("federation.holdout={kind: clients, fraction: 1}", "federation.holdout.fraction: 1 found, should be less than 1"),
        ("federation.split={val: 0.5, test: 0.5}", "it must leave something to train on"),
        ("federation=3", "federation: 3 found"),
        ("local.optimizer.lr=0", "local.optimizer.lr: 0 found, should be greater than 0"),
        ("local.optimizer.name=sdg", "local.optimizer.name: 'sdg' found (did you mean 'sgd'?), allowed: 'sgd', 'adam'"),
        ("local={epochs: 1, steps: 2}", "epochs and steps are both set; choose one"),
        ("local.schedule.kind=cosin", "local.schedule.kind: 'cosin' found (did you mean 'cosine'?)"),
        ("evaluate.every=0", "evaluate.every: 0 found, should be greater than or equal to 1"),
        ("evaluate.clients=1.5", "evaluate.clients: 1.5 found, allowed: auto, all, a whole number >= 1 or a fraction in (0, 1]"),
        ("resources.actors=0", "resources.actors: 0 found, allowed: auto or a whole number >= 1"),
        ("resources.cpus_per_actor=0", "resources.cpus_per_actor: 0 found, should be greater than 0"),
        ("resources.gpus_per_actor=1.5", "resources.gpus_per_actor: 1.5 found, allowed: auto, a share in [0, 1]"),
        ("resources.executor=vmpa", "resources.executor: 'vmpa' found (did you mean 'vmap'?), allowed: 'auto', 'loop'"),
        ("storage.keep=0", "storage.keep: 0 found, should be greater than or equal to 1"),
        ("failures.client_error=ignore", "failures.client_error: 'ignore' found, allowed: 'raise', 'drop' or 'retry'"),
        ("track=[tensorbord]", "track.0: 'tensorbord' found (did you mean 'tensorboard'?)"),
        ("method=null", "method: None found"),
    ],
)  # fmt: skip
def test_one_wrong_value_is_one_sentence(change: str, sentence: str) -> None:
    assert sentence in the_problem(change)


@pytest.mark.parametrize("key", ["rounds", "seed", "federation.clients", "federation.per_round", "local.optimizer.lr"])
def test_true_is_not_a_number(key: str) -> None:
    assert the_problem(f"{key}=true").startswith(f"{key}: True found")


@pytest.mark.parametrize("change", ["optimizer.lr=.inf", "optimizer.betas=[2, 3]", "optimizer.weight_decay=.inf"])
def test_values_that_no_run_survives(change: str) -> None:
    assert change.partition("=")[0] in the_problem(f"local.{change}")


def test_a_partition_without_a_kind_gets_the_list_of_kinds() -> None:
    sentence = the_problem("federation.partition.alpha=0.1")
    assert sentence.startswith("federation.partition.kind: missing") and "dirichlet" in sentence
