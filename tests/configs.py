"""Configs that many tests share, and what is said of wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import yaml

from rayfed.config.schema import Config
from rayfed.errors import ConfigError
from rayfed.launch.preflight import load_request

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
evaluate:   {every: 5, clients: auto, finetune_epochs: 0}
resources:  {actors: auto, cpus_per_actor: 1, gpus_per_actor: auto, cohort: auto, executor: auto, server: {cpus: 0, gpus: 0, place: driver}}
devices:    {profile: none}
storage:    {path: runs, snapshot_every: auto, keep: 2}
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

Load = Callable[..., Any]  # load_request, or load_config for the schema alone


def good(*, load: Load = load_request, **keys: Any) -> Config:
    """Return the least config with these keys."""
    config = load({**LEAST, **keys})
    assert isinstance(config, Config)
    return config


def problems(*sets: str, load: Load = load_request, **keys: Any) -> list[str]:
    """Return what is wrong with the least config with these keys and overrides."""
    with pytest.raises(ConfigError) as caught:
        load({**LEAST, **keys}, sets)
    assert caught.value.exit_code == 2
    return caught.value.problems


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Return the text of the ConfigError that a call ends with."""
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def the_problem(*sets: str, load: Load = load_request, **keys: Any) -> str:
    """Return the one thing that is wrong."""
    found = problems(*sets, load=load, **keys)
    assert len(found) == 1, found
    return found[0]


def leaves(d: Mapping[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for k, v in d.items():
        if isinstance(v, Mapping) and v:
            yield from leaves(v, (*at, k))
        else:
            yield (*at, k), v


PATHS = [path for path, _ in leaves(yaml.safe_load(CONTRACT))]
