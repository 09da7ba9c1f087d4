"""A dozen small runs whose numbers are written down: a change of any of them is seen, wanted or not.

After a change that is wanted, write them again, and say in the commit why they moved:

    python -m tests.golden.test_golden
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import rayfed
from rayfed import cli, tree
from rayfed.storage import cache
from tests import tiny, toy

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOLERANCE = 1e-4  # relative; float32 sums differ a little from one processor to another

SHARED = """
    rounds=3 seed=7 evaluate.every=1 resources.executor=loop resources.cohort=2 resources.gpus_per_actor=0 track=[]
"""
DIGITS = """
    task={data: digits, model: {name: mlp, hidden: [16]}} local={epochs: 3, batch_size: 16, optimizer: {lr: 0.1}}
    federation={clients: 7, per_round: 4, partition: {kind: dirichlet, alpha: 1}, groups: {kind: rotation, count: 2}, holdout: clients}
"""
TEXTS = """
    task={data: {name: "parquet:INPUTS/texts", length: 8}, model: {name: "hf:INPUTS/bert"}}
    local={epochs: null, steps: 3, batch_size: 4, optimizer: {name: adamw, lr: 0.01}}
    federation={clients: 6, per_round: 4, partition: {kind: dirichlet, alpha: 1}, groups: none, holdout: none}
    adapter={kind: lora, rank: {1: 0.5, 4: 0.5}, alpha: 8, targets: [query, value]}
"""
RUNS = {  # name -> (the shared part of its settings, its own)
    "fedavg": (DIGITS, "method={name: fedavg, server_lr: 0.9}"),
    "poisson": (DIGITS, "method=fedavg federation.participation=poisson"),
    "scaffold": (DIGITS, "method=scaffold"),
    "ifca": (DIGITS, "method={name: ifca, clusters: 2}"),
    "cfl": (
        DIGITS,
        "method={name: cfl, min_round: 0, relative: false, eps_1: 9.0, eps_2: 0.0} federation.per_round=null",
    ),
    "disue": (DIGITS, "method={name: disue, clusters: 2, iterations: 3, batch: 32}"),
    "fedmerge": (DIGITS, "method={name: fedmerge, models: 2}"),
    "fedbip": (DIGITS, "method=fedbip"),
    "feddf": (DIGITS, "method={name: feddf, steps: 3, batch: 16} federation.probe=40"),
    "fedgen": (DIGITS, "method={name: fedgen, generator_steps: 3, batch: 8, noise: 4, hidden: 8}"),
    "fedit": (TEXTS, "method=fedit"),
    "hetlora": (TEXTS, "method={name: hetlora, gamma: 0.5, least: 1}"),
}


def command(name: str, inputs: Path) -> list[str]:
    """Return the arguments of `rayfed`; inputs: the folder that `make_inputs` filled."""
    settings = [w for part in (SHARED, *RUNS[name]) for line in part.split("\n") for w in _split(line)]
    return [
        "run",
        "fedavg",
        "--local",
        "--json",
        *(word for s in settings for word in ("--set", s.replace("INPUTS", str(inputs)))),
    ]


def _split(line: str) -> Iterator[str]:
    """At blanks outside braces."""
    depth, word = 0, ""
    for c in line.strip() + " ":
        depth += (c in "{[") - (c in "}]")
        if c == " " and not depth:
            if word:
                yield word
            word = ""
        else:
            word += c


def make_inputs(where: Path) -> None:
    """Write what the runs on texts read: `texts/` and a tiny `bert/` whose weights no library's initialisation decides."""
    tiny.make_texts(where / "texts")
    tiny.make_model(where / "bert", layers=1)
    rng = np.random.default_rng(0)
    weights = load_file(where / "bert" / "model.safetensors")
    drawn = {n: torch.as_tensor(rng.normal(0, 0.4, weights[n].shape), dtype=torch.float32) for n in sorted(weights)}
    save_file(drawn, where / "bert" / "model.safetensors", metadata={"format": "pt"})


def run(name: str, out: Path) -> rayfed.api.Run:
    """Run it as the command line does, in this process; out: also where its inputs are."""
    words = ["rayfed", *command(name, out), "--out", str(out / name)]
    no_pictures = mock.patch("rayfed.report.write_report")  # most of the time, and none of the numbers
    with mock.patch.object(sys, "argv", words), no_pictures:
        try:
            cli.main()
        except SystemExit as e:
            assert not e.code, name
    (path,) = (out / name).iterdir()
    return rayfed.load(path)


def run_all(out: Path) -> dict[str, rayfed.api.Run]:
    """Run all of them, quietly."""
    make_inputs(out)
    with contextlib.redirect_stdout(io.StringIO()):
        return {name: run(name, out) for name in RUNS}


def record(done: rayfed.api.Run) -> dict[str, Any]:
    """Return what is written down: every row without what the clock decides, and the norm of every final parameter: of the
    models in `model/` and of the one that client 0 is served."""
    rows = [{k: v for k, v in r.items() if not k.startswith(toy.VOLATILE)} for r in done.metrics().to_pylist()]
    models = {**{name: done.model(name) for name in done.models()}, "served to client 0": done.model(client=0)}
    norms = {"/".join((n, *p)): float(x.double().norm()) for n, model in models.items() for p, x in tree.leaves(model)}
    return {"rows": rows, "norms": norms}


