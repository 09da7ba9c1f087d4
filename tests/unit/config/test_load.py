"""Files, ready names and mappings, overrides, and studies."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayfed.config.load import load_config, merge, variables
from rayfed.config.schema import Config, Study
from rayfed.errors import ConfigError
from tests import configs
from tests.configs import CONTRACT, LEAST, STUDY

the_problem = partial(configs.the_problem, load=load_config)

# -- files -------------------------------------------------------------------------------------------------------------


def test_variables_of_the_environment() -> None:
    problems: list[str] = []
    raw = {"a": ["${ONE}/x", "${TWO:-hf:a/b}", "${ONE:-z}"], "b": "${THREE}", "c": "${FOUR:-}"}
    found = variables(raw, {"ONE": "1"}, problems)
    assert found == {"a": ["1/x", "hf:a/b", "1"], "b": "${THREE}", "c": ""}
    assert problems == ["b: '${THREE}' needs the environment variable THREE, which is not set"]


def test_a_config_without_its_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("method: fedavg\ntask: {data: digits, model: {name: 'hf:${NOT_SET}/tiny-lm'}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    (problem,) = caught.value.problems
    assert (
        problem == "task.model.name: 'hf:${NOT_SET}/tiny-lm' needs the environment variable NOT_SET, which is not set"
    )


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


@pytest.mark.parametrize(("written", "kept"), [("off", "off"), ('"off"', "off"), ("auto", "auto")])
def test_replay_is_switched_off_by_a_bare_off(written: str, kept: str, tmp_path: Path) -> None:
    """Which YAML reads as false; what is written into a run's config.yaml reads back as the same."""
    file = tmp_path / "c.yaml"
    file.write_text(f"{{task: {{data: digits, model: mlp}}, method: fedavg, resources: {{replay: {written}}}}}")
    for config in (load_config(file), load_config("fedavg", [f"resources.replay={written}"])):
        assert isinstance(config, Config) and config.resources.replay == kept
        file.write_text(yaml.safe_dump(config.to_dict()))
        again = load_config(file)
        assert isinstance(again, Config) and again.resources.replay == kept


def test_replay_is_not_anything_else() -> None:
    with pytest.raises(ConfigError, match=r"resources\.replay"):
        load_config({"resources": {"replay": "on"}})


def test_set_of_what_is_no_yaml() -> None:
    assert the_problem("track=[tensorboard").startswith("--set track=[tensorboard: ")


@pytest.mark.parametrize("change", ["task.model.hidden=[8]", "method.server_lr=0.5"])
def test_set_of_an_option_next_to_a_name_in_its_short_form(change: str) -> None:
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
    ("keys", "sentence"),
    [
        ({"seeds": [1, 2, 1]}, "seeds: [1, 2, 1] holds a seed twice"),
        ({"seeds": [1, -1]}, "seeds: [1, -1] found, allowed: a list of whole numbers >= 0"),
        ({"seeds": [True]}, "seeds: [True] found, allowed: a list of whole numbers >= 0"),
        ({"seeds": 3}, "seeds: 3 found, allowed: a list of whole numbers >= 0"),
        ({"arms": ["a", "b"]}, "arms: a mapping of names to overrides is needed"),
        ({"arms": {"a": 3}}, "arms: a mapping of names to overrides is needed"),
        ({"arms": {"a": {"rounds": "ifac"}}}, "arms.a: rounds: 'ifac' found, should be a valid integer"),
        ({"arms": {"a": {"arms": {}}}}, "arms.a: arms: unknown key"),
        ({"claim": {**CLAIM, "better": "rn"}, "arms": {"run": {}}}, "claim.better: 'rn' is not an arm (did you mean 'run'?)"),
        ({"claim": {**CLAIM, "at": 31}, "arms": {"run": {}}}, "claim.at: 31 found, the study has 30 rounds"),
    ],
)  # fmt: skip
def test_a_wrong_study(keys: dict[str, Any], sentence: str) -> None:
    assert the_problem(**keys).startswith(sentence)


@pytest.mark.parametrize("arm", ["../../elsewhere", "a/b", "", ".."])
def test_an_arm_that_cannot_be_a_folder(arm: str) -> None:
    assert the_problem(arms={arm: {}}).startswith("arms")


def test_an_arm_with_its_own_seed() -> None:
    assert "seeds" in the_problem(arms={"a": {"seed": 3}, "b": {}})


# -- the boundary --------------------------------------------------------------------------------------------------------

