"""Data-free distillation of text models on generated word embeddings (ours): the way into the model, where they lie, what they teach."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import keys, optimizers, partition, tree
from rayfed.distill import datafree, ensemble, generator
from rayfed.engine.resident import Resident
from rayfed.errors import ConfigError
from rayfed.launch.federations import Federations
from rayfed.models.start import start_from
from rayfed.storage import cache
from tests import toy
from tests.conformance.checks import CHECKS, Case
from tests.tiny import changes, make_places, on_bert  # noqa: F401

SHORT = {"iterations": 2, "student_steps": 2, "batch": 8, "noise": 4}
DISUE = {"name": "disue", "inputs": "embeddings", "length": 5, **SHORT}
ADAPTERS: dict[str, Any] = {
    "lora": {"kind": "lora", "rank": 2, "targets": ["query", "value"]},
    "prompt": {"kind": "prompt", "tokens": 3},
    "full": {"kind": "full"},
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_places(tmp_path_factory.mktemp("pretrained"), spread=0.4)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as m:
        m.setenv(cache.CACHE, str(tmp_path_factory.mktemp("cache")))
        yield


def resident(
    places: dict[str, Path], method: Any = DISUE, kind: str = "bert", dtype: str = "float32", **more: Any
) -> Any:
    c = toy.config(method, dtype=dtype, **changes(places, kind, **more))
    return Resident(c, partition.build(c), start_from(c), "cpu")


# -- into the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["auto", "mean"])
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_texts_own_embeddings_give_its_logits(places: dict[str, Path], kind: str, adapter: str, head: str) -> None:
    """Alone, and for several models at once under vmap with a gradient back to the embeddings."""
    made = ADAPTERS[adapter]
    if adapter == "lora":
        made = {**made, "targets": ["c_attn"] if kind == "gpt2" else ["query", "value"]}
    task = resident(places, kind=kind, adapter=made, task={"model": {"head": head}}, dtype="float64").task
    params = {n: p + 0.1 * torch.randn_like(p) for n, p in task.init_params(3).items()}
    ids = torch.randint(4, 32, (5, 6), dtype=torch.int32)
    table = next((p for n, p in params.items() if "word_embeddings" in n or "wte" in n), task._module.words.weight)
    given = table.detach()[ids.long()]
    want = task.apply(params, ids)
    torch.testing.assert_close(task.apply(params, given), want, rtol=0, atol=1e-12)

    both = tree.stack([params, tree.scale(params, 0.5)])
    got = torch.vmap(task.apply, in_dims=(0, None))(both, given)
    torch.testing.assert_close(got[0], want, rtol=0, atol=1e-12)
    assert not torch.allclose(got[1], want, atol=1e-3)
    slope = torch.func.grad(lambda x: torch.vmap(task.apply, in_dims=(0, None))(both, x).square().sum())(given)
    assert bool((slope.abs().amax((0, 2)) > 0).all())  # every place counts


def test_word_embeddings_start_where_the_words_are(places: dict[str, Path]) -> None:
    task = resident(places).task
    table = task._module.words.weight.detach().double()
    mean, deviation = task.word_spread
    torch.testing.assert_close(mean.double(), table.mean(0), rtol=0, atol=1e-7)
    torch.testing.assert_close(deviation.double(), table.std(0, unbiased=False), rtol=1e-6, atol=0)

    shape, generate, place = datafree._generates(task, datafree.DataFree(inputs="embeddings", length=5))
    g = generator.init(1, 4, 3, shape)
    z, y = torch.randn(64, 4), torch.arange(64) % 3
    x = place(generate(g, z, y, 3, shape))
    assert x.shape == (64, 5, 16)
    whitened = (x - mean) / deviation
    torch.testing.assert_close(whitened.mean(-1), torch.zeros(64, 5), rtol=0, atol=1e-5)
    torch.testing.assert_close(whitened.square().mean(-1), torch.ones(64, 5), rtol=0, atol=1e-2)
    assert float((x[1] - x[4]).abs().max()) > 1e-3  # one label, other noise
    assert float((x[:, 0] - x[:, 1]).abs().mean()) > 0.1 * float(deviation.mean())  # the words of a text differ


# -- what they teach -------------------------------------------------------------------------------------------------------


def trained(task: Any, start: Any, x: Any, y: Any, lr: float, steps: int = 60) -> Any:
    adam, slope = optimizers.adam(), torch.func.grad(lambda p: task.loss(p, {"x": x, "y": y}).mean())
    params, state = start, adam.init(start)
    for _ in range(steps):
        params, state = adam.update(slope(params), state, params, lr)
    return params


@pytest.mark.parametrize(("adapter", "lr", "share"), [("lora", 0.02, 0.9), ("full", 0.003, 0.6)])
def test_the_universal_expert_comes_closer_to_the_ensemble_on_real_texts(
    places: dict[str, Path], adapter: str, lr: float, share: float
) -> None:
    """Two experts that know two of three classes each; their mean learns from them without a single text."""
    here = resident(places, adapter=ADAPTERS[adapter])
    task, data, pool = here.task, here.data, torch.as_tensor(np.asarray(here.sampler.fed.pooled_test))
    rows = torch.arange(120)
    start = task.init_params(0)
    experts, counts = [], []
    for owns in ((0, 1), (1, 2)):
        at = rows[torch.isin(data["y"][:120], torch.tensor(owns))]
        experts.append(trained(task, start, data["x"][at], data["y"][at], lr))
        counts.append(torch.bincount(data["y"][at], minlength=3))
    average = tree.scale(tree.add(*experts), 0.5)
    alpha = ensemble.class_weights(torch.stack(counts))
    x = data["x"][pool]
    teacher = ensemble.by_class(torch.stack([task.apply(e, x) for e in experts]), alpha, 1.0)
    assert float((teacher.argmax(-1) == data["y"][pool]).float().mean()) > 0.7  # there is something to learn

    def apart(student: Any) -> float:
        return float(ensemble.kl(teacher, task.apply(student, x), 1.0).mean())

    s = datafree.DataFree(
        inputs="embeddings", length=6, iterations=10, batch=32, noise=8, student_lr=0.3, tau=1.0, generator_lr=0.01
    )
    first = datafree.init(task, 0, s)
    after, state, _ = datafree.distill(task, average, experts, torch.stack(counts), first, s, 7, 1)
    assert apart(after) < share * apart(average)
    assert not tree.same(state["g"], first["g"])


def test_switched_off_there_are_the_old_bits(places: dict[str, Path]) -> None:
    off = [{**DISUE, "distill": False}, {**DISUE, "iterations": 0}, {**DISUE, "distill_until": 0}]
    plain = simulate(places, "fedavg")["model"]
    for spec in off:
        assert tree.same(simulate(places, spec)["model"], plain)
    assert not tree.same(simulate(places, DISUE)["model"], plain)

    s = datafree.DataFree(noise=4)
    for task in (resident(places, {"name": "disue", "distill": False}).task, toy.make_fed(toy.config("disue")).task):
        key = keys.key(1, 0, -1, "generator")
        old = generator.init(key, 4, task.classes, task.input_shape, dtype=task.dtype)
        for inputs in ("generator", "probe"):
            assert tree.same(datafree.init(task, key, s.model_copy(update={"inputs": inputs}))["g"], old)


def simulate(places: dict[str, Path], spec: Any) -> Any:
    from tests import tiny

    c = toy.config(spec, **changes(places))
    fed = tiny.make_fed(c)
    state = fed.method.init(fed.task, keys.key(c.seed, 0, -1, "init"))
    for r in (1, 2):
        fed.begin(r)
        state = fed.method.round(state, fed, fed.task)
        fed.states.commit()
    return state


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_disue_on_embeddings_passes(
    check: Callable[[Case, Path], None],
    on_bert: Callable[[dict[str, Any]], dict[str, Any]],  # noqa: F811
    tmp_path: Path,
) -> None:
    check(Case({**DISUE, "clusters": 2}, on_bert({})), tmp_path)


def test_fedftg_too(places: dict[str, Path]) -> None:
    after = simulate(places, {"name": "fedftg", "inputs": "embeddings", "length": 3, **SHORT})
    assert after["generator"]["g"]["2"]["w"].shape == (3 * 16, 128)
    assert not tree.same(after["model"], simulate(places, {"name": "fedftg", "iterations": 0})["model"])


# -- what is wrong is refused -------------------------------------------------------------------------------------------------


def test_refusals(places: dict[str, Path]) -> None:
    def problem(method: Any, **more: Any) -> str:
        with pytest.raises(ConfigError) as e:
            Federations().of(toy.config(method, **more))
        return str(e.value)

    texts = changes(places)
    assert problem({**DISUE, "inputs": "generator"}, **texts) == (
        "method.inputs: generator found, it makes images or features, not texts; allowed: embeddings, probe"
    )
    for method in (DISUE, {"name": "fedftg", "inputs": "embeddings"}):
        assert problem(method) == (
            "method.inputs: embeddings found, they are of texts, which task.data does not hold; allowed: generator, probe"
        )
    assert "method.length: 25 found" in problem({**DISUE, "length": 25}, **texts)
    prompt = changes(places, adapter=ADAPTERS["prompt"])
    assert "takes at most 21 tokens next to 3 of the adapter" in problem({**DISUE, "length": 22}, **prompt)
    assert "method.inputs: 'embedding' found (did you mean 'embeddings'?)" in problem({**DISUE, "inputs": "embedding"})
    assert Federations().of(toy.config({**DISUE, "distill": False})).kind != "text"  # nothing is generated
