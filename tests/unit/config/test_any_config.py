"""Configs with anything wrong in them: each is taken and read back as the same, or refused in sentences; never a traceback."""

from __future__ import annotations

import contextlib
import copy
import datetime
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from rayfed import methods
from rayfed.cli import main
from rayfed.config.load import READY, ready
from rayfed.config.schema import Adapter, Config, Study
from rayfed.errors import LENGTH, ConfigError
from rayfed.launch.preflight import load_request
from rayfed.storage.text_files import yaml_bytes
from tests.configs import CONTRACT, LEAST, STUDY
from tests.fresh import many

QUICK = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
LONG = many(QUICK, 2000)
pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def offline() -> Iterator[None]:
    """Ask no hub for models that are not here."""
    with mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True):
        yield


def fields(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every key of a section, and of every kind of it."""
    for name, field in model.model_fields.items():
        path = (*above, field.alias or name)
        yield path
        waiting = [field.annotation]
        while waiting:
            a = waiting.pop()
            if isinstance(a, type) and issubclass(a, BaseModel):
                yield from fields(a, path)
            else:
                waiting += get_args(a)


PATHS = sorted(
    {p for p in fields(Config) if "options" not in p}
    | {("adapter", n) for a in get_args(Adapter) for n in a.model_fields}
    | {("seeds",), ("arms",), ("arms", "a"), ("claim",), ("claim", "at"), ("aggregate",), ("attacks",), ("transforms",)}
    | {("method", n) for m in ("disue", "fedprox", "ifca", "hetlora") for n in methods.get(m).Settings.model_fields}
    | {("task", "data", n) for n in ("test", "features", "size")} | {("task", "model", n) for n in ("hidden", "head")}
)  # fmt: skip
EVERYWHERE = [
    p for p in PATHS
    if p[0] in ("seed", "rounds", "name", "local", "evaluate", "resources", "storage", "failures", "track")
    or p[1:2] in (("clients",), ("per_round",), ("split",), ("probe",), ("dtype",))
]  # fmt: skip
WORDS = sorted({p[-1] for p in PATHS} | {"name", "kind", "lora", "dirichlet", "natural", "loop", "all", "auto", "none"})
SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [None, True, False, 0, 1, -1, 2, 3, 7, 0.5, 1.0, -0.0, 1e-300, 1e308, float("inf"), float("nan"), 10**12, 2**63, 10**400]
    ),
    st.integers(),
    st.floats(),
    st.sampled_from(["", " ", "x" * 300, "é" * 150, "\0", "\ud800", "..", "/", "~", "${HOME}", "${NOT_SET}", "${A:-b}", "${a:-" * 9]),
    st.sampled_from(["a.py", "a.py:b", "hf:", "hf:/nowhere", "parquet:", "parquet:/nowhere", "s3://", "s3://b", "C:\\x"]),
    st.sampled_from(WORDS),
    st.text(max_size=8),
    st.sampled_from([datetime.date(2026, 11, 30), b"x", 1j, (1, 2), {1}, object, len]),
)  # fmt: skip
MILD = st.sampled_from(
    [1, 1, 2, 3, 5, 0.5, 0.9, None, True, [], [1, 2], {}, "auto", "all", "none", "1", "0.5", "é"]
)  # often right
KEYS = st.one_of(st.sampled_from(WORDS), st.text(max_size=4), st.integers(-1, 9), st.sampled_from([None, True, 1.5]))
VALUES = st.recursive(
    SCALARS,
    lambda v: st.lists(v, max_size=4) | st.dictionaries(KEYS, v, max_size=4),
    max_leaves=8,
)


def bases() -> list[dict[str, Any]]:
    """Return configs, all but one of which are valid on every machine."""
    found = [LEAST, yaml.safe_load(CONTRACT), {**yaml.safe_load(CONTRACT), **yaml.safe_load(STUDY)}]
    texts = [(READY / f"{n}.yaml").read_text(encoding="utf-8") for n in ready()]
    found += [yaml.safe_load(t) for t in texts if "hf:" not in t]
    lora = {"kind": "lora", "rank": {4: 0.5, 16: 0.5}}
    return [*found, {**LEAST, "adapter": lora}, {**LEAST, "federation": {"partition": {"kind": "natural"}}}]


BASES = bases()


def put(config: Any, path: tuple[str, ...], value: Any) -> None:
    """Put a value at a path of keys, through whatever is there."""
    for key in path[:-1]:
        if not isinstance(config.get(key), dict):
            config[key] = {"name": config[key]} if isinstance(config.get(key), str) else {}
        config = config[key]
    config[path[-1]] = value


@st.composite
def mutated(draw: Callable[..., Any]) -> dict[str, Any]:
    """Return a valid config with up to three changes."""
    config = copy.deepcopy(draw(st.sampled_from(BASES)))
    odd = draw(st.booleans())
    for _ in range(draw(st.integers(1, 3) if odd else st.just(1))):
        path = draw(st.sampled_from(PATHS))
        how = draw(
            st.sampled_from([*["value"] * 9, "deeper", "typo", "typo", "list", "list", "circle", "deep", "many"])
        )
        if not odd:
            put(config, draw(st.sampled_from(EVERYWHERE)), draw(MILD))
        elif how == "value":
            put(config, path, draw(VALUES))
        elif how == "deeper":
            put(config, (*path, str(draw(KEYS))), draw(VALUES))
        elif how == "typo":
            put(config, (*path[:-1], path[-1][:-1] + draw(st.sampled_from(["", "x", "_"]))), draw(SCALARS))
        elif how == "list":
            put(config, path, [draw(VALUES)])
        elif how == "circle":
            node: dict[str, Any] = {}
            node["a"] = draw(st.sampled_from([node, [node, node], config]))
            put(config, path, node)
        else:
            value: Any = draw(SCALARS)
            for _ in range(600 if how == "deep" else 5):
                value = {"a": value} if how == "deep" else [value] * 9
            put(config, path, value)
    return config


CHANGES = st.one_of(
    st.tuples(st.sampled_from(PATHS).map(".".join), SCALARS | VALUES).map(lambda c: f"{c[0]}={c[1]}"),
    st.tuples(st.sampled_from(PATHS).map(".".join), st.text("[]{}:,&*!|>'\"%@`\\ \n\t-0189.eab=#~<é", max_size=12)).map("=".join),
    st.text(max_size=12),
    st.sampled_from(["a" + ".a" * 600 + "=1", "rounds=" + "[" * 600, "rounds=&a [*a]", "seed=2026-13-45", "adapter.rank=[2, 4]"]),
)  # fmt: skip

SETS = st.one_of(
    st.just([]), st.just([]), 
    st.lists(st.tuples(st.sampled_from(EVERYWHERE).map(".".join), MILD).map(lambda c: f"{c[0]}={c[1]}"), max_size=1),
    st.lists(CHANGES, max_size=2),
)  # fmt: skip


def same(made: Config | Study) -> None:
    """Check that what was taken reads back as it was from where a run keeps it."""
    again = yaml.safe_load(yaml_bytes(made.to_dict()))
    found = load_request(again)
    if isinstance(made, Study):
        assert isinstance(found, Study) and found.seeds == made.seeds
        assert [yaml_bytes(c.to_dict()) for _, _, c in found.runs()] == [
            yaml_bytes(c.to_dict()) for _, _, c in made.runs()
        ]
        assert all(len(os.fsencode(c.name)) <= 201 for _, _, c in made.runs())
    else:
        assert yaml_bytes(found.to_dict()) == yaml_bytes(made.to_dict())  # NaN is not equal to itself


def check_mapping(draw: Callable[..., Any]) -> None:
    config, sets = draw(mutated()), draw(SETS)
    try:
        made = load_request(config, sets)
    except ConfigError as e:
        assert e.exit_code == 2 and e.problems and all(": " in p and len(p) <= LENGTH for p in e.problems), e.problems
        event("refused")
    else:
        event("taken")
        same(made)


@QUICK
@given(st.data())
def test_mappings(data: Any) -> None:
    check_mapping(data.draw)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@LONG
@given(st.data())
def test_many_mappings(data: Any) -> None:
    check_mapping(data.draw)


# -- files ---------------------------------------------------------------------------------------------------------------

PIECES = [
    "a: &a [x, *a]\n", "b: &b {c: *b}\n", "<<: *a\n", "<<: {rounds: 2}\n", "? [1, 2]\n: 3\n", "? {a: 1}\n: 3\n", "1: 2\n", "on: 1\n",
    "null: 1\n", "seed: 2026-13-45\n", "seed: 2026-11-30\n", "seed: 0o9\n", "seed: 0x\n", "seed: 1_000\n", "seed: 190:20:30\n",
    "seed: !!int x\n", "seed: !!float ''\n", "name: !!binary x\n", "name: !!python/object:os.system x\n", "x: !!set {a}\n",
    "x: !!omap [a: 1]\n", "name: |\n", "name: >-\n  a\n   b\n", "---\n", "...\n", "%YAML 9.9\n", "\t", "'",
    '"', "{", "[", "]", "}", "\ufeff",
    "name: \"\\0\"\n", "name: \"\\ud800\"\n", "- a\n", "rounds: 1e1\n", "rounds: 1e400\n", "rounds: " + "9" * 5000 + "\n",
    "#" * 2000 + "\n",
    "method: " + "{a: " * 600 + "}" * 600 + "\n", "x: &x [" + "y, " * 50 + "]\nz: &z [" + "*x, " * 50 + "]\nw: [" + "*z, " * 50 + "]\n",
    "rounds: 2\n", "local: {epochs: 2}\n", "arms: {report.html: {}, a: {}}\n", "arms: {plots: {}}\n", "seeds: [1, 1]\n",
]  # fmt: skip


def check_file(draw: Callable[..., Any]) -> None:
    """Validate a file by the command: it prints the config, or says what is wrong and ends with 2."""
    text = yaml.safe_dump(draw(st.sampled_from(BASES)), sort_keys=False, allow_unicode=True)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        if draw(st.booleans()):
            at = text.rfind("\n", 0, at) + 1
        end = at + draw(st.sampled_from([0, 0, 1, 3, 20]))
        text = text[:at] + draw(st.sampled_from(PIECES) | st.text(max_size=3)) + text[end:]
    content = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)) == 0 and content:
        at = draw(st.integers(0, len(content) - 1))
        content = content[:at] + draw(st.binary(max_size=2)) + content[at:]
    sets = [w for s in draw(SETS) for w in ("--set", s)]
    with tempfile.TemporaryDirectory() as where:
        file = Path(where) / "c.yaml"
        file.write_bytes(content)
        out, err = io.StringIO(), io.StringIO()
        quiet = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        words = mock.patch.object(sys, "argv", ["rayfed", "validate", "--settings", str(file), *sets])
        with words, quiet[0], quiet[1], pytest.raises(SystemExit) as ended:
            main()
        event(f"exit code {ended.value.code}")
        said = err.getvalue()
        assert ended.value.code in (0, 2) and "Traceback" not in said, said
        if ended.value.code:
            assert said.startswith("rayfed:") and not out.getvalue()
        else:
            same(load_request(yaml.safe_load(out.getvalue())))
        assert [p.name for p in Path(where).iterdir()] == ["c.yaml"]


@QUICK
@given(st.data())
def test_files(data: Any) -> None:
    check_file(data.draw)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@LONG
@given(st.data())
def test_many_files(data: Any) -> None:
    check_file(data.draw)
