"""Requests in plain English: what they stand for, and that what is unclear is asked back and never guessed."""

from __future__ import annotations

from typing import Any

import pytest

from rayfed.config.load import merge
from rayfed.errors import ConfigError
from rayfed.launch.ask import BASE, ask
from rayfed.launch.preflight import load_request

KNOWN: dict[str, dict[str, Any]] = {
    "20 rounds": {"rounds": 20},
    "Run FedProx for 20 rounds on digits.": {"method": "fedprox", "rounds": 20, "task": {"data": "digits"}},
    "fed avg, 20 of 60 clients per round": {"method": "fedavg", "federation": {"clients": 60, "per_round": 20}},
    "I want 10 clients, 5 each round, 2 local epochs, batch size 32 and a learning rate of 0.05": {
        "federation": {"clients": 10, "per_round": 5},
        "local": {"epochs": 2, "batch_size": 32, "optimizer": {"lr": 0.05}},
    },
    "scaffold with a cnn, dirichlet 0.1, ten clients, all clients": {
        "method": "scaffold",
        "task": {"model": {"name": "cnn"}},
        "federation": {"partition": {"kind": "dirichlet", "alpha": 0.1}, "clients": 10, "per_round": None},
    },
    "save bandwidth, 20 rounds": {"transforms": [{"kind": "quantise", "bits": 8}], "rounds": 20},
    "4 bits and top 10%": {"transforms": [{"kind": "topk", "fraction": 0.1}, {"kind": "quantise", "bits": 4}]},
    "no compression": {"transforms": []},
    "secure aggregation": {
        "transforms": [{"kind": "clip", "norm": 1.0}, {"kind": "quantise", "bits": 16, "range": 1.0}, {"kind": "mask"}]
    },
    "50% of the clients each round, 2 shards, round robin": {
        "federation": {
            "per_round": 0.5,
            "partition": {"kind": "shards", "per_client": 2},
            "participation": {"kind": "cyclic"},
        }
    },
    "20% sign-flipping attackers, median, 30 clients, evaluate every 5 rounds": {
        "attacks": [{"kind": "sign", "clients": 0.2}],
        "aggregate": {"kind": "median"},
        "federation": {"clients": 30},
        "evaluate": {"every": 5},
    },
    "until 90% accuracy, seed 3, sgd with momentum 0.9, an mlp with 200 hidden units": {
        "stop": {"metric": "accuracy/global", "at": 0.9},
        "seed": 3,
        "local": {"optimizer": {"name": "sgd", "momentum": 0.9}},
        "task": {"model": {"name": "mlp", "hidden": [200]}},
    },
}


@pytest.mark.parametrize("text", KNOWN)
def test_what_the_grammar_knows(text: str) -> None:
    answer = ask(text)
    assert answer.questions == [] and answer.changes == KNOWN[text]
    assert answer.config is not None and load_request(answer.config) == load_request(merge(BASE, KNOWN[text]))


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("20 rounds and 30 rounds", "'20 rounds' and '30 rounds': which? both are about rounds"),
        ("8 bits, 4 bits", "'8 bits' and '4 bits': which? both are about transforms"),
        ("no compression but top 10%", "'no compression': but topk is asked for, too; which?"),
        ("non-iid data", "'non-iid data': how unlike should clients be?"),
        ("private training with epsilon 8", "'private training"),
        ("trimmed mean", "aggregate.f: missing"),
        ("make it blockchain based", "'blockchain based': not understood"),
        ("20 rounds with the best accuracy", "'best accuracy': accuracy comes from a search"),
        ("__import__('os').system('true')", "'__import__': not understood"),
        ("70 of 60 clients per round", "federation.per_round: 70 found"),
        ("poisson sampling, scaffold, noise 1.0", "transforms.1"),
    ],
)
def test_what_is_unclear_is_asked_back(text: str, question: str) -> None:
    assert any(q.startswith(question) for q in ask(text).questions), ask(text).questions


def test_an_empty_request_says_what_one_is() -> None:
    with pytest.raises(ConfigError, match="nothing is asked for"):
        ask(" , ")


def test_text_flags_and_file_are_one_run() -> None:
    """The same config, and so the same run to the bit."""
    asked = ask("fedprox, 2 rounds, 6 clients, 3 each round, dirichlet 0.5, 8 bits").config
    assert asked is not None
    flags = ["method=fedprox", "rounds=2", "federation.clients=6", "federation.per_round=3"]
    flags += ["federation.partition={kind: dirichlet, alpha: 0.5}", "transforms=[{kind: quantise, bits: 8}]"]
    assert load_request(asked) == load_request(BASE, flags)
