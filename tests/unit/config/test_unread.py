"""Settings that nothing reads are refused: every need that a section declares, met and unmet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, get_args

import pytest
from pydantic import BaseModel

from rayfed.config import unread
from rayfed.config.schema import Config, Need, Section, Study
from rayfed.launch.preflight import load_request
from tests.configs import LEAST, good, problems, the_problem

SAID, ALLOWED = "found, but nothing reads it with", "allowed: leave it out, or"


class Part(Section):
    needs: ClassVar = {
        "depth": (Need("kind", ("tree", "graph")),),
        "width": (Need("depth", (2, 3), but=True),),
        "last": (Need("width", (None,)),),
    }

    kind: str = "line"
    depth: int = 2
    width: int | None = None
    last: float = 0.5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, []),
        ({"depth": 2, "width": None}, []),  # as they are anyway
        ({"kind": "tree", "depth": 5, "width": 7}, []),
        ({"depth": 5}, [f"p.depth: 5 {SAID} kind: line; {ALLOWED} kind: tree or graph"]),
        ({"width": 7}, [f"p.width: 7 {SAID} depth: 2; {ALLOWED} depth other than 2 or 3"]),
        ({"kind": "tree", "depth": 5, "width": 7, "last": 1.0}, [f"p.last: 1.0 {SAID} width: 7; {ALLOWED} width: null"]),
    ],
)  # fmt: skip
def test_what_is_set_and_not_read(settings: dict[str, Any], said: list[str]) -> None:
    assert unread.sentences(Part(**settings), "p") == said


def sections(model: Any = Config, where: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Yield (path, class) of every section of the config, each kind of one by itself."""
    for name, field in model.model_fields.items():
        waiting = [field.annotation]
        while waiting:
            a = waiting.pop()
            if isinstance(a, type) and issubclass(a, BaseModel):
                yield f"{where}.{name}".lstrip("."), a  # type: ignore[misc]
                yield from sections(a, f"{where}.{name}".lstrip("."))
            else:
                waiting += get_args(a)


NEEDS = [(where, cls, name) for where, cls in sections() if hasattr(cls, "needs") for name in cls.needs]


@pytest.mark.parametrize(("where", "cls", "name"), NEEDS, ids=[f"{w}.{n}" for w, _, n in NEEDS])
def test_every_need_of_the_config_names_settings(where: str, cls: type[Section], name: str) -> None:
    fields = cls.model_fields
    assert name in fields and all(n.of in fields for n in cls.needs[name])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("local.optimizer={name: adam, momentum: 0.9}", "local.optimizer.momentum: 0.9 found, but nothing reads it with name: adam"),
        ("local.optimizer.nesterov=true", "local.optimizer.nesterov: True found, but nothing reads it with momentum: 0.0"),
        ("local.optimizer={betas: [0.5, 0.9]}", "local.optimizer.betas: (0.5, 0.9) found, but nothing reads it with name: sgd"),
        ("local.optimizer.eps=0.1", "local.optimizer.eps: 0.1 found, but nothing reads it with name: sgd"),
        ("local.schedule.gamma=0.9", "local.schedule.gamma: 0.9 found, but nothing reads it with kind: constant"),
        ("local.schedule={kind: exponential, every: 3}", "local.schedule.every: 3 found, but nothing reads it with kind: exponential"),
        ("federation.groups.count=3", "federation.groups.count: 3 found, but nothing reads it with kind: none"),
        ("federation.holdout.fraction=0.2", "federation.holdout.fraction: 0.2 found, but nothing reads it with kind: none"),
        ("federation.partition={kind: embedding, alpha: 1, embedding: labels, clusters: 4}", "federation.partition.clusters: 4 found"),
        ("federation.participation=poisson", "federation.participation.kind: 'poisson' found, but nothing reads it"),
        ("local.buffers=private", "local.buffers: 'private' found, but nothing reads it with task.model: mlp"),
        ("method={name: feddpa, own_epochs: 3}", "method.own_epochs: 3 found, but nothing reads it with mode: T"),
        ("method={name: disue, clusterer: oracle, clusters: 5}", "method.clusters: 5 found, but nothing reads it with method.clusterer"),
        ("method={name: disue, clusterer: {kind: subspace, relative: true}}", "method.clusterer.relative: True found"),
        ("method={name: fedadagrad, beta2: 0.9}", "method.beta2: unknown key (did you mean 'beta1'?)"),
    ],
)  # fmt: skip
def test_what_nothing_reads_is_refused(change: str, said: str) -> None:
    assert any(said in p for p in problems(change)), problems(change)


def test_a_control_arm_keeps_what_it_switches_off() -> None:
    for method in ({"name": "disue", "distill": False, "student_lr": 0.3}, {"name": "fedprox", "mu": 0.0}):
        assert good(method=method).method.name == method["name"]


def test_the_seed_of_a_study_with_seeds() -> None:
    study: dict[str, Any] = {"seeds": [0, 1], "arms": {"a": {}}}
    load_request({**LEAST, **study, "seed": 7})
    assert "--set seed: 3 found, but nothing reads it with seeds: [0, 1]" in the_problem("seed=3", **study)


def test_what_an_override_leaves_unread_falls_away() -> None:
    """As with another name or kind: the config said it for its own choice. What the override itself says is refused."""
    keys: dict[str, Any] = {"method": {"name": "disue", "noise": 64, "clusters": 4}, "federation": {"probe": 40}}
    assert good(**keys).method.options["noise"] == 64
    chosen = load_request({**LEAST, **keys}, ["method.inputs=probe"])
    assert isinstance(chosen, Config) and chosen.method.options == {"clusters": 4, "inputs": "probe"}
    arms = {"own": {}, "probe": {"method": {"inputs": "probe"}}, "alone": {"method": {"clusterer": "singletons"}}}
    study = load_request({**LEAST, **keys, "arms": arms})
    assert isinstance(study, Study) and study.arms["own"].method.options == {"noise": 64, "clusters": 4}
    assert study.arms["probe"].method.options == {"clusters": 4, "inputs": "probe"}
    assert study.arms["alone"].method.options == {"noise": 64, "clusterer": "singletons"}
    for config in study.arms.values():
        load_request(config.to_dict())  # what a run folder holds can be run again
    said = the_problem("method={inputs: probe, noise: 32, fidelity: 0.5}", **keys)
    assert said.startswith("method.fidelity: 0.5 found, but nothing reads it with inputs: probe")
