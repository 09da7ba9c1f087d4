"""Every setting of every method changes what a run computes, or is refused where it does not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from rayfed import methods, tree
from rayfed.config.schema import TINY_PAIR
from rayfed.errors import ConfigError
from rayfed.methods._bases.over_adapter import OverAdapter
from rayfed.methods._bases.over_lora import OverLoRA
from tests import toy
from tests.toy import Result, ToyFed

SHORT = {"iterations": 2, "student_steps": 2, "batch": 8}
FEW = {"steps": 3, "generator_steps": 5, "latent": 4}
LEAKS = {"federation": {"probe": 20}}
IMAGES = {
    "task": {
        "data": {"name": "synthetic:images", "examples": 200, "classes": 4, "size": 4, "test": 40},
        "model": {"hidden": [8]},
    },
    "federation": {"split": {"val": 0.3}},
}
LGD = {"every": 1, "ipc": 2, "server_ipc": 1, "warm_steps": 1, "refresh_steps": 1, "server_steps": 2}
PROBE = {"federation": {"probe": 40}}
VAL = {"federation": {"split": {"val": 0.3}}}
LABELLED = {"federation": {"public": {"rows": 20, "labels": True}}}
OBJECTS = {  # scenes with boxes
    "task": {
        "data": {"name": "scenes:objects", "examples": 40, "test": 12, "size": 20, "objects": 1, "classes": 2},
        "kind": {"name": "detect"},
        "model": {"name": "grid", "width": 4},
    },
    "federation": {"clients": 4, "per_round": 2, "partition": {"kind": "natural"}, "groups": {"kind": "none"}},
}
DRIFT = {"federation": {"groups": {"kind": "none"}, "stream": {"kind": "drift", "every": 1, "tasks": 2}}}
STREAM = {"federation": {"groups": {"kind": "none"}, "stream": {"kind": "permuted", "every": 1, "tasks": 2}}}
RANKS = {"adapter": {"kind": "lora", "rank": {1: 0.5, 4: 0.5}, "alpha": 8}}
CUTS = {"min_round": 0, "eps_1": 2.0, "eps_2": 0.0}
ALL = {"federation": {"per_round": None}}
DEVICES = {"devices": {"profile": "lognormal", "sigma": 1.0}}
COMES = {"federation": {"per_round": None, "participation": {"kind": "bernoulli", "chance": 0.5}}}

ELSA = {"warm_steps": 2, "dims": 3}
PUBLIC = {"federation": {"public": {"rows": 20}}}
CUT = {"adapter": {"kind": "prompt", "tokens": 3}, "task": {"split": {"after": ["embeddings", "layer.0"]}}}
TIERS = {
    "devices": {
        "profile": "tiers",
        "tiers": [{"share": 0.5, "speed": 10.0}, {"share": 0.5, "speed": 5.0, "memory": 30000.0}],
    }
}

UNLABELLED = toy.merge(toy.TOWERS, {"federation": {"public": {"rows": 10, "classes": "new"}}})
MANY = toy.merge(toy.TOWERS, {"task": {"data": {"classes": 24, "examples": 480}}, "federation": {"new_classes": 4}})
VISUAL = {
    "task": {
        "data": {"name": "synthetic:images", "classes": 4, "examples": 48, "test": 8, "size": 8},
        "model": {"name": f"hf:{Path(TINY_PAIR).with_name('tiny-vit-digits')}"},
    },
    "adapter": {"kind": "vpt", "tokens": 1},
    "federation": {"clients": 4, "per_round": 2, "partition": {"kind": "iid"}},
    "local": {"epochs": None, "steps": 1, "batch_size": 4, "optimizer": {"lr": 0.02}},
}

OF_TWO = {**toy.MODAL["task"]["data"], "features": 0}
OF_ONE = {"absent": 0.0, "owners": {"image": 1, "text": 1}}  # modalities of clients
FUSED = toy.merge(toy.MODAL, {"task": {"model": {"absent": "skip"}}})
FUSED["federation"] = {**FUSED["federation"], "modalities": {"owners": {"image": 1, "text+measurements": 1}}}
DECODED = {
    "task": {"data": OF_TWO, "model": {"name": "crossformer", "dim": 4}},
    "federation": {**toy.MODAL["federation"], "split": {"val": 0.3}, "modalities": OF_ONE},
    "local": {"epochs": None, "steps": 2},
}
PAIRED = {
    "task": {"data": OF_TWO, "kind": "retrieval", "model": {"name": "modalities", "dim": 4, "hidden": 6}},
    "federation": {**toy.MODAL["federation"], "public": {"rows": 20}, "modalities": {"absent": 0.2}},
}
WIDTHS = toy.merge(
    LABELLED,
    {
        "task": {
            "model": {
                "large": {"name": "mlp", "hidden": [8], "share": 0.5},
                "small": {"name": "mlp", "hidden": [5], "share": 0.5},
            }
        }
    },
)

# Under which settings and changes to the toy's config a method runs here; ("method", "setting") where one needs others.
BASES: dict[Any, tuple[dict[str, Any], dict[str, Any]]] = {
    "ccvr": ({"when": "loop", "steps": 5}, {}),
    "dpc": ({"stage_rounds": 1, "k": 2}, toy.TOWERS),
    "mao": ({"base_rounds": 1, "new_rounds": 1, "k": 3}, UNLABELLED),
    **dict.fromkeys([("mao", "peak"), ("mao", "std")], ({"base_rounds": 3, "new_rounds": 0, "k": 3}, toy.TOWERS)),
    **dict.fromkeys([("mao", "pool"), ("mao", "negatives")], ({"base_rounds": 2, "new_rounds": 0, "k": 3}, MANY)),
    ("dpc", "pool"): ({"stage_rounds": 1, "k": 3}, MANY),
    "pro_vpt": ({"scores": "removal"}, VISUAL),
    **dict.fromkeys(
        [("disue", n) for n in ("teacher", "space", "covariance", "shrink")], ({**SHORT, "inputs": "statistics"}, {})
    ),
    ("fedlex", "server_momentum"): ({}, {"rounds": 3}),
    ("frag", "scheme"): ({"queries": 1, "k": 2, "dims": 2}, {}),
    "frag": ({"key_bits": 128, "queries": 1, "k": 2, "dims": 2}, {}),
    "gifd": (FEW, LEAKS),
    ("gifd", "tv"): (FEW, {**LEAKS, "task": {"data": "digits"}}),
    "cfl": (CUTS, {"federation": {"split": {"val": 0.2}}}),
    "disue": (SHORT, PROBE),
    "disue_families": (SHORT, PROBE),
    **dict.fromkeys(
        [("disue_families", n) for n in ("teacher", "covariance", "shrink")], ({**SHORT, "inputs": "statistics"}, {})
    ),
    "fedftg": (SHORT, PROBE),
    "feddf": ({"steps": 3, "batch": 16}, PROBE),
    "fedmd": ({}, PROBE),
    "madaug": ({}, IMAGES),
    "fedlgd": (LGD, {}),
    "franca": ({"prototypes": 8, "hidden": 4, "bottleneck": 3, "levels": [1, 2]}, toy.VIEWS),
    ("franca", "patches"): (
        {"prototypes": 8, "hidden": 4, "bottleneck": 3, "levels": [1, 2]},
        toy.merge(toy.VIEWS, {"task": {"model": {"name": "vit-tiny", "patch": 2, "dim": 8, "heads": 2, "depth": 1}}}),
    ),
    **dict.fromkeys([("fedlgd", n) for n in ("lam", "temperature")], ({**LGD, "every": 2}, {})),
    "fedd2s": ({"samples": 1, "server_steps": 2}, {}),
    ("fedd2s", "least"): ({"samples": 1, "server_steps": 2, "drop": 1.0}, {}),
    "fedloge": ({"fixed_steps": 20}, {}),
    "fedgen": ({"generator_steps": 3, "batch": 8, "noise": 4, "hidden": 8}, {}),
    "fedex": ({}, VAL),
    "fzoos": ({"features": 20, "history": 40, "active": 2, "probes": 4}, {"task": {"model": "linear"}}),
    ("fedex", "discount"): ({"lr": [0.3, 1.0]}, VAL),
    "fedfix": ({}, {**ALL, **DEVICES}),
    ("fedfix", "period"): ({}, ALL),
    ("fedbuff", "restart"): ({}, DEVICES),
    ("fedau", "cutoff"): ({}, COMES),
    ("fedstale", "empty"): (
        {},
        {"federation": {"per_round": None, "participation": {"kind": "bernoulli", "chance": 0.1}}},
    ),
    "dfrd": (SHORT, PROBE),
    "feddrift": ({"every": 1, "delta": 0.05}, DRIFT),
    "fedmac": ({}, toy.MODAL),
    "late_fusion": ({}, FUSED),
    "ha_fedformer": ({"samples": 2, "block": 2}, DECODED),
    **dict.fromkeys([("ha_fedformer", n) for n in ("merge", "step", "noise")], ({}, DECODED)),
    "creamfl": ({"server_batch": 8}, PAIRED),
    "fedconv": ({"filter_epochs": 2, "server_lr": 0.01, "filter_lr": 0.01}, WIDTHS),
    "fal": ({"low": None, "high": None}, {}),
    "fedsto": ({"warmup": 1, "selective": 1, "high": 0.3, "lam": 0.01}, LABELLED),
    ("fedsto", "low"): ({"warmup": 0, "selective": 0, "high": 0.26, "low": 0.1}, toy.merge(OBJECTS, LABELLED)),
    "fot": ({}, STREAM),
    "sfprompt": ({}, CUT),
    "fednano": ({}, {"task": {"split": {"after": ["head"]}}}),
    "fedpipe": ({"profile_steps": 2}, TIERS),
    ("fedpipe", "rank"): ({}, {"adapter": {"kind": "lora", "rank": 4, "targets": ["query", "value"]}}),
    "elsa": (ELSA, PUBLIC),
    ("elsa", "tau_min"): ({**ELSA, "beta": 500.0}, PUBLIC),
    ("elsa", "capacity"): ({**ELSA, "edges": 4}, PUBLIC),
    ("elsa", "distrust"): ({**ELSA, "edges": 4, "capacity": 3}, PUBLIC),
    "feddat": ({}, {"adapter": {"kind": "bottleneck", "size": 3}}),
    "fedins": ({"pool": 3}, {"adapter": {"kind": "ssf"}}),
    "pfedpg": ({}, {"adapter": {"kind": "prompt", "tokens": 3}}),
    "hetlora": ({}, RANKS),
    **dict.fromkeys(["pfedrec", "fedrap", "gpfedrec"], ({"item_rate": 0.5}, toy.TASTES)),
    "fcf": ({}, toy.TASTES),
    "copsl": ({}, toy.FRONTS),
    "fed_e4rag": ({}, toy.PAIRS),
    "fedka": (
        {"vote_steps": 2},
        {"federation": {"public": {"rows": 20}}, "local": {"epochs": None, "steps": 4}},
    ),
    ("hetlora", "least"): ({"gamma": 0.5}, RANKS),
    ("cfl", "absent"): (CUTS, {"federation": {"per_round": None}}),
    ("cfl", "relative"): ({**CUTS, "eps_2": 0.99}, {}),
    ("disue", "classes"): ({**SHORT, "clusters": 1}, {}),  # one expert shares no class
    ("disue_families", "classes"): ({**SHORT, "clusters": 1}, {}),
    "ocfl": ({}, {"federation": {"per_round": None}, "local": {"epochs": 4}}),
    ("pacfl", "relative"): ({"threshold": 20.0}, {}),
    ("fedftg", "classes"): (SHORT, {"federation": {"per_round": 1}}),
    ("dfrd", "classes"): (SHORT, {"federation": {"per_round": 1}}),
}
ON_TEXTS = {
    ("disue", "length"),
    ("fedftg", "length"),
    ("dfrd", "length"),
    ("fedbip", "similarity"),
    ("fedbip_l", "similarity"),
    ("fedoa", "pool"),
}


class Fewer(ToyFed):
    """Every other client of a round is away, as if it had failed."""

    def sample(self, n: int | None = None, *, where: Any = None) -> tuple[int, ...]:
        return super().sample(n, where=where)[self.round % 2 :: 2]


TWINS = (
    "dfrd",
    "disue_families",
    "fedftg",
    "fedbip_l",
    "fedyogi",
)  # most of their settings are read by the code of another method


def settings() -> Iterator[Any]:
    """Yield (method, setting): those that take their time only where `slow` tests run."""
    for name in methods.names():
        slow = [pytest.mark.slow] if name in TWINS or issubclass(methods.get(name), OverLoRA | OverAdapter) else []
        for setting in methods.get(name).Settings.model_fields:
            yield pytest.param(name, setting, id=f"{name}.{setting}", marks=slow)


def candidates(name: str, setting: str) -> list[Any]:
    """Other values that a setting may have by itself."""
    cls = methods.get(name).Settings
    field = cls.model_fields[setting]
    default = field.get_default(call_default_factory=True)
    kinds = {field.annotation, *get_args(field.annotation)}
    if named := [v for kind in kinds if get_origin(kind) is Literal for v in get_args(kind)]:
        found = named
    elif bool in kinds:
        found = [not default]
    elif isinstance(default, tuple):  # of layers, or of numbers
        found = [["body"], ["bias"], [1], [1, 2]]
    elif setting == "clusterer":
        found = [{"kind": "singletons"}]
    else:
        number = 1 if default is None else default
        found = [0, 1, 2, 3, number + 1, number * 2, number / 2, 0.3, 0.9, 2.5, 20.0]
    return [v for v in found if v != default and is_valid(cls, setting, v)]


def is_valid(cls: Any, setting: str, value: Any) -> bool:
    try:
        cls(**{setting: value})
    except ValueError:
        return False
    return True


Fit = Callable[[str, str, dict[str, Any]], dict[str, Any]]


@pytest.fixture
def fit(on_bert: Callable[[dict[str, Any]], dict[str, Any]]) -> Fit:
    """Gives methods that need adapters, and settings about texts, a model that takes them."""

    def give(name: str, setting: str, changes: dict[str, Any]) -> dict[str, Any]:
        needs = issubclass(methods.get(name), OverLoRA | OverAdapter) or (name, setting) in ON_TEXTS
        return on_bert(changes) if needs else changes

    return give


@cache
def ran(method: str, changes: str, fewer: bool) -> tuple[Result, Any]:
    """Two rounds, with what is scored after them. Arguments as JSON."""
    kind = Fewer if fewer else ToyFed
    done = toy.simulate(json.loads(method), kind=kind, **json.loads(changes))
    return done, done.scores()


@cache
def first_round(method: str, changes: str) -> Result:
    """One round of two. Arguments as JSON."""
    return toy.simulate(json.loads(method), until=1, **json.loads(changes))


def differ(a: tuple[Result, Any], b: tuple[Result, Any]) -> bool:
    """Whether two runs differ in a state, a row, a score or a byte."""
    one, two = a[0], b[0]
    if a[1] != b[1] or one.rows != two.rows or one.clients().keys() != two.clients().keys():
        return True
    return not (tree.same(one.state, two.state) and tree.same(one.clients(), two.clients()))


def refused(name: str, options: dict[str, Any], setting: str, changes: dict[str, Any]) -> bool:
    """Whether a config is refused for this setting's sake, which nothing reads."""
    try:
        toy.config({"name": name, **options}, **changes)
    except ConfigError as error:
        return any(p.startswith(f"method.{setting}: ") and "nothing reads it" in p for p in error.problems)
    return False