REST = "task: {data: digits, model: mlp}\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (REST + "arms: &a {x: *a}\n", 2, "*a is inside of the value that it names"),
        (REST + "method: " + "{a: " * 600 + "1" + "}" * 600, 2, "nested in more than 40 levels"),
        (REST + "method: &m " + "[" * 30 + "1" + "]" * 30 + "\narms: " + "[" * 20 + "*m" + "]" * 20, 3, "nested in more than 40"),
        (BOMB, 5, "more than 20,000 values found"),
        (REST + "seed: 2026-13-45\n", 2, "'2026-13-45' is no timestamp: month must be in 1..12"),
        (REST + "name: 2026-11-30\n", 2, "'2026-11-30' is a timestamp; in quotes it is text"),
        (REST + "seed: !!int x\n", 2, "'x' is no int"),
        (REST + "name: !!binary x\n", 2, ""),
        (REST + "method:\n  1: 2\n  name: fedavg\n", 3, "1 found as a key among keys that are text"),
        (REST + "on: 1\n", 2, "True found as a key (yes, no, on and off are truth values in YAML), allowed: text"),
        (REST + "? [1]\n: 2\n", 2, "[1] found as a key, allowed: text"),
        (REST + "seed: " + "9" * 5000, 2, "is no int: Exceeds the limit"),
        (REST + "name: caf\xe9\n", 2, "byte 0xe9 is not UTF-8"),
        (REST + "name: \x07\n", 2, "special characters are not allowed"),
        (REST + "name: " + "x" * 10_000_000, 0, "more than 1,000,000 bytes found"),
    ],
)  # fmt: skip
def test_a_file_that_is_meant_to_hurt(tmp_path: Path, text: str, line: int, says: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(text.encode("latin1"))
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    (problem,) = caught.value.problems
    assert (
        problem.startswith(f"{file}: line {line}" if line else f"{file}: ") and says in problem and len(problem) < 2000
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("rounds=&a [*a]", "--set rounds=&a [*a]: line 1, column 5: not readable as YAML: *a is inside of the value that it names"),
        ("rounds=2026-13-45", "'2026-13-45' is no timestamp"),
        ("method=" + "[" * 600, "nested in more than 40 levels"),
        ("a" + ".a" * 600 + "=1", "nested in more than 40 levels"),
        ("a..b=1", "--set a..b=1: write it as a.b=value"),
        ("method={1: 2, name: fedavg}", "1 found as a key among keys that are text"),
        ("adapter={kind: lora, rank: [2, 4]}", "adapter.rank: [2, 4] found, allowed: a whole number >= 1"),
        ("adapter={kind: lora, rank: {kind: [2]}}", "adapter.rank: 'kind' found, allowed: a whole number >= 1"),
        ("seed=" + "9" * 30, "seed: a whole number of 100 bits found, allowed: at most 9223372036854775807"),
        ('name="\\ud800"', "name: a character found that no file takes, U+D800"),
        ('name="\\0"', "name: a character found that no file takes, U+0000"),
        ("name=" + "x" * 300, "name: 'xxx"),
    ],
)  # fmt: skip
def test_overrides_that_are_meant_to_hurt(change: str, says: str) -> None:
    assert says in the_problem(change)


def test_mappings_that_are_meant_to_hurt() -> None:
    circle: dict[str, Any] = {}
    circle["a"] = [circle, circle]
    assert the_problem(method=circle).startswith("method.a: nested in more than 40 levels, or inside of itself")
    bomb: Any = "x"
    for _ in range(9):
        bomb = [bomb] * 9
    assert the_problem(method=bomb).startswith("config: more than 20,000 values found")
    assert the_problem(method={None: 1}) == "method: None found as a key, allowed: text, which may be in quotes"


def test_what_is_within_the_limits_means_what_it_meant(tmp_path: Path) -> None:
    """Anchors, merge keys, both kinds of keys and a byte order mark."""
    file = tmp_path / "c.yaml"
    text = """\ufeff
name: 'é'
task: {data: digits, model: mlp}
local: {<<: {epochs: 3, batch_size: 4}, batch_size: 8}
adapter: {kind: lora, rank: {4: 0.5, '16': 0.5}}
rounds: 10
seed: 0x10
method: {name: fedprox, mu: 1e-2}
"""
    file.write_text(text, encoding="utf-8")
    config = load_config(file)
    assert isinstance(config, Config) and config.name == "é" and config.rounds == 10 and config.seed == 16
    assert (config.local.epochs, config.local.batch_size) == (3, 8)
    assert config.adapter.rank == {4: 0.5, 16: 0.5}  # type: ignore[union-attr]
    same = {"rounds": 2}
    file.write_text(yaml.safe_dump({**LEAST, "seeds": [0, 1], "arms": {"a": same, "b": same}}), encoding="utf-8")
    assert "*" in file.read_text(encoding="utf-8")
    made = load_config(file)
    assert isinstance(made, Study) and made.arms["a"].rounds == made.arms["b"].rounds == 2


@pytest.mark.parametrize(
    "arm", ["report.html", "study.yaml", "summary.json", "provenance.json", "results.parquet", "plots", "code", "Plots"]
)
def test_arms_named_as_a_studys_own_files(arm: str) -> None:
    assert the_problem(seeds=[0], arms={arm: {}, "b": {}}) == (
        f"arms: {arm!r} found, a study's folder has a file or a folder of that name; choose another"
    )


def test_an_arm_with_a_long_name() -> None:
    assert "allowed: at most 200 bytes" in the_problem(name="n" * 101, seeds=[0], arms={"a" * 100: {}})


def test_variables_without_an_end_are_soon_read() -> None:
    text = "${a:-" * 20_000
    assert variables(text, {}, []) == text and variables(text + "}", {}, [])[-5:] == "${a:-"


@pytest.mark.parametrize("source", ["x" * 300, "\0", "a/" * 3000])
def test_a_source_that_can_be_no_file(source: str) -> None:
    with pytest.raises(ConfigError, match=r"^config '"):
        load_config(source)
