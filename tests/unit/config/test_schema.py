"""The schema: every key, its default, and configs that are written and read again."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rayfed.config.load import load_config, ready
from rayfed.config.schema import Config
from tests import configs
from tests.configs import CONTRACT, LEAST, STUDY, leaves

SHAPED = (
    "task",
    "federation",
    "local",
    "method",
    "resources",
    "failures",
)  # examples in the contract, or with more keys
good = partial(configs.good, load=load_config)


ADDED = {  # keys of sections that the contract does not have yet
    "evaluate": {"split", "rows", "finetune_lr", "metrics", "adversary", "retained"},
    "failures": {"client_timeout_s"}, "stop": {"patience", "min_change"},
    "storage": {"best"},
    "resources": {"deterministic", "matmul", "channels_last", "visits", "replay"},
}  # fmt: skip


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
    contract, resolved = yaml.safe_load(CONTRACT), good().to_dict()
    for section, added in ADDED.items():
        resolved[section] = {k: v for k, v in resolved[section].items() if k not in added}
        assert resolved[section] == contract[section], section
    for key in ("seed", "rounds", *(k for k in resolved if k not in ("name", "seed", "rounds", *SHAPED))):
        assert resolved[key] == contract[key], key
    assert resolved["federation"]["clients"] == 60
    assert resolved["federation"]["participation"] == {"kind": "uniform"}
    local = resolved["local"]
    assert (local["batch_size"], local["optimizer"]["name"], local["optimizer"]["lr"]) == (16, "sgd", 0.1)
    assert local["schedule"]["kind"] == "constant"


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


# -- there and back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [LEAST, *ready(), yaml.safe_load(CONTRACT), yaml.safe_load(CONTRACT + STUDY)],
    ids=["least", *ready(), "contract", "study"],
)
def test_what_is_written_reads_back_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any) -> None:
    for name in ("RAYFED_INSTRUCTIONS", "RAYFED_LM", "RAYFED_DATA", "RAYFED_MODEL"):
        monkeypatch.setenv(name, "somewhere")
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
        method={"name": "disue", "clusters": 2, "clusterer": "kmeans"}, evaluate={"every": 2, "clients": 4},
        resources={"actors": 3, "gpus_per_actor": 0.25, "cohort": 7, "executor": "debug", "server": {"gpus": 1, "place": "any"}},
        failures={"client_error": "drop", "actor_death": {"retries": 0}}, stop={"metric": "loss/global", "at": 0.5}, track=[],
    )  # fmt: skip
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(first.to_dict()))
    assert load_config(file) == first
    assert first.federation.participation.kind == "poisson"