@pytest.mark.parametrize(("name", "setting"), list(settings()))
def test_a_setting_changes_something_or_is_refused(name: str, setting: str, fit: Fit) -> None:
    options, more = BASES.get((name, setting)) or BASES.get(name, ({}, {}))
    changes, values = fit(name, setting, more), candidates(name, setting)
    assert values, "no other value is tried"
    needs = methods.get(name).Settings.needs.get(setting, ())
    for need in needs:
        met = [v for v in candidates(name, need.of) if v not in need.values] if need.but else list(need.values)
        default = methods.get(name).Settings.model_fields[need.of].default
        unmet = list(need.values) if need.but else [v for v in candidates(name, need.of) if v not in need.values]
        if (options.get(need.of, default) in need.values) != need.but:
            assert refused(name, {**options, need.of: unmet[0], setting: values[-1]}, setting, changes), need
        else:
            assert refused(name, {**options, setting: values[-1]}, setting, changes), need
            options = {**options, need.of: met[0]}
    fewer = (name, setting) == ("cfl", "absent")

    def run(given: dict[str, Any]) -> tuple[Result, Any]:
        return ran(json.dumps({"name": name, **given}), json.dumps(changes), fewer)

    for value in values:
        try:
            if differ(run(options), run({**options, setting: value})):
                return
        except ConfigError:
            continue  # other settings forbid this value
    pytest.fail(f"method.{setting} changes nothing: {values} tried under {options}")


SHAPED = [
    {"label_smoothing": 0.3},
    {"clip": 0.01},
    {"privacy": {"norm": 0.1, "noise_multiplier": 1.0, "accountant": "none"}},
]


@pytest.mark.parametrize("local", SHAPED, ids=lambda c: next(iter(c)))
@pytest.mark.parametrize(
    "name", [n for n in methods.names() if not methods.get(n).needs & {"items", "fronts", "pairs", "views"}]
)
def test_what_shapes_a_local_step_is_read_by_every_method(name: str, local: dict[str, Any], fit: Fit) -> None:
    options, more = BASES.get(name, ({}, {}))
    changes = fit(name, "", more)
    with_it = toy.merge(changes, {"local": local})
    try:
        a, b = (first_round(json.dumps({"name": name, **options}), json.dumps(c)) for c in (changes, with_it))
    except ConfigError as error:
        assert f"local.{next(iter(local))}" in str(error), error
    else:
        same = tree.same(a.state, b.state) and tree.same(a.clients(), b.clients()) and a.rows == b.rows
        assert not same, f"{name} does not read {local}"