def update(to: Path = HERE, runs: Path | None = None) -> None:
    """Write all records to a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ[cache.CACHE] = str(Path(scratch) / "cache")
        for name, done in run_all(runs or Path(scratch)).items():
            (to / f"{name}.json").write_text(json.dumps(record(done), indent=1) + "\n")


def differences(found: Any, golden: Any, at: str = "") -> list[str]:
    """Where two records differ by more than the tolerance, or in their keys."""
    if isinstance(golden, Mapping) and isinstance(found, Mapping):
        missing = [f"{at}{k}: only in one of the two" for k in sorted(found.keys() ^ golden.keys())]
        return missing + [d for k in golden if k in found for d in differences(found[k], golden[k], f"{at}{k}: ")]
    if isinstance(golden, list) and isinstance(found, list) and len(golden) == len(found):
        return [d for i, (f, g) in enumerate(zip(found, golden, strict=True)) for d in differences(f, g, f"{at}{i}: ")]
    if isinstance(golden, float) and isinstance(found, float):
        same = math.isclose(found, golden, rel_tol=TOLERANCE, abs_tol=1e-7)
    else:
        same = type(found) is type(golden) and found == golden
    return [] if same else [f"{at}{found!r}, golden: {golden!r}"]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process that does the same, at the same time; sets and dicts of strings have another order there."""
    out = tmp_path_factory.mktemp("elsewhere")
    code = "import sys, pathlib; from tests.golden.test_golden import update; update(*map(pathlib.Path, sys.argv[1:]))"
    env = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", code, str(out), str(out)]
    with subprocess.Popen(words, cwd=out, env=env, stderr=subprocess.PIPE, text=True) as process:
        yield process, out
        process.kill()


@pytest.fixture(scope="module")
def once(elsewhere: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, rayfed.api.Run]]:
    with pytest.MonkeyPatch.context() as m:
        m.setenv(cache.CACHE, str(tmp_path_factory.mktemp("cache")))
        yield run_all(tmp_path_factory.mktemp("golden"))


def golden(name: str) -> dict[str, Any]:
    return json.loads((HERE / f"{name}.json").read_text())


@pytest.mark.parametrize("name", RUNS)
def test_the_numbers_are_those_written_down(once: dict[str, rayfed.api.Run], name: str) -> None:
    assert not differences(record(once[name]), golden(name))


def test_another_process_gives_the_same_bits(
    once: dict[str, rayfed.api.Run], elsewhere: tuple[subprocess.Popen[str], Path]
) -> None:
    process, out = elsewhere
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    for name, first in once.items():
        (path,) = (out / name).iterdir()
        assert path.name != first.path.name
        assert json.loads((out / f"{name}.json").read_text()) == record(first)
        models = sorted(p.name for p in (first.path / "model").iterdir())
        assert sorted(p.name for p in (path / "model").iterdir()) == models
        inputs, others = (str(p.parents[1]).encode() for p in (first.path, path))  # PEFT's config names the base model
        for file in models:
            there = (path / "model" / file).read_bytes().replace(others, inputs)
            there = there.replace(path.name.encode(), first.path.name.encode())  # which the model card has
            assert there == (first.path / "model" / file).read_bytes(), file


@pytest.mark.parametrize("name", RUNS)
def test_a_changed_number_would_be_seen(name: str) -> None:
    """Every single number, moved by twice the tolerance, and every key that goes or comes."""
    whole = golden(name)
    assert not differences(copy.deepcopy(whole), whole)
    places = [(r, k) for r in whole["rows"] for k in r] + [(whole["norms"], k) for k in whole["norms"]]
    assert len(places) > 40
    for there, key in places:
        moved = copy.deepcopy(whole)
        where = moved["norms"] if there is whole["norms"] else moved["rows"][whole["rows"].index(there)]
        value = where[key]
        where[key] = value + 1 if isinstance(value, int) else value * (1 + 2 * TOLERANCE) if value else 1e-3
        assert len(differences(moved, whole)) == 1, key
        del where[key]
        assert differences(moved, whole) and differences(whole, moved)
    assert differences({**whole, "rows": whole["rows"][:-1]}, whole)
    assert differences({**whole, "rows": [{**r, "new/one": 1.0} for r in whole["rows"]]}, whole)


def test_they_differ_from_each_other() -> None:
    """Runs on the same task share everything but the method, so equal numbers would mean one that is quietly another."""
    for task, guessing in ((DIGITS, math.log(10)), (TEXTS, math.log(3))):
        losses = {n: golden(n)["rows"][-1]["loss/global"] for n, (t, _) in RUNS.items() if t is task}
        assert len(set(losses.values())) == len(losses) > 1
        assert all(math.isfinite(v) and v < 1.1 * guessing for v in losses.values()), losses


if __name__ == "__main__":
    update()
