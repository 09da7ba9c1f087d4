"""FLoRA: what the clients learnt is in the base, exactly, and the adapter starts afresh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rayfed import methods, tree
from rayfed.adapters import lora
from tests import toy
from tests.tiny import WHOLE, Watched, descend

OnBert = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.mark.parametrize("weight", ["examples", "one"])
def test_the_base_takes_the_mean_product(on_bert: OnBert, weight: str) -> None:
    """W is W0 + 4 (the tiny LoRA's alpha / r) times both rounds' mean products, by dense sums."""
    done = toy.simulate(
        {"name": "flora", "weight": weight}, dtype="float64", executor="vmap", kind=Watched, **on_bert({})
    )
    one = toy.simulate({"name": "flora", "weight": weight}, rounds=1, dtype="float64", executor="vmap", **on_bert({}))
    task, last = done.fed.task, done.state["model"]
    starts = [done.initial["model"], one.state["model"]]
    for n in lora.pairs(starts[0]):
        name, transposed = lora.weight_of(task, n)
        want = task.frozen[name].clone()
        assert want.shape == (16, 16) and not transposed
        for start, got in zip(starts, done.fed.got, strict=True):
            p = got.examples if weight == "examples" else torch.ones_like(got.examples)
            for w, d in zip(p / p.sum(), tree.unstack(got.stacked("delta")), strict=True):
                want += 4 * w * (start[n.b] + d[n.b]) @ (start[n.a] + d[n.a])
        assert (want - task.frozen[name]).norm() > 0.01
        torch.testing.assert_close(last[name], want, rtol=1e-12, atol=1e-14)
        assert not last[n.b].any() and not torch.equal(last[n.a], starts[1][n.a])
    assert not torch.equal(starts[0][n.a], starts[1][n.a])


def test_one_client_is_served_what_it_trained(on_bert: OnBert) -> None:
    done = toy.simulate("flora", rounds=1, dtype="float64", **on_bert({**WHOLE, "federation": {"per_round": 1}}))
    fed = done.fed
    want = descend(fed, fed.drawn[0].ids[0], done.initial["model"], lambda n: True, 3, 0.5)
    x = torch.as_tensor(fed.federation.arrays["x"][:20])
    before, after = fed.task.apply(done.initial["model"], x), fed.task.apply(done.state["model"], x)
    torch.testing.assert_close(after, fed.task.apply(want, x), rtol=1e-8, atol=1e-9)
    assert (after - before).abs().max() > 0.01


@pytest.mark.parametrize("name", ["flora", "fedex_lora"])
def test_clients_train_on_the_base_that_moved(on_bert: OnBert, name: str) -> None:
    if name not in methods.names():
        pytest.skip(f"{name} is not there")
    done = toy.simulate(name, dtype="float64", kind=Watched, **on_bert(WHOLE))
    fed = done.fed
    start = toy.simulate(name, rounds=1, dtype="float64", **on_bert(WHOLE)).state["model"]
    trained, base = lora.split_trained(fed.task, start)
    assert base and all(not torch.equal(w, fed.task.frozen[k]) for k, w in base.items())
    client = fed.got[1].ids[0]
    want = descend(fed, client, start, lambda n: n in trained, 3, 0.5)
    for n, d in fed.got[1].gather("delta")[client].items():
        torch.testing.assert_close(start[n] + d, want[n], rtol=1e-8, atol=1e-10)


def test_the_shared_base_is_not_written_to_and_a_run_ends_in_a_whole_model(on_bert: OnBert, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    more = on_bert({})
    done = toy.run_folder("flora", tmp_path, executor="vmap", **more)
    fed = toy.make_fed(toy.config("flora", **more))
    plain = AutoModelForSequenceClassification.from_pretrained(done.folder.path / "model" / "hf").eval()
    x = torch.as_tensor(fed.federation.arrays["x"][:12])
    with torch.no_grad():
        want = plain(input_ids=x.clamp(min=0).long(), attention_mask=(x >= 0).long()).logits
    torch.testing.assert_close(fed.task.apply(done.state["model"], x), want, rtol=1e-4, atol=1e-5)
    before = {n: p.clone() for n, p in fed.task.frozen.items()}
    fed.task.publish(done.state["model"], tmp_path / "again")
    assert tree.same(before, fed.task.frozen) and (tmp_path / "again" / "hf" / "model.safetensors").is_file()


def test_a_merge_below_a_rounding_of_the_base_is_kept(on_bert: OnBert) -> None:
    """Four changes, each of a 25th of a bfloat16 rounding."""
    task = toy.make_fed(toy.config("flora", dtype="bf16", **on_bert({}))).task
    changes, base = {}, {}
    for n in lora.pairs(task.params_like):
        w = task.frozen[lora.weight_of(task, n)[0]]
        assert w.dtype == torch.bfloat16
        changes[n] = 0.01 * 2**-9 * w.to(torch.float64)
    for _ in range(4):
        base = lora.move_weights(task, base, changes)
    for name, w in base.items():
        first = task.frozen[name].to(torch.float64)
        assert w.dtype == torch.float32 and torch.equal(w.to(torch.bfloat16), task.frozen[name])
        went, want = w.to(torch.float64) - first, 4 * 4 * 0.01 * 2**-9 * first  # 4: alpha / r
        assert float((went - want).norm()) < 0.01 * float(want.norm())


@pytest.mark.parametrize("executor", ["loop", "vmap"])
@pytest.mark.parametrize("name", ["flora", "fedex_lora"])
def test_a_base_in_half_precision_moves_in_float32(on_bert: OnBert, tmp_path: Path, name: str, executor: str) -> None:
    from transformers import AutoModelForSequenceClassification

    more = {"executor": executor, "dtype": "bf16", "rounds": 3, **on_bert({})}
    whole = toy.run_folder(name, tmp_path / "whole", **more)
    toy.run_folder(name, tmp_path / "parts", stop_after=1, **more)
    rest = toy.run_folder(name, tmp_path / "parts", resume=True, **more)
    assert tree.same(whole.state, rest.state) and whole.rows == rest.rows
    fed = toy.make_fed(toy.config(name, **more))
    base = lora.split_trained(fed.task, whole.state["model"])[1]
    assert {p.dtype for p in whole.state["model"].values()} == {torch.float32} and len(base) == 2
    assert all(float((w - fed.task.frozen[n]).norm()) > 1e-3 for n, w in base.items())
    full = toy.simulate(name, **{**more, "dtype": "float32"})
    far = tree.sub({n: full.state["model"][n] for n in base}, base)
    went = {n: full.state["model"][n] - full.fed.task.frozen[n] for n in base}
    assert float(tree.norm(far)) < 0.3 * float(tree.norm(went))

    plain = AutoModelForSequenceClassification.from_pretrained(whole.folder.path / "model" / "hf", dtype=torch.float32)
    x = torch.as_tensor(fed.federation.arrays["x"][:12])
    with torch.no_grad():
        found = plain.eval()(input_ids=x.clamp(min=0).long(), attention_mask=(x >= 0).long()).logits
    torch.testing.assert_close(fed.task.apply(whole.state["model"], x), found, rtol=0.05, atol=0.05)


def test_bytes_are_the_wires(on_bert: OnBert) -> None:
    done = toy.simulate("flora", executor="vmap", **on_bert({}))
    adapter, base = 2 * 2 * (16 * 2) + 16 * 3 + 3, 2 * 16 * 16
    assert [r["bytes/down"] for r in done.rows] == [7 * 4 * adapter, 7 * 4 * (adapter + base)]
    assert [r["bytes/up"] for r in done.rows] == [7 * (4 * adapter + 8)] * 2
