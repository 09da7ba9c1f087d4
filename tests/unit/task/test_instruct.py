"""Instruction tuning: held against plain transformers and PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rayfed import partition, tree
from rayfed.engine.pool import LocalPool
from rayfed.engine.resident import Resident
from rayfed.errors import ConfigError
from rayfed.execute.tuning import autotune
from rayfed.execute.tuning.autotune import Timing
from rayfed.execute.tuning.kernels import Kernels
from rayfed.launch.federations import Federations
from rayfed.models.start import start_from
from rayfed.storage.events import read_events
from tests import toy
from tests.pretrained_runs import resident
from tests.records import changes

pytestmark = pytest.mark.usefixtures("fresh_cache")


@pytest.fixture
def places(record_places: dict[str, Any]) -> dict[str, Any]:
    return record_places


def simulate(c: Any, rounds: int = 2) -> tuple[Any, Any]:
    split, start, pool = partition.build(c), start_from(c), LocalPool()
    here = Resident(c, split, start, "cpu")
    pool.setup("toy", c, split, start)
    fed = toy.ToyFed(c, split, here.method, here.task, pool, "toy")
    state = fed.method.init(fed.task, 7)
    for r in range(1, rounds + 1):
        fed.begin(r, True)
        state = fed.method.round(state, fed, fed.task)
        fed.states.commit()
    return state, fed


def stirred(task: Any, key: int = 3) -> Any:
    """Parameters whose adapters do something."""
    made = task.init_params(key)
    return {n: p + 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(key)) for n, p in made.items()}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_and_loss_are_those_of_transformers(places: dict[str, Any], kind: str, attention: str) -> None:
    from transformers import AutoModelForCausalLM

    res = resident(
        toy.config(**changes(places, kind, task={"model": {"attention": attention}}, adapter={"kind": "full"}))
    )
    plain = AutoModelForCausalLM.from_pretrained(places[kind]).eval()
    params = res.task.initial
    assert {f"network.{n}" for n, _ in plain.named_parameters()} == set(params)
    x = res.data["x"][:6]
    logits, loss = res.task.apply(params, x), res.task.loss(params, {"x": x})
    scores = res.task.metrics(params, {"x": x})
    for i, row in enumerate(x.long()):
        n = int((row[0] >= 0).sum())
        labels = torch.where(row[1] >= 0, row[1], -100)[:n]
        with torch.no_grad():
            want = plain(input_ids=row[0, :n][None], labels=labels[None])
        torch.testing.assert_close(logits[i, :n], want.logits[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loss[i], want.loss, rtol=1e-5, atol=1e-6)
        answer = (labels[1:] >= 0).nonzero()[:, 0]
        hit = (want.logits[0, answer].argmax(-1) == labels[answer + 1]).float().mean()
        assert float(scores["accuracy"][i]) == pytest.approx(float(hit))
        assert float(scores["exact"][i]) == float(hit == 1)
    torch.testing.assert_close(scores["loss"], loss)


def test_the_loss_on_all_tokens_is_that_of_transformers_too(places: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    on = {a: resident(toy.config(**changes(places, task={"data": {"loss_on": a}}))) for a in ("answer", "all")}
    plain = AutoModelForCausalLM.from_pretrained(places["gpt2"]).eval()
    x, params = on["all"].data["x"][:6], on["all"].task.initial
    loss = on["all"].task.loss(params, {"x": x})
    for i, row in enumerate(x.long()):
        n = int((row[0] >= 0).sum())
        with torch.no_grad():
            want = plain(input_ids=row[0, :n][None], labels=row[0, :n][None]).loss
        torch.testing.assert_close(loss[i], want, rtol=1e-5, atol=1e-6)
    measured = [on[a].task.metrics(params, {"x": x}) for a in on]
    assert all(torch.equal(measured[0][k], measured[1][k]) for k in ("loss", "accuracy", "exact"))
    assert not torch.allclose(measured[0]["loss"], loss)
    with pytest.raises(
        ConfigError, match=r"task.data.loss_on: 'answers' found .did you mean 'answer'.*allowed: answer, all"
    ):
        toy.config(**changes(places, task={"data": {"loss_on": "answers"}}))


def test_exact_is_every_token_of_the_answer(places: dict[str, Any]) -> None:
    task = resident(toy.config(**changes(places, dtype="float64"))).task
    one, other = stirred(task), stirred(task, 4)
    x = resident(toy.config(**changes(places))).data["x"][:4].clone()
    answer = x[:, 1, 1:] >= 0
    assert int(answer.sum(1).min()) > 1
    x[:, 1, 1:] = torch.where(answer, task.apply(one, x)[:, :-1].argmax(-1).to(x.dtype), x[:, 1, 1:])
    last = int(answer[1].nonzero()[-1])
    x[1, 1, 1 + last] = (x[1, 1, 1 + last] + 1) % 32  # one token of the second record is another
    got = task.metrics(one, {"x": x})
    assert got["exact"].tolist() == [1, 0, 1, 1]
    assert got["accuracy"].tolist() == pytest.approx([1, 1 - 1 / int(answer[1].sum()), 1, 1])
    assert task.metrics(other, {"x": x})["exact"].tolist() == [0, 0, 0, 0]
    mixed = 0.75 * task.predict(one, {"x": x}) + 0.25 * task.predict(other, {"x": x})
    judged = task.judge_mean(mixed, {"x": x})
    assert judged["exact"].tolist() == pytest.approx([0.75, 0, 0.75, 0.75])
    assert set(judged) == set(task.row_measures) == {"loss", "accuracy", "exact"}


def test_padding_and_what_comes_after_change_nothing(places: dict[str, Any]) -> None:
    res = resident(toy.config(**changes(places, dtype="float64")))
    params, x = stirred(res.task), res.data["x"][:3]
    wide = torch.cat([x, torch.full((3, 2, 5), -1, dtype=x.dtype)], -1)
    torch.testing.assert_close(res.task.loss(params, {"x": wide}), res.task.loss(params, {"x": x}))
    n = int((x[0, 0] >= 0).sum())
    other = x.clone()
    other[0, 0, n - 1] = 5
    torch.testing.assert_close(res.task.apply(params, other)[0, : n - 1], res.task.apply(params, x)[0, : n - 1])


def test_scores_come_in_pieces(places: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    res = resident(toy.config(**changes(places, dtype="float64")))
    params, batch = stirred(res.task), {"x": res.data["x"][:20]}
    whole, seen = [res.task.metrics(params, batch)["loss"], res.task.predict(params, batch)], []
    monkeypatch.setattr("rayfed.task.instruct.AT_ONCE", 3 * 32 * batch["x"].shape[-1])
    apply = res.task.apply
    res.task.apply = lambda p, x: seen.append(len(x)) or apply(p, x)
    for want, got in zip(
        whole, [res.task.metrics(params, batch)["loss"], res.task.predict(params, batch)], strict=True
    ):
        torch.testing.assert_close(got, want)
    assert max(seen) == 3


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("more", [{}, {"checkpointing": True}])
def test_loop_and_vmap_and_checkpointing_agree(places: dict[str, Any], kind: str, more: dict[str, Any]) -> None:
    made = {}
    for executor, model in (("loop", {}), ("vmap", more)):
        c = toy.config(executor=executor, dtype="float64", **changes(places, kind, task={"model": model}))
        made[executor] = simulate(c)[0]["model"]
    first = resident(toy.config(dtype="float64", **changes(places, kind))).task.init_params(7)
    moved = tree.norm(tree.sub(made["loop"], first))
    assert float(moved) > 1e-3
    assert float(tree.norm(tree.sub(made["loop"], made["vmap"]))) <= 1e-9 * float(moved)


@pytest.mark.parametrize(
    ("kind", "adapter"),
    [
        ("gpt2", {"kind": "lora", "rank": 2, "targets": ["c_attn"]}),
        ("llama", {"kind": "lora", "rank": 2}),
        ("llama", {"kind": "ia3"}),
        ("gpt2", {"kind": "bias"}),
        ("gpt2", {"kind": "full"}),
    ],
)
def test_published_models_load_with_plain_libraries(
    places: dict[str, Any], tmp_path: Path, kind: str, adapter: dict[str, Any]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    changed = changes(places, kind)
    changed["adapter"] = adapter
    res = resident(toy.config(**changed))
    params = stirred(res.task)
    res.task.publish(params, tmp_path)
    if adapter["kind"] in ("lora", "ia3"):
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(places[kind]), tmp_path).eval()
    else:
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    row = res.data["x"][0].long()
    n = int((row[0] >= 0).sum())
    with torch.no_grad():
        want = plain(input_ids=row[0, :n][None]).logits[0]
    torch.testing.assert_close(res.task.apply(params, row[None])[0, :n], want, rtol=1e-5, atol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(places[kind]).eval()
    assert not torch.allclose(base(input_ids=row[0, :n][None]).logits[0], want, atol=1e-3)


@pytest.mark.parametrize("method", ["fedit", "local_only", {"name": "ifca", "clusters": 2}])
def test_every_scope_is_scored(places: dict[str, Any], method: Any) -> None:
    c = toy.config(method, **changes(places))
    state, fed = simulate(c, 1)
    row, clients = toy.Result(state, fed, []).scores()
    name = c.method.name
    scopes = {"personal", "unseen", "global", "local", *(("cluster",) if name == "ifca" else ())}
    for s in scopes:
        assert 0 < row[f"loss/{s}"] < 20 and 0 <= row[f"accuracy/{s}"] <= 1, s
    assert len(clients) == 5


def test_the_mixture_of_models_is_scored_token_by_token(places: dict[str, Any]) -> None:
    task = resident(toy.config(dtype="float64", **changes(places))).task
    x = torch.as_tensor(partition.build(toy.config(**changes(places))).arrays["x"][:4])
    models, w = [stirred(task, 1), stirred(task, 2)], [0.25, 0.75]
    mean = sum(a * task.predict(m, {"x": x}) for a, m in zip(w, models, strict=True))
    got = task.judge_mean(mean, {"x": x})
    mixed = sum(a * torch.softmax(task.apply(m, x), -1) for a, m in zip(w, models, strict=True))
    for i in range(4):
        at = (x[i, 1, 1:] >= 0).nonzero()[:, 0]
        p = mixed[i, at, x[i, 1, at + 1].long()]
        assert float(got["loss"][i]) == pytest.approx(float(-p.log().mean()), rel=1e-9)
    one = task.judge_mean(task.predict(models[0], {"x": x}), {"x": x})
    for n, v in task.metrics(models[0], {"x": x}).items():
        torch.testing.assert_close(one[n], v)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("ccvr", "features of classes"),
        ("feddf", "mean logits"),
        ("fedgen", "features of classes"),
        ("fedftg", "needs classes"),
        ({"name": "disue", "signature": "counts"}, "weighs classes"),
        ({"name": "disue", "signature": "counts", "distill": False, "clusterer": "subspace"}, "spans of inputs"),
        ("pacfl", "needs classes"),
        ("feddpa", "penultimate features"),
        ({"name": "fedoa", "pool": "head"}, "penultimate features"),
        ("fedpurel", "logits of classes"),
    ],
)
def test_methods_that_need_classes_are_refused(places: dict[str, Any], method: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Federations().of(toy.config(method, **changes(places, federation={"probe": 6})))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_last_token_of_a_record_is_its_answers_end(places: dict[str, Any], kind: str) -> None:
    """Its state in the last layer, as transformers gives it to the record alone, without padding."""
    from transformers import AutoModelForCausalLM

    res = resident(toy.config(**changes(places, kind)))
    plain = AutoModelForCausalLM.from_pretrained(places[kind]).eval()
    x = res.data["x"][:6]
    found = res.task.last_token(res.task.initial, x)  # a fresh adapter: B is 0
    lengths = {int((row[0] >= 0).sum()) for row in x}
    assert len(lengths) > 1
    for h, row in zip(found, x.long(), strict=True):
        ids = row[0, : int((row[0] >= 0).sum())]
        with torch.no_grad():
            states = plain(input_ids=ids[None], output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(h, states[0, -1], rtol=1e-5, atol=1e-5)
    moved = res.task.last_token(stirred(res.task), x)
    assert float((moved - found).abs().max()) > 1e-3


def test_fedoa_compares_the_ends_of_answers(places: dict[str, Any]) -> None:
    """The published setting: instructions, a personal adapter from the second round on, which the tie changes."""
    states = {}
    for lam in (0.0, 5.0):
        _, fed = simulate(toy.config({"name": "fedoa", "lam": lam}, **changes(places, "llama")))
        states[lam] = toy.states(fed.states)
    assert states[0.0].keys() == states[5.0].keys() and not tree.same(states[0.0], states[5.0])
    assert any(bool(own["visited"]) for own in states[5.0].values())


def test_there_are_no_features_of_a_record(places: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"method.name: fedavg reads features of whole inputs"):
        _ = resident(toy.config(**changes(places))).task.feature_size


def test_disue_without_distillation_runs(places: dict[str, Any]) -> None:
    plain = {"name": "disue", "distill": False, "clusters": 2}
    with pytest.raises(ConfigError, match=r"method.signature: head found"):
        Federations().of(toy.config(plain, **changes(places)))
    c = toy.config({**plain, "signature": "all"}, **changes(places))
    Federations().of(c)
    assert len(simulate(c, 1)[0]["experts"]) == 2


def test_bf16_halves_the_base_and_trains_in_float32(places: dict[str, Any]) -> None:
    full, half = (toy.config(dtype=d, **changes(places, "llama")) for d in ("float32", "bf16"))
    big, small = (start_from(c)["base"]["arrays"] for c in (full, half))  # type: ignore[index]
    assert tree.nbytes(small) * 2 == tree.nbytes(big)
    one, two = resident(full), resident(half)
    assert {str(p.dtype) for p in two.task.frozen.values()} == {"torch.bfloat16"}
    assert {str(p.dtype) for p in two.task.params_like.values()} == {"torch.float32"}
    params, batch = stirred(one.task), {"x": one.data["x"][:16]}
    want, got = (r.task.loss(params, batch) for r in (one, two))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)
    assert not torch.equal(got, want)


@pytest.mark.parametrize("executor", ["loop", "vmap"])
@pytest.mark.parametrize("adapter", [{"kind": "lora", "rank": 2}, {"kind": "bias"}, {"kind": "full"}])
def test_bf16_trains(places: dict[str, Any], executor: str, adapter: dict[str, Any]) -> None:
    changed = changes(places, local={"optimizer": {"lr": 0.02}, "steps": 6})
    changed["adapter"] = adapter
    c = toy.config(executor=executor, dtype="bf16", **changed)
    state, fed = simulate(c, 2)
    assert {p.dtype for p in state["model"].values()} == {torch.float32}
    x = {"x": torch.as_tensor(fed.federation.arrays["x"])}
    first = fed.task.init_params(7)
    assert float(fed.task.loss(state["model"], x).mean()) < 0.9 * float(fed.task.loss(first, x).mean())


def test_bf16_resumes_bit_by_bit(places: dict[str, Any], tmp_path: Path) -> None:
    changed = changes(places, task={"model": {"checkpointing": True}})
    whole = toy.run_folder("fedit", tmp_path / "whole", dtype="bf16", rounds=3, **changed)
    toy.run_folder("fedit", tmp_path / "parts", dtype="bf16", rounds=3, stop_after=1, **changed)
    rest = toy.run_folder("fedit", tmp_path / "parts", dtype="bf16", rounds=3, resume=True, **changed)
    assert tree.same(whole.state, rest.state) and whole.rows == rest.rows


@pytest.mark.parametrize(
    ("adapter", "units", "half", "timed", "chosen"),
    [
        ("lora", True, 0.7, ["float32", "bf16"], "bf16"),
        ("lora", True, 0.8, ["float32", "bf16"], "float32"),  # not by much: it rounds differently
        ("lora", False, 0.1, ["float32"], "float32"),
        ("full", True, 0.1, [], "float32"),  # nothing is frozen
    ],
)
def test_auto_takes_a_base_in_bfloat16_where_that_is_clearly_faster(
    places: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    adapter: str,
    units: bool,
    half: float,
    timed: list[str],
    chosen: str,
) -> None:
    """The run is the one that sets the type itself; its folder says what was chosen, and how to repeat it."""
    seen = []

    def time_executors(res: Any, cohort: int) -> Timing:
        seen.append(res.config.task.dtype)
        assert res.task.half == (seen[-1] == "bf16")
        seconds = half if seen[-1] == "bf16" else 1.0
        return Timing({"loop": seconds, "vmap": 0.01}, {"loop": Kernels(), "vmap": Kernels()}, bfloat16=units)

    monkeypatch.setattr(autotune, "time_executors", time_executors)
    changed = changes(places)
    changed["adapter"] = {"kind": "lora", "rank": 2} if adapter == "lora" else {"kind": adapter}
    method = "fedit" if adapter == "lora" else "fedavg"
    ran = toy.run_folder(method, tmp_path / "auto", dtype="auto", rounds=1, **changed)
    assert seen == timed
    (event,) = [e for e in read_events(ran.folder.path) if e["kind"] == "dtype"]
    assert (
        event["chosen"] == chosen
        and event["repeat"] == f"--set task.dtype={chosen}"
        and list(event["seconds"]) == timed
    )
    assert yaml.safe_load((ran.folder.path / "config.yaml").read_text())["task"]["dtype"] == chosen
    plain = toy.run_folder(method, tmp_path / "set", dtype=chosen, rounds=1, **changed)
    assert tree.same(ran.state, plain.state) and ran.rows == plain.rows


def gradient_and_kept(c: Any, executor: str) -> tuple[Any, int]:
    """The gradient of the loss under dropout, and the bytes that autograd keeps for its backward pass."""
    res = resident(c)
    params, batch, key = stirred(res.task), {"x": res.data["x"][:8]}, torch.tensor(5)

    def loss(p: Any) -> Any:
        return res.task.loss(p, batch, key).mean()

    found = torch.func.grad(loss)
    several = tree.stack([params, tree.scale(params, 0.5)])
    grads = torch.vmap(found)(several) if executor == "vmap" else found(params)
    sizes: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss({n: p.clone().requires_grad_(True) for n, p in params.items()})
    return grads, sum(sizes.values())


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_checkpointing_keeps_less_for_the_same_gradients(places: dict[str, Any], executor: str) -> None:
    def of(on: bool) -> tuple[Any, int]:
        more = {"task": {"model": {"checkpointing": on}}, "adapter": {"dropout": 0.2}}
        return gradient_and_kept(toy.config(dtype="float64", **changes(places, "llama", **more)), executor)

    (want, whole), (got, less) = of(False), of(True)
    for n, g in want.items():
        torch.testing.assert_close(got[n], g, rtol=1e-9, atol=1e-12)
    assert float(tree.norm(got)) > 1e-3 and less < 0.7 * whole


def test_device_map_places_layers(places: dict[str, Any]) -> None:
    for how in ("auto", {"": "cpu"}):
        with pytest.raises(ConfigError, match=r"resources.executor: vmap found, task.model.device_map"):
            toy.config(executor="vmap", **changes(places, task={"model": {"device_map": how}}))
        c = toy.config(**changes(places, task={"model": {"device_map": how}}))
        task = resident(c).task
        assert hasattr(task.layer("network"), "_hf_hook") or hasattr(task._module, "_hf_hook")  # accelerate's
        plain = resident(toy.config(**changes(places)))
        params, x = stirred(plain.task), plain.data["x"][:4]
        assert torch.equal(task.apply(params, x), plain.task.apply(params, x))
        assert tree.same(simulate(c, 1)[0], simulate(toy.config(**changes(places)), 1)[0])
    with pytest.raises(ConfigError, match=r"task.model.device_map: 'atuo' found"):
        toy.config(**changes(places, task={"model": {"device_map": "atuo"}}))
    with pytest.raises(ConfigError, match=r"task.model.checkpointing: 'yes' found"):
        toy.config(**changes(places, task={"model": {"checkpointing": "yes"}}))
