"""Valid settings in any combination: each run ends with an exit code of the README and a sentence, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from rayfed import methods
from rayfed.cli import main
from rayfed.config.load import STUDY_FILES
from rayfed.config.schema import Config
from rayfed.errors import ConfigError
from rayfed.launch.preflight import load_request
from rayfed.storage.cache import CACHE
from tests.fresh import FRESH, many
from tests.tiny import make_places

QUICK = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
LONG = many(QUICK, 100)

Draw = Callable[..., Any]
few, some = st.integers(1, 3), st.sampled_from


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A small BERT, a small GPT-2 and texts; what is cached of them is the tests' own."""
    with pytest.MonkeyPatch.context() as m:
        m.setenv(CACHE, str(tmp_path_factory.mktemp("cache")))
        yield make_places(tmp_path_factory.mktemp("pretrained"), layers=1, spread=0.4)


def data_and_model(draw: Draw, places: dict[str, Path], texts: bool) -> dict[str, Any]:
    if texts:
        data = {"name": f"parquet:{places['data']}", "length": draw(some([4, 8]))}
        model = {"name": f"hf:{places[draw(some(['bert', 'gpt2']))]}", "head": draw(some(["auto", "mean"]))}
        model |= draw(st.fixed_dictionaries({}, optional={"dropout": st.booleans(), "checkpointing": st.booleans()}))
        return {"data": data, "model": model}
    kind = draw(some(["blobs", "images", "logistic"]))
    sizes = {
        "blobs": {"classes": 3, "examples": 48, "features": 4, "test": 12},
        "images": {"classes": 3, "examples": 36, "size": 8, "test": 9},
        "logistic": {"classes": 3, "examples": 60, "features": 4, "clients": 4},
    }
    model = draw(some(["linear", {"name": "mlp", "hidden": [4]}]))
    if kind == "images":
        model = draw(
            some([model, "cnn", {"name": "resnet", "width": 4}, {"name": "vit-tiny", "dim": 8, "heads": 2, "depth": 1}])
        )
    return {"data": {"name": f"synthetic:{kind}", **sizes[kind]}, "model": model}


def partition(draw: Draw) -> dict[str, Any]:
    alpha, least = {"alpha": draw(some([0.1, 1, 100]))}, {"min_examples": draw(some([1, 2, 5]))}
    return draw(
        some(
            [
                {"kind": "iid", **least},
                {"kind": "dirichlet", **alpha, **least, "over": draw(some(["clients", "labels"]))},
                {"kind": "shards", "per_client": draw(few)},
                {"kind": "quantity", **alpha, **least},
                {"kind": "longtail", **alpha, **least, "imbalance": draw(some([1, 10]))},
                {"kind": "embedding", **alpha, **least, "clusters": draw(few), "embedding": "labels", "fallback": "columns"},
                {"kind": "natural", "min_examples": 1},
            ]
        )
    )  # fmt: skip


def federation(draw: Draw) -> dict[str, Any]:
    return {
        "clients": draw(st.integers(2, 4)),
        "partition": partition(draw),
        **draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "per_round": some([1, 2, 0.5, 1.0]),
                    "participation": some(["uniform", "poisson", "cyclic"]),
                    "groups": some(
                        [
                            {"kind": "label_permutation", "count": 2},
                            {"kind": "classes", "count": 2},
                            {"kind": "rotation", "count": 4},
                        ]
                    ),
                    "holdout": some([{"kind": "clients", "fraction": 0.3}]),
                    "split": some([{"val": 0.2, "test": 0.2}, {"test": 0.0}, {"test": 0.6}]),
                    "probe": some([1, 12]),
                },
            )
        ),
    }  # fmt: skip


def local(draw: Draw) -> dict[str, Any]:
    optimizer = draw(
        some(
            [
                {"name": "sgd", "lr": draw(some([0.1, 0.5])), "momentum": draw(some([0.0, 0.9])), "weight_decay": 0.01},
                {"name": "adam", "lr": 0.01},
                {"name": "adamw", "lr": 0.01, "betas": [0.5, 0.9]},
            ]
        )
    )
    schedule = {
        "kind": draw(some(["constant", "linear", "exponential", "step", "cosine"])),
        "warmup": draw(some([0, 1, 5])),
    }
    schedule |= {"within": draw(some(["constant", "linear"]))}
    work = draw(some([{"epochs": 1}, {"steps": 1}, {"steps": 1}, {"steps": 2}]))
    buffers = draw(some(["average", "average", "frozen", "private"]))
    return {
        **work,
        "batch_size": draw(some([1, 4, 8, 64])),
        "optimizer": optimizer,
        "schedule": schedule,
        "buffers": buffers,
    }


def adapter(draw: Draw) -> dict[str, Any]:
    return draw(
        some(
            [
                {"kind": "lora", "rank": 2},
                {"kind": "lora", "rank": 4, "alpha": 4, "rslora": True, "dropout": 0.2},
                {"kind": "lora", "rank": {1: 0.5, 2: 0.5}},
                {"kind": "ia3"},
                {"kind": "bias"},
                {"kind": "head"},
                {"kind": "prompt", "tokens": 2, "init": draw(some(["random", "vocab"]))},
                {"kind": "prefix", "tokens": 2},
                {"kind": "bottleneck", "size": 2},
                {"kind": "ssf"},
                {"kind": "none"},
            ]
        )
    )  # fmt: skip


@cache
def on_lora_only() -> set[str]:
    """Return the methods that refuse a small network."""
    out = set()
    for name in methods.names():
        try:
            load_request({"task": {"data": "digits", "model": "mlp"}, "method": name})
        except ConfigError as e:
            out |= {name} if any("adapter" in p for p in e.problems) else set()
    return out


