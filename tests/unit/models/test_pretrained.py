"""Pretrained transformers with adapters: trained, saved, and what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import partition, tree
from rayfed.engine.pool import LocalPool
from rayfed.engine.resident import Resident
from rayfed.errors import ConfigError
from rayfed.models.start import start_from
from tests import toy
from tests.pretrained_runs import refused, resident, simulate
from tests.tiny import KINDS, changes


@pytest.mark.parametrize("adapter", list(KINDS))
def test_loop_is_vmap(places: dict[str, Path], adapter: str) -> None:
    (first, loop, _), (_, vmap, fed) = (simulate(places, e, adapter=KINDS[adapter]) for e in ("loop", "vmap"))
    went = float(tree.norm(tree.sub(loop["model"], first["model"])))
    assert went > 1e-3
    assert float(tree.norm(tree.sub(loop["model"], vmap["model"]))) <= 1e-9 * went
    assert all((loop["model"][n] != first["model"][n]).any() for n in fed.task.head)


def test_a_decoder_too(places: dict[str, Path]) -> None:
    adapter = {"kind": "lora", "rank": 2, "targets": ["c_attn"]}
    (first, loop, _), (_, vmap, _) = (simulate(places, e, kind="gpt2", adapter=adapter) for e in ("loop", "vmap"))
    went = float(tree.norm(tree.sub(loop["model"], first["model"])))
    assert went > 1e-3 and float(tree.norm(tree.sub(loop["model"], vmap["model"]))) <= 1e-9 * went


def test_pooling_with_a_head_of_our_own(places: dict[str, Path]) -> None:
    more = {"task": {"model": {"head": "mean"}}}
    (first, loop, fed), (_, vmap, _) = (simulate(places, e, **more) for e in ("loop", "vmap"))
    assert fed.task.head == ("head.weight", "head.bias")
    went = float(tree.norm(tree.sub(loop["model"], first["model"])))
    assert float(tree.norm(tree.sub(loop["model"], vmap["model"]))) <= 1e-9 * went
    x = fed.federation.arrays["x"][:3]
    out = fed.task._module.network(
        input_ids=torch.as_tensor(np.maximum(x, 0)), attention_mask=torch.as_tensor((x >= 0).astype(np.int64))
    ).last_hidden_state
    keep = torch.as_tensor(x >= 0)[..., None].double()
    with torch.no_grad():
        want = torch.nn.functional.linear(
            (out * keep).sum(1) / keep.sum(1), fed.task._module.head.weight, fed.task._module.head.bias
        )
        torch.testing.assert_close(fed.task._module(torch.as_tensor(x)), want)


def run(places: dict[str, Path], where: Path, **more: Any) -> toy.Ran:
    toy.federation(toy.config(**changes(places)))
    return toy.run_folder("fedavg", where, executor="vmap", **changes(places, **more))


def test_a_run_resumes_to_the_same_bits_and_ends_in_pefts_format(places: dict[str, Path], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    whole = run(places, tmp_path / "a")
    part = toy.run_folder("fedavg", tmp_path / "b", executor="vmap", stop_after=1, **changes(places))
    assert part.ending.round == 1
    again = toy.run_folder("fedavg", tmp_path / "b", executor="vmap", resume=True, **changes(places))
    assert tree.same(again.state, whole.state) and again.rows == whole.rows

    model = whole.folder.path / "model"
    plain = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(places["bert"], num_labels=3), str(model)
    ).eval()
    res = resident(toy.config(**changes(places)))
    x = res.data["x"][:12]
    with torch.no_grad():
        want = plain(input_ids=x.clamp(min=0).long(), attention_mask=(x >= 0).long()).logits
    torch.testing.assert_close(res.task.apply(whole.state["model"], x), want, rtol=1e-5, atol=1e-6)

    for source in (model, whole.folder.path):  # from the adapter's folder, or from the run's
        task = resident(toy.config(**changes(places, init={"from": str(source)}))).task
        assert tree.same(task.init_params(0), whole.state["model"])
    (model / "model.safetensors").unlink()  # an adapter as PEFT alone would have written it
    task = resident(toy.config(**changes(places, init={"from": str(model)}))).task
    assert tree.same(task.init_params(0), whole.state["model"])
    other = changes(places, init={"from": str(model)}, adapter={"kind": "lora", "rank": 3, "targets": ["query"]})
    with pytest.raises(ConfigError, match=r"adapter.rank: 3 found, .* --set adapter.rank=2 --set adapter.alpha=8"):
        toy.config(**other)


def test_the_models_of_a_run_can_be_called(places: dict[str, Path], tmp_path: Path) -> None:
    from rayfed.api import Run

    ran = run(places, tmp_path / "a")
    found, task = Run(ran.folder.path), resident(toy.config(**changes(places))).task
    x = resident(toy.config(**changes(places))).data["x"][:5]
    want = task.apply(ran.state["model"], x)
    for model in (found.model(), found.model(client=0)):  # fedavg serves everyone the same
        torch.testing.assert_close(model(x), want)
        whole = model.module()
        torch.testing.assert_close(whole(x), want)
        assert len(list(whole.parameters())) > len(model)  # the frozen base is in it


def test_a_whole_model_ends_in_transformers_format(places: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    done = run(places, tmp_path, adapter={"kind": "full"})
    plain = AutoModelForSequenceClassification.from_pretrained(done.folder.path / "model" / "hf").eval()
    res = resident(toy.config(**changes(places, adapter={"kind": "full"})))
    x = res.data["x"][:5]
    with torch.no_grad():
        want = plain(input_ids=x.clamp(min=0).long(), attention_mask=(x >= 0).long()).logits
    torch.testing.assert_close(res.task.apply(done.state["model"], x), want, rtol=1e-5, atol=1e-6)


def test_models_and_data_that_do_not_fit(places: dict[str, Path]) -> None:
    assert "task.model: 'mlp' found" in refused(places, task={"model": {"name": "mlp"}}, adapter={"kind": "none"})
    assert "adapter.kind: lora found, task.model: mlp takes none" in refused(places, task={"model": {"name": "mlp"}})
    assert "task.data.length: 25 found" in refused(places, task={"data": {"length": 25}})
    assert "task.model.attention: 'eagre' found (did you mean 'eager'?)" in refused(
        places, task={"model": {"attention": "eagre"}}
    )
    data = places["data"]
    assert "'txet'" in refused(places, task={"data": {"name": f"parquet:{data}", "text": "txet", "length": 4}})


def test_methods_that_make_or_span_inputs_refuse_texts(places: dict[str, Path]) -> None:
    from rayfed.launch.federations import Federations

    for method, says in (
        ("disue", "method.inputs: generator"),
        ("fedftg", "method.inputs: generator"),
        ("pacfl", "token ids"),
    ):
        with pytest.raises(ConfigError, match=says):
            Federations().of(toy.config(method, **changes(places)))
    for spec in ({"name": "disue", "distill": False}, {"name": "disue", "inputs": "probe"}, "fedavg"):
        assert Federations().of(toy.config(spec, **changes(places, federation={"probe": 6}))).kind == "text"


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_disue_on_adapters_learns_from_a_probe(places: dict[str, Path], executor: str) -> None:
    method = {"name": "disue", "clusters": 2, "inputs": "probe", "iterations": 2}
    c = toy.config(method, executor=executor, **changes(places, federation={"probe": 12}))
    split, start, pool = partition.build(c), start_from(c), LocalPool()
    here = Resident(c, split, start, "cpu")
    pool.setup("toy", c, split, start)
    fed = toy.ToyFed(c, split, here.method, here.task, pool, "toy")
    state = fed.method.init(fed.task, 7)
    fed.begin(1)
    after = fed.method.round(state, fed, fed.task)
    assert len(after["experts"]) == 2 and "distill/student" in fed.logged
    assert all(p.shape == after["model"][n].shape for e in after["experts"].values() for n, p in e.items())
