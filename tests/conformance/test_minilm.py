"""Every method that takes LoRA on texts, and every adapter that a BERT takes, on real pretrained weights (all-MiniLM-L6-v2):
`loop` is `vmap`; and PEFT's own files in and out of the command line."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml

import rayfed
from rayfed import cli, methods, tree
from rayfed.api import Run
from rayfed.errors import ConfigError
from rayfed.launch.federations import Federations
from rayfed.methods._bases.over_lora import OverLoRA
from rayfed.storage import cache
from tests import minilm, tiny, toy

pytestmark = minilm.needed

RANKS = {"adapter": {"rank": {2: 0.5, 4: 0.25, 8: 0.25}}}
SHORT = {"iterations": 2, "student_steps": 1, "batch": 4, "noise": 4, "length": 4}
# A server's Adam divides by the size of gradients, a decomposition by gaps of singular values, a projection by a squared norm, the
# gradient of a norm by the norm: all turn float32's rounding into more than 1e-5.
EXACT = {"task": {"dtype": "float64"}}
# Settings without which a method cannot run here, or would take long; (settings, changes to the config).
SETTINGS: dict[str, Any] = {
    "ccvr": ({"when": "loop", "steps": 2}, {}),
    "cellm": ({}, EXACT),
    "disue": ({"inputs": "embeddings", "clusters": 2, **SHORT}, EXACT),
    "fedftg": ({"inputs": "embeddings", **SHORT}, EXACT),
    "lora_fair": ({"distance": "cosine", "steps": 5}, EXACT),
    "feddat": ({}, {"adapter": {"kind": "bottleneck", "size": 4}}),
    "fedins": ({"pool": 3}, {"adapter": {"kind": "ssf"}}),
    "pfedpg": ({}, {**EXACT, "adapter": {"kind": "prompt", "tokens": 3}}),
    "feddf": ({"steps": 2, "batch": 4}, {**EXACT, "federation": {"probe": 8}}),
    "fedoa": ({}, EXACT),
    "fedgen": ({"generator_steps": 2, "batch": 4, "noise": 4, "hidden": 8}, {}),
    "fedloge": ({"fixed_steps": 20}, EXACT),
    "fedpurel": ({}, EXACT),
    "federa": ({}, EXACT),
    "fedsvd": ({}, EXACT),
    "fl_tac": ({}, EXACT),
    "flexlora": ({}, EXACT),
    "gifd": ({}, {"federation": {"probe": 8}}),
    "hetlora": ({}, RANKS),
    "oracle": ({}, {"federation": {"groups": {"kind": "label_permutation", "count": 2}}}),
    "slora": ({"sparse_rounds": 1}, EXACT),
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "rank": 4},
    "ia3": {"kind": "ia3", "targets": ["key", "value", "intermediate.dense"], "feedforward": ["intermediate.dense"]},
    "prompt": {"kind": "prompt", "tokens": 3},
    "prefix": {"kind": "prefix", "tokens": 3},
    "bottleneck": {"kind": "bottleneck", "size": 4},
    "ssf": {"kind": "ssf"},
    "vpt": {"kind": "vpt"},
    "bias": {"kind": "bias"},
    "head": {"kind": "head"},
    "full": {"kind": "full"},
}
REFUSED = {"prefix": "takes no past keys and values", "vpt": "takes no images"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Short texts in Parquet."""
    root = tmp_path_factory.mktemp("minilm")
    minilm.write_texts(root / "texts")
    with pytest.MonkeyPatch.context() as m:
        m.setenv(cache.CACHE, str(root / "cache"))
        m.setattr(toy, "make_fed", tiny.make_fed)
        yield root / "texts"