def whole_run(draw: Draw, places: dict[str, Path]) -> dict[str, Any]:
    """Return a config whose settings are all valid, if they fit one another."""
    on_lora = draw(st.integers(0, 5)) == 0
    method = draw(some(sorted(on_lora_only() if on_lora else set(methods.names()) - on_lora_only())))
    texts = on_lora or draw(st.integers(0, 7)) == 0
    rest = st.fixed_dictionaries(
        {},
        optional={
            "seed": some([0, 5]),
            "evaluate": st.fixed_dictionaries(
                {"every": few}, optional={"clients": some([1, 0.5, "all"]), "finetune_epochs": some([0, 1])}
            ),
            "resources": st.fixed_dictionaries(
                {"executor": some(["loop", "loop", "loop", "vmap", "vmap", "debug", "auto"])},
                optional={"cohort": some([1, 2, "auto"])},
            ),
            "failures": st.fixed_dictionaries({"client_error": some(["raise", "drop", "retry"])}),
            "stop": some([{"metric": "accuracy/global", "at": 0.4}, {"metric": "loss/personal", "at": 1.0}]),
        },
    )
    return {
        "name": "any",
        "rounds": draw(some([1, 1, 2])),
        "task": {**data_and_model(draw, places, texts), "dtype": draw(some(["float32", "float32", "float64"]))},
        "federation": federation(draw),
        "local": local(draw),
        "method": {"name": method, **extra(draw, method)},
        "storage": {"path": "runs", "snapshot_every": draw(few), "keep": draw(few)},
        "track": draw(some([[], [], ["tensorboard"]])),
        **(
            {"adapter": adapter(draw) if not on_lora else {"kind": "lora", "rank": draw(some([1, 2]))}} if texts else {}
        ),
        **draw(rest),
    }


def extra(draw: Draw, method: str) -> dict[str, Any]:
    """Return settings that a method needs, or may have."""
    known = methods.get(method).Settings.model_fields
    return {n: draw(few) for n in ("clusters", "experts") if n in known}


def command(*words: str) -> tuple[Any, str, str]:
    """Run a command in this process and return its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    quiet = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with quiet[0], quiet[1], mock.patch.object(sys, "argv", ["rayfed", *words]), pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, out.getvalue(), err.getvalue()


def hidden(where: Path) -> list[str]:
    """Return what was being made in a folder and is not finished."""
    return [
        str(p) for p in where.rglob("*") if p.name.startswith((".new", ".tmp")) or p.name.endswith((".part", ".tmp"))
    ]


def check_run(draw: Draw, places: dict[str, Path]) -> None:
    asked = whole_run(draw, places)
    study = draw(st.integers(0, 19)) == 0
    if study:
        asked |= {"seeds": [0], "arms": {"one": {}, "two": {"local": {"batch_size": 2}}}}
    with tempfile.TemporaryDirectory() as where, contextlib.ExitStack() as around:
        folder, temporary = Path(where) / "work", Path(where) / "tmp"
        folder.mkdir(), temporary.mkdir()
        around.callback(os.chdir, Path.cwd())
        os.chdir(folder)
        around.enter_context(mock.patch.object(tempfile, "tempdir", str(temporary)))
        around.enter_context(mock.patch.dict(os.environ, {"TMPDIR": str(temporary)}))
        if draw(st.integers(0, 19)):  # pages are slow, and have tests of their own
            around.enter_context(mock.patch("rayfed.report.write_report", lambda path: Path(path)))
        before = set(psutil.Process().children(recursive=True))
        (folder / "c.yaml").write_text(yaml.safe_dump(asked), encoding="utf-8")
        code, out, said = command("run", "c.yaml", "--local", "--json")
        assert code != 2 or not (folder / "runs").exists(), said
        if code == 0 and not study and draw(st.integers(0, 3)) == 0:
            path = Path(json.loads(out)["path"])
            more = asked["rounds"] + 1
            code, out, said = command("resume", str(path), "--local", "--json", "--set", f"rounds={more}")
        event(f"exit code {code}")
        assert code in (0, 2, 4) and "Traceback" not in said, said
        assert code == 0 or said.startswith("rayfed:"), said
        runs = folder / "runs"
        assert not hidden(runs) and not list(temporary.iterdir()), (hidden(runs), list(temporary.iterdir()))
        assert set(psutil.Process().children(recursive=True)) <= before
        assert sorted(p.name for p in folder.iterdir() if p.name != "runs") == ["c.yaml"]
        if code == 4:
            assert "rayfed resume" in said, said
        if code == 0:
            judge_run(Path(json.loads(out)["path"]))


def judge_run(path: Path) -> None:
    """Check that a finished run, or each of a study, is whole."""
    if (path / "study.yaml").is_file():
        assert all(STUDY_FILES.fullmatch(p.name) for p in path.iterdir() if p.name not in ("one", "two"))
        for inner in path.glob("*/seed-*"):
            judge_run(inner)
        return
    summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    rows = pq.read_table(path / "metrics.parquet")
    assert summary["status"] == "done" and rows.num_rows == summary["rounds"]
    assert isinstance(load_request(path / "config.yaml"), Config)


@pytest.mark.timeout(900)
@QUICK
@given(data=st.data())
def test_runs(data: Any, places: dict[str, Path]) -> None:
    check_run(data.draw, places)


@pytest.mark.slow
@pytest.mark.timeout(1500 + 10 * FRESH)
@LONG
@given(data=st.data())
def test_many_runs(data: Any, places: dict[str, Path]) -> None:
    check_run(data.draw, places)
