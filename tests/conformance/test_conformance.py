"""Every method × every check (DESIGN §6.2). A method without a row in VARIANTS runs with its defaults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayfed import methods
from rayfed.config.schema import TINY_PAIR
from rayfed.methods._bases.over_adapter import OverAdapter
from rayfed.methods._bases.over_lora import OverLoRA
from tests import toy
from tests.conformance.checks import CHECKS, Case, every_part_is_seen

SHORT = {"iterations": 2, "student_steps": 2, "batch": 8, "noise": 4}  # DisUE's D-phase
FEW = {"steps": 3, "generator_steps": 5, "latent": 4}  # GIFD's search
LEAKS = {"federation": {"probe": 20}}
IMAGES = {
    "task": {
        "data": {"name": "synthetic:images", "examples": 200, "classes": 4, "size": 4, "test": 40},
        "model": {"hidden": [8]},
    },
    "federation": {"split": {"val": 0.3}},
}
SMALL_HEADS = {"prototypes": 8, "hidden": 4, "bottleneck": 3, "levels": (1, 2)}  # Franca's
ADAM = {"optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1}, "schedule": {"kind": "cosine"}}
MOMENTUM = {"optimizer": {"momentum": 0.9, "nesterov": True}, "epochs": None, "steps": 5}
RANKS = {"adapter": {"kind": "lora", "rank": {1: 0.5, 2: 0.25, 4: 0.25}, "alpha": 8}}

BOTTLENECK = {"adapter": {"kind": "bottleneck", "size": 3}}
SSF = {"adapter": {"kind": "ssf"}}
PROMPT = {"adapter": {"kind": "prompt", "tokens": 3}}
VISUAL = {
    "task": {
        "data": {"name": "synthetic:images", "classes": 4, "examples": 48, "test": 8, "size": 8},
        "model": {"name": f"hf:{Path(TINY_PAIR).with_name('tiny-vit-digits')}"},
    },
    "adapter": {"kind": "vpt", "tokens": 1},
    "federation": {"clients": 4, "per_round": 2, "partition": {"kind": "iid"}},
    "local": {"epochs": None, "steps": 1, "batch_size": 4, "optimizer": {"lr": 0.02}},
}
UNLABELLED = toy.merge(toy.TOWERS, {"federation": {"public": {"rows": 10, "classes": "new"}}})

BATCHNORM = {"task": {"model": {"name": f"{Path(__file__).parents[1] / 'own_nets.py'}:batchnorm"}}}
COMES = {
    "federation": {"per_round": None, "participation": {"kind": "markov", "chances": [0.9, 0.5, 0.2], "switch": 0.3}}
}
ALL = {"federation": {"per_round": None}}
KNOWN_TARGET = {"federation": {"public": {"rows": 20}}, "local": {"epochs": None, "steps": 4}}
DEVICES = {"devices": {"profile": "lognormal", "sigma": 0.5, "bandwidth": 10000.0}}
FREE = {"low": None, "high": None}  # the toy's inputs have no range
STREAM: dict[str, Any] = {
    "federation": {"groups": {"kind": "none"}, "stream": {"kind": "permuted", "every": 1, "tasks": 2}}
}
CUT = {**PROMPT, "task": {"split": {"after": ["embeddings", "layer.0"]}}}  # of a BERT: head, body and tail
TIERS = {
    "devices": {
        "profile": "tiers",
        "tiers": [{"share": 0.5, "speed": 10.0}, {"share": 0.5, "speed": 5.0, "memory": 30000.0}],
    }
}
CLIENT_SIDE = {"task": {"split": {"after": ["head"]}}}
VAL = {"federation": {"split": {"val": 0.3}}}
OWNERS = {"modalities": {"absent": 0.0, "owners": {"image+text": 1, "measurements": 1}}}
LACKING = toy.merge(toy.MODAL, {"task": {"model": {"absent": "skip"}}, "federation": OWNERS})
WIDTHS = {
    "task": {
        "model": {
            "large": {"name": "mlp", "hidden": [6], "share": 0.5},
            "small": {"name": "mlp", "hidden": [4], "share": 0.5},
        }
    },
    "federation": {"public": {"rows": 30, "labels": True}},
}
SIDES = {
    "task": {
        "data": {**toy.MODAL["task"]["data"], "features": 0},
        "kind": "retrieval",
        "model": {"name": "modalities", "dim": 4, "hidden": 6},
    },
    "federation": {**toy.MODAL["federation"], "public": {"rows": 20}, "modalities": {"absent": 0.2}},
    "local": {"epochs": 1},
}
ALONE = {
    "task": {**SIDES["task"], "kind": "modalities", "model": {"name": "crossformer", "dim": 4}},
    "federation": {**toy.MODAL["federation"], "modalities": {"absent": 0.0, "owners": {"image": 1, "text": 1}}},
    "local": {"epochs": None, "steps": 2},
}

# settings, or (settings, changes to the config)
VARIANTS: dict[str, list[Any]] = {
    "cellm": [
        {},
        {"client_freeze": True, "server_freeze": True, "ranking": "tensor", "eval_masked": False},
        {"tiers": 2, "decay": 0.5},
        {"down": 1.0, "up": 1.0},
    ],
    "cfl": [
        {},
        {"min_round": 0, "eps_1": 2.0, "eps_2": 0.0},
        (
            {
                "min_round": 0,
                "relative": False,
                "eps_1": 9.0,
                "absent": "wait",
                "serve": "best_on_path",
                "weight": "examples",
            },
            {"federation": {"per_round": None, "split": {"val": 0.2}}},
        ),
    ],
    "autoflip": [{"explore_epochs": 2}, ({"mask": "random", "prune": 0.3}, {"local": ADAM}), {"mask": "magnitude"}],
    "fedlex": [{"explore_epochs": 2}, {"explore_epochs": 1, "normalise": "robust", "server_momentum": 0.9}],
    "frl": [{}, ({"scores": "absolute", "keep": 0.3}, {"local": MOMENTUM})],
    "frag": [{"key_bits": 128, "queries": 2, "k": 3, "dims": 4}, {"scheme": "none", "queries": 3, "dims": 0}],
    "gifd": [({**FEW, "search": how}, LEAKS) for how in ("gifd", "pixels")],
    "ccvr": [
        {"when": "loop", "steps": 5, "batch": 8},
        {"when": "serve", "covariance": "full", "shrink": 0.1, "asked": "all", "rho": 1.0, "relu": True},
        {"covariance": "shared", "least": 2, "asked": "round"},
    ],
    "cflhkd": [
        {},
        {"teachers": "all", "weigh": "loss", "cloud_every": 2, "clusterer": {"kind": "auto", "least": 0.0}},
        {"recluster_every": 1, "lam": 0.0, "clusterer": "least_loss", "personal": "least_loss"},
    ],
    "disue": [
        SHORT,
        {**SHORT, "secure_similarity": "rotation", "signature": "all", "mix": "logit", "generator_ema": 0.9},
        {**SHORT, "clusterer": "least_loss", "adversary": "l1", "sampler": "group", "student_init": "previous"},
        {"distill": False, "clusterer": "oracle", "signature": "counts"},
        ({"iterations": 2, "student_steps": 2, "batch": 8, "inputs": "probe"}, {"federation": {"probe": 20}}),
        {"inputs": "statistics", "accept": "best", "personal": "least_loss", "iterations": 2, "batch": 8},
        {"inputs": "statistics", "teacher": "labels", "iterations": 2, "batch": 8, "clusterer": "least_loss"},
        {"inputs": "statistics", "space": "inputs", "covariance": "full", "iterations": 2, "batch": 8},
        {"distill": False, "clusterer": "kmeans"},
        {**SHORT, "lifetime": "run", "own_share": 0.5, "personal": "newcomers"},
        {**SHORT, "clusterer": {"kind": "auto", "least": 0.0}, "moments": 1.0},
        {**SHORT, "inputs": "client_generators", "experts": "class", "generator_epochs": 2},
        {"distill": False, "clusterer": {"kind": "bipartition", "eps_1": 0.9}},
        {"distill": False, "clusterer": {"kind": "subspace", "basis": 2, "measure": "smallest", "threshold": 30}},
    ],
    "disue_families": [
        {"iterations": 1, "student_steps": 1, "batch": 4},
        {
            "inputs": "statistics",
            "accept": "best",
            "iterations": 1,
            "batch": 4,
            "clusterer": {"kind": "auto", "least": 0.0},
        },
        {"inputs": "client_generators", "generator_epochs": 1, "noise": 4, "iterations": 1, "batch": 4},
    ],
    "fedavg": [
        {},
        ({"server_lr": 0.5}, {"local": ADAM, "resources": {"cohort": 4}}),
        ({}, {"local": MOMENTUM, "federation": {"participation": {"kind": "cyclic"}}}),
        ({}, {**BATCHNORM, "local": {"buffers": "private"}}),
    ],
    "fcf": [({}, toy.TASTES), ({"alpha": 0.0, "reg": 1.0}, toy.TASTES)],
    "fedamd": [{}, {"period": 2, "everyone_first": False}],
    "copsl": [
        ({}, toy.FRONTS),
        (
            {"trunk": "client"},
            toy.merge(toy.FRONTS, {"local": {"steps": 3, "optimizer": {"name": "adam", "lr": 0.01}}}),
        ),
        ({"trunk": "alone"}, toy.merge(toy.FRONTS, {"task": {"model": {"name": "coaction", "dim": 4, "heads": 2}}})),
    ],
    "fedau": [{}, ({"cutoff": 2}, COMES), ({"weights": "known"}, COMES)],
    "afa_cs": [{}, {"buffer": 2, "most": 4, "missing": "zero"}],
    "fedex": [({}, VAL), ({"lr": [1.0, 0.3], "steps": [1, 3], "weight_decay": [0.0, 0.1], "feedback": "change"}, VAL)],
    "fzoos": [
        (
            {"features": 20, "history": 12, "active": 2, "probes": 4},
            {"task": {"model": "linear"}, "local": {"epochs": 2}},
        )
    ],
    "fedzo": [({"directions": 3, "correction": "control"}, {"task": {"model": "linear"}})],
    "fedbuff": [{}, ({"buffer": 2, "weight": "examples"}, DEVICES)],
    "fedfix": [({}, ALL), ({"period": 2.0, "weight": "one"}, {**ALL, **DEVICES})],
    "apfl": [{"alpha_lr": 0.05}, ({}, {**BATCHNORM, "local": MOMENTUM})],
    "ditto": [{}, ({"personal_epochs": 1, "personal_lr": 0.05}, BATCHNORM)],
    "fedala": [{"start_epochs": 2}, ({"adaptive": ["1", "head"], "share": 0.5}, BATCHNORM)],
    "fedbabu": [{"finetune_epochs": 1}],
    "fedbn": [({}, BATCHNORM), {}],
    "fedagain": [
        {},
        {"trust": "reciprocal", "memory": 0.0},
        ({"relative": True, "center": "received"}, {"federation": {"split": {"val": 0.2}}}),
        ({"signal": "benchmark"}, {"federation": {"public": {"rows": 20, "labels": True}}}),
    ],
    "fets": [
        ({}, VAL),
        ({"aggregation": "clipped", "choose": "skip_slowest"}, VAL),
        ({"aggregation": "momentum"}, VAL),
    ],
    "fedgela": [{}, ({"scaled": False}, BATCHNORM)],
    "fedgh": [{"server_batch": 3, "server_epochs": 2}],
    "fedka": [
        ({"vote_steps": 2, "accumulate": 2}, KNOWN_TARGET),
        ({"vote_steps": 2, "accumulate": 2, "broadcast": "voted"}, toy.merge(BATCHNORM, KNOWN_TARGET)),
    ],
    "fedlgd": [
        {"ipc": 2, "server_ipc": 1, "warm_steps": 2, "refresh_steps": 2, "server_steps": 2, "every": 1, "refreshes": 2},
        {"ipc": 2, "server_ipc": 2, "warm_steps": 2, "server_steps": 1, "every": 2, "refreshes": 1},
    ],
    "fedloge": [{"fixed_steps": 20}],
    "fedproto": [{}, ({"weight": "examples", "predict": "head"}, BATCHNORM)],
    "fedrep": [{"head_epochs": 2}, ({"head_epochs": 1, "weight": "examples", "private": ["1", "head"]}, BATCHNORM)],
    "fedrod": [{}, ({"gamma": 0.5}, BATCHNORM)],
    "fedsa": [{}, ({"decay": 0.5, "weight": "examples", "predict": "head"}, {**BATCHNORM, "local": MOMENTUM})],
    "fraug": [{"noise": 4}, ({"interpolate": True, "distance": "l1"}, BATCHNORM)],
    "fedconv": [
        ({"server_epochs": 1, "filter_epochs": 1, "weight_epochs": 1}, WIDTHS),
        ({"start": "normal", "activation": "none", "filter_epochs": 1, "weight_epochs": 1}, WIDTHS),
    ],
    "creamfl": [({"server_batch": 8}, SIDES), ({"scale": True, "aggregate": "mean", "pass_last": True}, SIDES)],
    "fedmac": [({}, toy.MODAL), ({"contrast": "sum", "table": "mean"}, toy.MODAL)],
    "ha_fedformer": [
        ({"samples": 2, "block": 1}, ALONE),
        ({"samples": 2, "block": 1, "fuse": "loss", "rho": 1.0}, toy.merge(ALONE, VAL)),
        ({"merge": "code"}, ALONE),
    ],
    "late_fusion": [({}, LACKING)],
    "madaug": [
        ({"from_round": 1, "floor": 0.5, "operations": ("cutout", "rotate", "contrast")}, IMAGES),
        ({"from_round": 1, "scope": "private", "per_image": 2}, IMAGES),
    ],
    "moon": [{}, ({"mu": 5.0}, {**BATCHNORM, "local": MOMENTUM})],
    "fedbip": [{}, {"negative": "raw", "temperature": 0.5, "neighbours": 3, "newcomers": "first"}],
    "fedbip_l": [{}, {"layers": "module", "weights": "uniform"}],
    "feddyn": [{}, ({"alpha": 1.0}, {"local": {"clip": 0.5, "label_smoothing": 0.1}})],
    "fedd2s": [
        {"samples": 1, "server_steps": 2, "drop": 0.0},
        ({"drop": 1.0, "server_batch": 8, "beta": 0.0}, {"task": {"model": {"hidden": [12, 10]}}, "local": MOMENTUM}),
    ],
    "fedmd": [
        ({}, {"federation": {"public": {"rows": 40}}}),
        (
            {"digest": "kl", "tau": 2.0, "digest_epochs": 2, "digest_lr": 0.05},
            {**BATCHNORM, "federation": {"public": {"rows": 150}}},
        ),
    ],
    "dpc": [
        ({"stage_rounds": 1, "k": 2}, toy.TOWERS),
        ({"stage_rounds": 1, "w_base": 0.2, "w_new": 0.3}, toy.merge(toy.TOWERS, {"local": ADAM})),
    ],
    "mao": [
        ({"base_rounds": 1, "new_rounds": 1, "k": 3}, UNLABELLED),
        ({"base_rounds": 2, "new_rounds": 0, "negatives": "random", "candidates": "all"}, toy.TOWERS),
    ],
    "feddf": [({"steps": 3, "batch": 16}, {"federation": {"probe": 40}})],
    "fedftg": [SHORT, {**SHORT, "adversary": "kl", "fidelity_of": "ensemble", "cross_entropy": 0.5}],
    "feddpa": [{}, {"mode": "F", "weight": "examples", "instances": 3}],
    "feddat": [
        ({}, BOTTLENECK),
        ({"serve": "own", "distill": 0.0, "weight": "examples"}, {**BOTTLENECK, "local": ADAM}),
    ],
    "fedpipe": [
        ({"profile_steps": 2}, TIERS),
        ({"profile_steps": 2, "aggregate": "pad", "every": 1, "choose": "random", "deadline_s": 5.0}, TIERS),
    ],
    "elsa": [
        ({"warm_steps": 2, "dims": 3, "beta": 0.5, "tau_min": 0.1}, KNOWN_TARGET),
        (
            {
                "warm_steps": 2,
                "dims": 3,
                "cloud_every": 1,
                "edges": 3,
                "capacity": 5,
                "consensus": "mean",
                "tau_min": 0.0,
            },
            KNOWN_TARGET,
        ),
    ],
    "fednano": [({}, CLIENT_SIDE), ({"fisher": "steps", "normalise": True}, CLIENT_SIDE), ({"rows": 5}, CLIENT_SIDE)],
    "sfprompt": [({"local_epochs": 1}, CUT), ({"keep": 1.0, "weight": "kept", "local_lr": 0.05}, CUT)],
    "fedins": [({"pool": 3}, SSF), ({"pool": 2, "match": 0.5, "weight": "examples"}, SSF)],
    "pro_vpt": [({"scores": "removal"}, VISUAL), ({"scores": "removal", "policy": "thompson"}, VISUAL)],
    "pfedpg": [({}, PROMPT), ({"descriptor": "one", "width": 3}, PROMPT)],
    "fedalt": [{}, {"mixer": "half", "weight": "one"}],
    "fdlora": [{"grid": 3, "rows": 8}, {"grid": 2, "beta": 0.0, "sync": 1}],
    "fedsvd": [{}, ({"every": 2, "weight": "one"}, RANKS)],
    "fedlease": [{"most": 3}, {"most": 1, "weight": "one"}],
    "fl_tac": [{}, {"clusters": 2, "weight": "one"}],
    "ravan": [{}, {"heads": 1, "start": "normal", "scales": False}],
    "fedgen": [
        {"generator_steps": 3, "batch": 8, "noise": 4, "hidden": 8},
        ({"generator_steps": 2, "hidden": 8, "generated": 3, "rho": 1.0, "beta": 0.5}, {"local": MOMENTUM}),
    ],
    "fed_e4rag": [({}, toy.PAIRS), ({"lam": 0.0, "start": "received", "view": "shared"}, toy.PAIRS)],
    "fedit": [{}, ({"gap": True}, RANKS)],
    "fedld": [{}, ({"per": "example", "weight": "examples"}, {"aggregate": {"kind": "principal", "first": 1}})],
    "fedmerge": [
        {},
        {"models": 2, "inner": "all", "step": "client", "mu": 0.0, "server_lr": 0.5, "newcomers": "least_loss"},
    ],
    "fedncf": [
        ({}, toy.TASTES),
        ({}, {**toy.TASTES, "task": {**toy.TASTES["task"], "model": {"name": "ncf", "hidden": [6]}}}),
    ],
    "fedoa": [
        {"pooled": True},
        {
            "gap": "class_means",
            "personal_first": False,
            "start": "received",
            "personal_from": 1,
            "personal_epochs": 1,
            "weight": "examples",
        },
        {"gap": "squared", "personal_from": 1},
        {"gap": "cosine"},
        {"gap": "weights"},
    ],
    "franca": [
        (SMALL_HEADS, toy.VIEWS),
        (
            {**SMALL_HEADS, "teacher": "server", "projection": "linear", "patches": 1.0},
            toy.merge(
                toy.VIEWS, {"task": {"model": {"name": "vit-tiny", "patch": 2, "dim": 8, "heads": 2, "depth": 1}}}
            ),
        ),
    ],
    "fedrap": [({"item_rate": 2.0}, toy.TASTES), ({"item_rate": 2.0, "personal": False, "mu": 1.0}, toy.TASTES)],
    "fedpurel": [{}, {"align": "kl", "projection": "global", "everyone_first": False, "strength": 0.5}],
    "dfrd": [SHORT],
    "feddrift": [
        {"every": 1, "delta": 0.1},
        ({"every": 1, "delta": 0.05, "eager": True, "start": "cluster", "weight": "one"}, {**STREAM, "rounds": 3}),
    ],
    "fal": [
        ({**FREE, "steps": 2}, {}),
        (
            {**FREE, "norm": "l2", "random_start": False, "clean": 0.5, "weight": "examples"},
            {**BATCHNORM, "local": MOMENTUM},
        ),
    ],
    "bdpfl": [{}, ({"map": "gradcam", "gamma": 0.0, "start": "received"}, {"local": {**MOMENTUM, "clip": 0.5}})],
    "fot": [
        ({}, STREAM),
        (
            {"eps": 0.8, "eps_inc": 0.1, "least": 0, "protect_head": False},
            {**BATCHNORM, "federation": {**STREAM["federation"], "stream": {"kind": "drift", "every": 1, "tasks": 2}}},
        ),
    ],
    "fedsoft": [{}, {"clusters": 2, "lam": 0.0, "selection": "weighted", "every": 1, "floor": 0.0}],
    "fesem": [{}, {"clusters": 2, "seeding": "random", "weight": "one"}],
    "pfedlora": [{"rank": 2}, ({"mu": 1.0, "weight": "one"}, {**BATCHNORM, "local": MOMENTUM})],
    "pfedrec": [
        ({"item_rate": 0.5}, toy.TASTES),
        ({"item_rate": 0.5, "view": "shared", "aggregate": "touched"}, toy.TASTES),
    ],
    "ifca": [{}, {"clusters": 2, "weight": "examples"}],
    "fedgroup": [{"pretrain": 3}, {"clusters": 2, "pretrain": 2, "per_group": 2, "eta": 0.5, "weight": "one"}],
    "fedsto": [
        ({"warmup": 1, "selective": 1, "high": 0.3}, {"federation": {"public": {"rows": 20, "labels": True}}}),
        (
            {"warmup": 0, "selective": 0, "lam": 0.01, "ema": 0.5},
            {"federation": {"public": {"rows": 20, "labels": True}}},
        ),
    ],
    "fedspeed": [{}, ({"server": "active", "alpha": 0.5}, BATCHNORM)],
    "fedstale": [{}, ({"chances": "estimated", "weight": "one", "empty": "stale"}, COMES)],
    "flexlora": [{}, ({"weight": "one"}, RANKS)],
    "flora": [{}, ({"weight": "one"}, RANKS)],
    "hetlora": [
        ({}, RANKS),
        ({"gamma": 0.5, "lam": 0.1, "least": 1, "pad": "rank_wise"}, {**RANKS, "local": ADAM}),
        ({"gamma": 1.0, "pad": "rank_wise", "weight": "examples"}, RANKS),
    ],
    "lora_fair": [{"distance": "cosine", "steps": 5}, {}],
    "ocfl": [
        ({}, {"federation": {"per_round": None}}),
        ({"clusterer": {"kind": "affinity"}, "server_lr": 0.5, "p": 3.0}, {"federation": {"per_round": None}}),
    ],
    "pacfl": [
        {},
        {"angles": "principal", "basis": 1, "threshold": 0.9, "relative": True, "linkage": "average", "weight": "one"},
        {"measure": "smallest", "basis": 1, "threshold": 20.0},
    ],
    "gpfedrec": [
        ({"item_rate": 0.5}, toy.TASTES),
        ({"item_rate": 0.5, "neighbours": 2, "layers": 2, "graph": "unlike", "view": "graph"}, toy.TASTES),
    ],
    "qfedavg": [{}, {"q": 0.0}],
    "scaffold": [{}, ({"server_lr": 0.5}, {"local": {"schedule": {"kind": "exponential", "gamma": 0.5}}})],
    "slora": [{"sparse_rounds": 1}, {"sparse_rounds": 1, "density": 0.3}],
}


def cases(name: str) -> list[Case]:
    rows = [v if isinstance(v, tuple) else (v, {}) for v in VARIANTS.get(name, [{}])]
    return [Case({"name": name, **settings}, changes) for settings, changes in rows]


SHARED = {  # checks of what methods about adapters have from their bases: by default of a few of them, of the others where `slow` ones run
    "later_rounds_add_nothing", "order_and_workers_change_nothing", "again_is_the_same", "scoring_changes_nothing", "debug_is_loop",
}  # fmt: skip
FEW_ADAPTERS = ("fedit", "hetlora", "feddat", "pfedpg")


def on_adapters(name: str) -> bool:
    return issubclass(methods.get(name), OverLoRA | OverAdapter)


def is_slow(name: str, variant: int, check: str) -> bool:
    """Whether a check is left to the slow tests: of all but a method's first variant, and what is shared."""
    return variant > 0 or (check in SHARED and on_adapters(name) and name not in FEW_ADAPTERS)


EVERY = [
    pytest.param(
        case, check, id=f"{name}-{i}-{check.__name__}", marks=[pytest.mark.slow] * is_slow(name, i, check.__name__)
    )
    for name in methods.names()
    for i, case in enumerate(cases(name))
    for check in CHECKS
]


@pytest.fixture
def fit(on_bert: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Case], Case]:
    """Gives a case of a method that needs adapters a model that takes them."""

    def give(case: Case) -> Case:
        return case._replace(changes=on_bert(case.changes)) if on_adapters(case.name) else case

    return give


@pytest.mark.parametrize(("case", "check"), EVERY)
def test_method(case: Case, check: Callable[[Case, Path], None], fit: Callable[[Case], Case], tmp_path: Path) -> None:
    check(fit(case), tmp_path)


@pytest.mark.parametrize("name", methods.names())
def test_every_declared_part_is_seen(name: str, fit: Callable[[Case], Case]) -> None:
    every_part_is_seen([fit(c) for c in cases(name)])


def test_variants_name_methods() -> None:
    assert set(VARIANTS) <= set(methods.names())
