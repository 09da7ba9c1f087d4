"""A claim's file: registration, drawn seeds, trials of a tuning grid."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayfed.errors import ConfigError
from rayfed.launch.claim_file import (
    Tune,
    as_written,
    at_edge,
    best_trial,
    beyond,
    change_of,
    drawn_seeds,
    read_claim_file,
    settings_digest,
    trials,
)

TEXT = """\
# A claim.
name: small
rounds: 2
task: {data: digits, model: linear}
federation: {clients: 6}
method: fedavg
evaluate: {every: 1}
registered: {date: 2026-11-30, seeds: 4}
arms: {plain: {}, slow: {local: {optimizer: {lr: 0.001}}}}
claim: {metric: accuracy/global, at: 2, better: plain, than: slow}
"""


def write(folder: Path, text: str = TEXT) -> Path:
    file = folder / "small.yaml"
    file.write_text(text)
    return file


def test_seeds_follow_from_the_settings_and_the_date(tmp_path: Path) -> None:
    first = read_claim_file(write(tmp_path))
    assert len(set(first.study.seeds)) == 4 == len(first.study.seeds) and first.looks == [4]
    assert (
        read_claim_file(write(tmp_path, TEXT.replace("# A claim.", "# Otherwise said."))).study.seeds
        == first.study.seeds
    )
    for change in (("2026-11-30", "2026-12-01"), ("lr: 0.001", "lr: 0.002")):
        assert not set(read_claim_file(write(tmp_path, TEXT.replace(*change))).study.seeds) & set(first.study.seeds)
    assert not set(drawn_seeds("small", first.digest, 4, "tune")) & set(first.study.seeds)


def test_execution_is_fixed_and_the_same_for_all_arms(tmp_path: Path) -> None:
    made = read_claim_file(write(tmp_path)).study
    assert {(c.resources.executor, c.resources.matmul, c.resources.channels_last) for c in made.arms.values()} == {
        ("vmap", "torch", False)
    }
    with pytest.raises(ConfigError, match=r"resources.executor: arms differ \(plain: vmap, slow: loop\)"):
        read_claim_file(write(tmp_path, TEXT.replace("lr: 0.001}}", "lr: 0.001}}, resources: {executor: loop}")))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("seeds: 4", "seeds: 1"), "registered.seeds: 1 found, allowed: a number >= 2"),
        (("seeds: 4", "seeds: [8, 4]"), "growing numbers"),
        (("seeds: 4", "sedes: 4"), "registered.sedes"),
        (("seeds: 4", "tune: {grid: {}}"), "neither grid nor arms names a setting"),
        (("seeds: 4", "tune: {arms: {plan: {rounds: [1, 2]}}}"), "'plan' is not an arm \\(did you mean 'plain'"),
        (("seeds: 4", "tune: {grid: {rounds: 3}}"), "registered.tune.grid"),
        (("seeds: 4}", "seeds: 4}\nseeds: [1, 2]"), "a registered claim draws its seeds"),
        (("claim: {", "unclaimed: {"), "unclaimed"),
    ],
)
def test_wrong_registrations_are_refused(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_claim_file(write(tmp_path, TEXT.replace(*change)))


def test_trials_and_the_best_of_them() -> None:
    tune = Tune(grid={"local.optimizer.lr": [0.1, 0.3, 1.0]}, arms={"prox": {"method.mu": [0.01, 1]}})
    assert trials(tune, "plain") == [{"local.optimizer.lr": v} for v in (0.1, 0.3, 1.0)]
    assert len(trials(tune, "prox")) == 6 and trials(tune, "prox")[1] == {"local.optimizer.lr": 0.1, "method.mu": 1}
    assert best_trial([0.5, None, 0.7, 0.7], "accuracy/global") == 2 and best_trial([0.5, 0.2], "loss/global") == 1
    with pytest.raises(ConfigError, match="no trial has a value"):
        best_trial([None, None], "accuracy/global")
    prox, plain = trials(tune, "prox"), trials(tune, "plain")
    assert at_edge(prox, {"local.optimizer.lr": 1.0, "method.mu": 0.01}) == ["local.optimizer.lr"]
    assert at_edge(plain, {"local.optimizer.lr": 0.3}) == [] == beyond(plain, {"local.optimizer.lr": 0.3})
    further = beyond(prox, {"local.optimizer.lr": 1.0, "method.mu": 0.01})
    assert further == [{"local.optimizer.lr": 3.3, "method.mu": 0.01}]  # 1.0 * 1.0 / 0.3
    assert beyond([*prox, *further], further[0]) == [{"local.optimizer.lr": 11.0, "method.mu": 0.01}]
    assert change_of({"a.b": 1, "a.c": 2}) == {"a": {"b": 1, "c": 2}}


def test_the_same_question_on_other_data(tmp_path: Path) -> None:
    first = write(tmp_path, TEXT.replace("seeds: 4}", "seeds: 4, withdrawn: no more}"))
    other = tmp_path / "other.yaml"
    other.write_text(
        "# On blobs.\nlike: small\nname: other\ntask: {data: {name: 'synthetic:blobs', features: 8}}\nrounds: 3\n"
    )
    made = read_claim_file(other)
    assert (made.like, made.study.base.task.data.name, made.study.base.rounds) == ("small", "synthetic:blobs", 3)
    assert made.study.claims == read_claim_file(first).study.claims and list(made.study.arms) == ["plain", "slow"]
    assert made.registered is not None and made.registered.withdrawn is None and made.looks == [4]
    assert not set(made.study.seeds) & set(read_claim_file(first).study.seeds)
    before = settings_digest(other)
    write(tmp_path, TEXT.replace("0.001", "0.002"))  # what it takes over is a part of it
    assert settings_digest(other) != before and as_written(other)["arms"]["slow"]["local"]["optimizer"]["lr"] == 0.002
    other.write_text("like: smal\n")
    with pytest.raises(ConfigError, match=r"like: 'smal' found, no claim is called so \(did you mean 'small'"):
        read_claim_file(other)
    (tmp_path / "third.yaml").write_text("like: other\n")
    other.write_text("like: small\n")
    with pytest.raises(ConfigError, match="which is itself like 'small'; name that one"):
        read_claim_file(tmp_path / "third.yaml")