def case(name: str, data: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    settings, more = SETTINGS.get(name, ({}, {}))
    return {"name": name, **settings}, minilm.changes(data, **more)


def refusal(name: str, data: Path) -> str | None:
    """What the method says against LoRA on texts, in its checks of settings and of data."""
    spec, changes = case(name, data)
    try:
        Federations().of(toy.config(spec, **changes))
    except ConfigError as e:
        return str(e)
    return None


def same(loop: toy.Result, vmap: toy.Result, tolerance: float = 1e-5) -> None:
    """Every number of server and clients agrees to `tolerance` of the largest update; whole numbers agree.

    The update of a part is from what it was before round 1, of one that came later the largest of all parts.
    """
    for a, b, first in (
        (loop.state, vmap.state, loop.initial),
        (loop.clients(), vmap.clients(), loop.initial_clients()),
    ):
        start = {p: x for p, x in tree.leaves(first)}
        ours, theirs = dict(tree.leaves(a)), dict(tree.leaves(b))
        assert ours.keys() == theirs.keys()
        went: dict[str, float] = {}
        for p, x in ours.items():
            if p in start and start[p].shape == x.shape and x.is_floating_point():
                went[p[0]] = max(went.get(p[0], 0.0), _most(x - start[p]))
        assert a is not loop.state or max(went.values(), default=0.0) > 0 or loop.clients(), "nothing moved"
        for p, x in ours.items():
            if not x.is_floating_point():
                assert torch.equal(x, theirs[p]), p
                continue
            assert bool(torch.isfinite(x).all()), p
            gap = _most(x - theirs[p])
            assert gap <= tolerance * (went.get(p[0]) or max(went.values())), f"{'/'.join(p)}: {gap:.1e} apart"


def _most(x: torch.Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


# -- methods ---------------------------------------------------------------------------------------------------------------


LORA = [n for n in methods.names() if issubclass(methods.get(n), OverLoRA)]


def _row(name: str) -> Any:
    often = name in LORA[::2] or name in ("disue", "fedavg", "ifca", "scaffold")
    return pytest.param(name, marks=[] if often else [pytest.mark.slow])


@pytest.mark.parametrize("name", [_row(n) for n in methods.names()])
def test_loop_is_vmap(name: str, data: Path) -> None:
    if why := refusal(name, data):
        assert not issubclass(methods.get(name), OverLoRA), why
        assert "texts" in why or " needs " in why, (
            why
        )  # nothing but the data, or the kind of task, may speak against it
        pytest.skip(why)
    spec, changes = case(name, data)
    same(*(toy.simulate(spec, executor=e, **changes) for e in ("loop", "vmap")))


@pytest.mark.parametrize("name", LORA)
def test_unequal_ranks_train_or_are_refused(name: str, data: Path) -> None:
    spec, changes = case(name, data)
    changes = toy.merge(changes, RANKS)
    if reason := methods.get(name).one_rank:
        with pytest.raises(ConfigError) as refused:
            toy.config(spec, **changes)
        assert "adapter.rank: 2, 4, 8 found" in str(refused.value) and reason in str(refused.value)
        return
    rounds = 1 + spec.get("sparse_rounds", 0)
    done = toy.simulate(spec, executor="vmap", rounds=rounds, **changes)
    assert sorted(set(done.fed.task.ranks.tolist())) == [2, 4, 8] and tree.finite(done.state)
    if name == "hetlora":
        same(toy.simulate(spec, executor="loop", rounds=1, **changes), done)


# -- adapters --------------------------------------------------------------------------------------------------------------


def test_every_kind_of_adapter_has_a_row() -> None:
    from typing import get_args

    from rayfed.config import schema

    kinds = {k for a in get_args(schema.Adapter) for k in get_args(a.model_fields["kind"].annotation)}
    assert kinds - {"none", "prompts"} == set(ADAPTERS)  # prompts: of two towers


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] if k == "full" else []) for k in ADAPTERS])
def test_adapters_under_fedavg(kind: str, data: Path) -> None:
    changes = {**minilm.changes(data), "adapter": ADAPTERS[kind]}
    if kind in REFUSED:
        with pytest.raises(ConfigError, match=REFUSED[kind]):
            toy.simulate("fedavg", rounds=1, **changes)
        return
    loop, vmap = (toy.simulate("fedavg", executor=e, rounds=1, **changes) for e in ("loop", "vmap"))
    same(loop, vmap)
    moved = {n for n, p in loop.state["model"].items() if not torch.equal(p, loop.initial["model"][n])}
    assert moved & set(loop.fed.task.head) and (kind == "head" or moved - set(loop.fed.task.head))


