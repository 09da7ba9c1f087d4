"""The ready configs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import rayfed
from rayfed.config.load import READY, ready
from rayfed.config.schema import Config, Study
from rayfed.launch import system_pages
from rayfed.launch.preflight import load_request
from tests.tiny import make_places
from tests.tiny_lm import make_data, make_lm


@pytest.fixture(scope="module", autouse=True)
def shelves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the ready configs' variables stand for."""
    root = tmp_path_factory.mktemp("shelves")
    make_data(root / "records")
    make_lm(root / "lm", "gpt2")
    made = make_places(root)
    with pytest.MonkeyPatch.context() as m:
        m.setenv("RAYFED_INSTRUCTIONS", f"parquet:{root / 'records'}")
        m.setenv("RAYFED_LM", str(root / "lm"))
        m.setenv("RAYFED_DATA", f"parquet:{made['data']}")
        m.setenv("RAYFED_MODEL", str(made["bert"]))
        yield


@pytest.mark.parametrize("name", ready())
def test_ready_configs_are_valid_and_begin_with_the_command_that_runs_them(name: str) -> None:
    assert isinstance(load_request(name), Config | Study)
    lines = (READY / f"{name}.yaml").read_text().splitlines()
    assert lines[0].split() == ["#", "rayfed", "run", name]
    for line in (x for x in lines if x.startswith("# rayfed run")):
        words = shlex.split(line.partition("     (")[0])
        load_request(words[3], [words[i + 1] for i, w in enumerate(words) if w == "--set"])


PICTURES = ["task.data={name: synthetic:images, size: 8, examples: 300, test: 50}", "local.batch_size=32"]
SMALL = ["rounds=2", "evaluate={every: 2}", "resources.executor=loop", "resources.actors=1", "track=[]"]


OWN = (  # rows of a kind that pictures are not: with clients, domains, items, pairs, problems, classes that have names
    "chest-radiograph-ssl", "coaction", "copsl", "creamfl", "dpc", "fed-e4rag", "fedagain", "fedka", "fedmac", "fedpipe", "fedrecsys",
    "fedsto", "fets-challenge", "ha-fedformer", "mao",
)  # fmt: skip
LONG = (  # many steps of a language model, adapters of many kinds, a search for each picture, deep networks, distilled pictures, two towers
    "disue_families", "dpc", "mao", "federatedscope-llm", "fed-llm-survey", "frag", "fedlora-survey", "fednano", "gifd", "fedloge",
    "fedagain", "fedlgd", "fedpipe", "fedsto", "fets-challenge", "franca", "ha-fedformer", "madaug",
    "elsa", "datafree-mosaic", "fedpeft", "fedit-shepherd", "feddat", "sfprompt", "creamfl",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in system_pages.names()]
)
def test_every_system_runs_on_other_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds, all arms in this process. Pictures come in by `--set task.data=...` alone; systems of language models
    and of other kinds of rows run on what they bring."""
    texts = "template" in (READY / f"{name}.yaml").read_text()
    one = isinstance(load_request(name), Config)
    sets = [
        *SMALL,
        *(["local.batch_size=2", "local.epochs=null", "local.steps=1"] if texts else [] if name in OWN else PICTURES),
        *([] if one else ["seeds=[0]"]),
    ]
    monkeypatch.setattr("rayfed.report.write_report", lambda *a, **k: None)  # pictures take longer than the runs
    made = rayfed.run(name, sets=sets, local=True, out=tmp_path)
    runs = {"run": made} if isinstance(made, rayfed.Run) else {arm: found[0] for arm, found in made.arms.items()}
    request = load_request(name, sets)
    assert isinstance(request, Config) or runs.keys() == request.arms.keys()
    for arm, run in runs.items():
        assert run.summary is not None and run.summary["status"] == "done", arm
        assert math.isfinite(run.metrics()["loss/personal"].to_pylist()[-1]), arm