# -- PEFT's files, through the command line --------------------------------------------------------------------------------


def command(words: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    """What `rayfed WORDS --json` prints."""
    capsys.readouterr()
    with mock.patch.object(sys, "argv", ["rayfed", *words, "--json"]), mock.patch("rayfed.report.write_report"):
        try:
            cli.main()
        except SystemExit as e:
            assert not e.code, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def plain(where: Path | None, ids: torch.Tensor) -> torch.Tensor:
    """Logits of transformers' model with PEFT's adapter in `where`, under their own padding mask; no line of ours."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    made = AutoModelForSequenceClassification.from_pretrained(minilm.folder(), num_labels=4)
    with torch.no_grad():
        made = PeftModel.from_pretrained(made, str(where)).eval()
        return made(input_ids=ids.clamp(min=0).long(), attention_mask=(ids >= 0).long()).logits


def test_from_pefts_adapter_through_a_run_to_pefts_adapters(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Start: saved by plain PEFT, with all of it drawn at random. End: the run's model and each client's own."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    made = get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(minilm.folder(), num_labels=4),
        LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "value"], init_lora_weights=False),
    )
    made.save_pretrained(tmp_path / "before")
    assert not (tmp_path / "before" / "model.safetensors").exists()

    changes = minilm.changes(data)
    config = {
        **changes, "name": "minilm", "rounds": 1, "track": [], "init": {"from": str(tmp_path / "before")},
        "method": {"name": "fedsa_lora"}, "evaluate": {"every": 1},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    printed = command(["run", str(tmp_path / "run.yaml"), "--local", "--out", str(tmp_path / "runs")], capsys)
    (path,) = (tmp_path / "runs").iterdir()
    assert path.name in json.dumps(printed)
    run = rayfed.load(path)
    assert isinstance(run, Run)

    start = run._served.task.initial
    x = torch.as_tensor(np.asarray(run._served.federation.arrays["x"])[:9])
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(run._served.task.apply(start, x), plain(tmp_path / "before", x), **close)
    served = {}
    for client in (0, 3):
        where = run.save_adapter(client, tmp_path / f"client-{client}")
        served[client] = run.model(client=client)(x)
        torch.testing.assert_close(served[client], plain(where, x), **close)
    assert float((served[0] - served[3]).abs().max()) > 1e-3  # B stays at the clients

    # The whole model of a run that averages both factors, started from client 3's adapter.
    sets = ["method=fedit", f"init.from={tmp_path / 'client-3'}", "name=again"]
    more = [w for s in sets for w in ("--set", s)]
    command(["run", str(tmp_path / "run.yaml"), "--local", "--out", str(tmp_path / "again"), *more], capsys)
    (path,) = (tmp_path / "again").iterdir()
    again = rayfed.load(path)
    assert isinstance(again, Run)
    logits = again.model()(x)
    torch.testing.assert_close(logits, plain(path / "model", x), **close)
    assert 1e-3 < float((logits - served[3]).abs().max()) < math.inf
    row = again.metrics().to_pylist()[-1]
    assert math.isfinite(row["loss/global"])


def test_a_client_of_a_smaller_rank_has_a_smaller_adapter_in_peft(data: Path, tmp_path: Path) -> None:
    changes = minilm.changes(data, **RANKS)
    ran = toy.run_folder("fedit", tmp_path / "runs", executor="vmap", rounds=1, **changes)
    run = Run(ran.folder.path)
    ranks = run._served.task.ranks.tolist()
    assert sorted(set(ranks)) == [2, 4, 8]
    x = torch.as_tensor(np.asarray(run._served.federation.arrays["x"])[:6])
    for rank in (2, 8):
        client = ranks.index(rank)
        where = run.save_adapter(client, tmp_path / f"rank-{rank}")
        assert json.loads((where / "adapter_config.json").read_text())["r"] == rank
        torch.testing.assert_close(run.model(client=client)(x), plain(where, x), rtol=1e-4, atol=1e-5)
