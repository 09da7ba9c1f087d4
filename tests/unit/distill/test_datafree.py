"""The loop of data-free distillation against plain autograd, on a public probe set, and on generated word embeddings of texts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rayfed import keys, optimizers, tree
from rayfed.distill import datafree, ensemble, generator
from rayfed.distill.datafree import DataFree
from rayfed.launch.federations import Federations
from tests import toy
from tests.configs import refusal
from tests.conformance.checks import CHECKS, Case
from tests.pretrained_runs import resident
from tests.tiny import changes, make_places, on_bert  # noqa: F401
from tests.unit.distill.draws import COUNTS, rng

KEY = 17


@pytest.fixture(scope="module")
def task() -> Any:
    return toy.make_fed(toy.config(dtype="float64")).task


def models(task: Any, n: int, first: int = 1) -> list[tree.Tree]:
    return [tree.scale(task.fresh_params(k), 2.0) for k in range(first, first + n)]


def settings(**changes: Any) -> DataFree:
    short = {"iterations": 3, "generator_steps": 2, "student_steps": 2, "batch": 8, "noise": 4, "student_lr": 0.2}
    return DataFree(**{**short, **changes})


def distil(
    task: Any, s: DataFree, student: tree.Tree, experts: list[tree.Tree], state: tree.Tree | None = None, **more: Any
) -> tuple[tree.Tree, tree.Tree, dict[str, float]]:
    state = state or datafree.init(task, 5, s)
    args = {"counts": COUNTS[: len(experts)], "key": KEY, "round": 1, **more}
    return datafree.distill(task, student, experts, state=state, s=s, **args)


def mlp(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    h = F.relu(F.linear(x, p["body.0.weight"], p["body.0.bias"]))
    return F.linear(h, p["head.weight"], p["head.bias"])


def by_autograd(
    s: DataFree, student: tree.Tree, experts: list[tree.Tree], g: tree.Tree, counts: torch.Tensor, round: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The D-phase as one would write it with modules, `backward` and torch's optimizers."""
    draw = keys.torch_generator(KEY)
    n = counts.numpy().astype(float)
    power = np.where(n > 0, np.maximum(n, 1) ** s.gamma, 0)
    alpha = torch.as_tensor(power / np.maximum(power.sum(0), 1e-9))
    pooled = n.sum(0)
    p = (n / n.sum(1, keepdims=True)).mean(0) if s.sampler == "group" else np.where(pooled > 0, pooled**s.rho, 0)
    net = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 8), nn.Sigmoid())
    net = net.double()
    net.load_state_dict(dict(zip(net.state_dict(), (x.clone() for x in tree.values(g)))))
    theta = {k: v.clone().requires_grad_() for k, v in student.items()}
    adam = torch.optim.Adam(net.parameters(), s.generator_lr)
    sgd = torch.optim.SGD(theta.values(), s.student_lr * s.student_decay ** (round - 1))

    def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y = torch.multinomial(torch.as_tensor(p / p.sum()), s.batch, True, generator=draw)
        z = torch.randn(s.batch, s.noise, generator=draw, dtype=torch.float64)
        return y, z, net(torch.cat([z, F.one_hot(y, 4).double()], 1))

    def teach(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if s.mix == "logit":
            return sum(alpha[k, y][:, None] * mlp(e, x) for k, e in enumerate(experts))
        return s.tau * torch.log(
            sum(alpha[k, y][:, None] * F.softmax(mlp(e, x) / s.tau, 1) for k, e in enumerate(experts))
        )

    def apart(q: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
        rows = F.kl_div(F.log_softmax(f / s.tau, 1), F.log_softmax(q / s.tau, 1), reduction="none", log_target=True)
        return s.tau**2 * rows.sum(1)

    for _ in range(s.iterations):
        for _ in range(s.generator_steps):
            y, z, x = batch()
            q, f = teach(x, y), mlp(theta, x)
            if s.adversary == "l1":
                against = -sum(
                    (alpha[k, y] * (f - mlp(e, x).detach()).abs().mean(1)).mean() for k, e in enumerate(experts)
                )
            else:
                rows = apart(q, f)
                if s.adversary == "selective":
                    rows = rows * ((q.argmax(1) == y) & (f.argmax(1) != y))
                against = -rows.mean()
            loss = s.fidelity * F.nll_loss(F.log_softmax(q, 1), y) + s.adversarial * against
            far = (z[:, None] - z[None]).square().mean(2) * (x[:, None] - x[None]).abs().mean(2)
            loss = loss + s.diversity * torch.exp(-far.mean())
            adam.zero_grad()
            loss.backward()
            adam.step()
        for _ in range(s.student_steps):
            y, _, x = batch()
            x = x.detach()
            f = mlp(theta, x)
            loss = (
                apart(teach(x, y), f).mean() / 4 + s.cross_entropy * F.cross_entropy(f, y) / 4
            )  # over the classes too
            sgd.zero_grad()
            loss.backward()
            sgd.step()
    return [v.detach() for v in theta.values()], [v.detach() for v in net.parameters()]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mix": "logit", "adversary": "l1", "sampler": "group", "gamma": 0.5},
        {"adversary": "selective", "rho": 0.0, "cross_entropy": 0.3, "student_decay": 0.5, "tau": 4.0},
        {"fidelity": 0.2, "adversarial": 2.0, "diversity": 3.0, "generator_lr": 0.01, "student_lr": 1.2},
    ],
)
def test_the_loop_is_plain_autograd(task: Any, changes: dict[str, Any]) -> None:
    s = settings(**changes)
    student, experts = models(task, 1, 9)[0], models(task, 3)
    state = datafree.init(task, 5, s)
    theta, after, losses = distil(task, s, student, experts, state, round=3)
    want_theta, want_g = by_autograd(s, student, experts, state["g"], COUNTS, 3)
    for mine, want in zip([*tree.values(theta), *tree.values(after["g"])], [*want_theta, *want_g]):
        torch.testing.assert_close(mine, want, rtol=0, atol=1e-10)
    assert float(tree.norm(tree.sub(theta, student))) > 1e-3
    assert all(math.isfinite(v) for v in losses.values()) and losses["adversarial"] < 0


def test_deterministic_from_its_key(task: Any) -> None:
    s, student, experts = settings(), models(task, 1, 9)[0], models(task, 3)
    a, b, c = (distil(task, s, student, experts, key=k) for k in (KEY, KEY, KEY + 1))
    assert tree.same(a[0], b[0]) and tree.same(a[1], b[1]) and a[2] == b[2]
    assert not tree.same(a[0], c[0])


def test_nothing_given_is_written_to(task: Any) -> None:
    s, student, experts = settings(generator_ema=0.5), models(task, 1, 9)[0], models(task, 3)
    state = datafree.init(task, 5, s)
    given = {"student": student, "experts": dict(zip("abc", experts)), "state": state}
    before = tree.map(torch.clone, given)
    after = distil(task, s, student, experts, state)
    assert tree.same(given, before)
    assert not any(p.requires_grad for t in after[:2] for p in tree.values(t))


def test_student_steps_leave_the_generator_alone(task: Any) -> None:
    s = settings(generator_steps=0)
    student, state = models(task, 1, 9)[0], datafree.init(task, 5, s)
    theta, after, losses = distil(task, s, student, models(task, 3), state)
    assert tree.same(after, state) and not tree.same(theta, student) and set(losses) == {"student"}


def test_generator_steps_leave_the_student_alone(task: Any) -> None:
    s = settings(student_steps=0)
    student, state = models(task, 1, 9)[0], datafree.init(task, 5, s)
    theta, after, losses = distil(task, s, student, models(task, 3), state)
    assert tree.same(theta, student) and set(losses) == {"fidelity", "adversarial", "diversity"}
    assert all(not torch.equal(a, b) for a, b in zip(tree.values(after["g"]), tree.values(state["g"])))
    assert float(after["adam"]["t"]) == 6


def test_no_iterations_are_a_no_op(task: Any) -> None:
    s = settings(iterations=0)
    student, state = models(task, 1, 9)[0], datafree.init(task, 5, s)
    theta, after, losses = distil(task, s, student, models(task, 3), state)
    assert tree.same(theta, student) and tree.same(after, state) and losses == {}


@pytest.mark.parametrize("term", ["fidelity", "adversarial", "diversity"])
def test_each_term_alone_moves_the_generator(task: Any, term: str) -> None:
    """Fidelity and disagreement reach it through frozen experts; without any term it stays to the bit."""
    none: dict[str, Any] = {"fidelity": 0, "adversarial": 0, "diversity": 0, "iterations": 1, "student_steps": 0}
    student, experts, state = models(task, 1, 9)[0], models(task, 3), datafree.init(task, 5, settings())
    still = distil(task, settings(**none), student, experts, state)[1]
    moved = distil(task, settings(**{**none, term: 1}), student, experts, state)[1]
    assert tree.same(still["g"], state["g"])
    assert all(not torch.equal(a, b) for a, b in zip(tree.values(moved["g"]), tree.values(state["g"])))


def test_the_generator_learns_its_labels(task: Any) -> None:
    """On fidelity alone, the ensemble's cross-entropy against the drawn label falls."""
    s = settings(
        iterations=1, generator_steps=60, batch=32, student_steps=0, adversarial=0, diversity=0, generator_lr=0.01
    )
    student, experts = models(task, 1, 9)[0], [tree.scale(e, 3.0) for e in models(task, 3)]
    first = distil(task, s.model_copy(update={"generator_steps": 1}), student, experts)[2]
    assert distil(task, s, student, experts)[2]["fidelity"] < 0.8 * first["fidelity"]


@pytest.mark.parametrize("mix", ["prob", "logit"])
@pytest.mark.parametrize("k", [1, 3])
def test_equal_experts_have_nothing_to_teach_their_equal(task: Any, mix: str, k: int) -> None:
    """Also K = 1: loss and gradient are zero, so plain SGD stays where it is; another student does move."""
    (expert,) = models(task, 1)
    theta, _, losses = distil(task, settings(mix=mix, iterations=5), expert, [expert] * k)
    torch.testing.assert_close(tree.flatten(theta), tree.flatten(expert), rtol=0, atol=1e-12)
    assert losses["student"] == pytest.approx(0, abs=1e-12)
    (other,) = models(task, 1, 9)
    taught = distil(task, settings(mix=mix, iterations=5), other, [expert] * k)[0]
    assert float(tree.norm(tree.sub(taught, other))) > 1e-3


def test_order_of_experts_changes_only_rounding(task: Any) -> None:
    s, student, experts = settings(), models(task, 1, 9)[0], models(task, 3)
    order = [2, 0, 1]
    a = distil(task, s, student, experts)[0]
    b = distil(task, s, student, [experts[i] for i in order], counts=COUNTS[order])[0]
    torch.testing.assert_close(tree.flatten(a), tree.flatten(b), rtol=0, atol=1e-11)


def test_student_decay_is_per_round(task: Any) -> None:
    """One student step; its length in round 3 is the square of the decay times that in round 1."""
    s = settings(iterations=1, student_steps=1, student_decay=0.5)
    student, experts = models(task, 1, 9)[0], models(task, 3)
    one, three = (tree.sub(distil(task, s, student, experts, round=r)[0], student) for r in (1, 3))
    torch.testing.assert_close(tree.flatten(three), tree.flatten(one) / 4, rtol=0, atol=1e-14)


def test_averaged_generator(task: Any) -> None:
    """ema = d ema + (1 - d) g; the first student step still sees g, the second the average."""
    student, experts = models(task, 1, 9)[0], models(task, 3)

    def go(steps: int, d: float) -> tuple[tree.Tree, tree.Tree]:
        s = settings(iterations=1, generator_steps=1, student_steps=steps, generator_ema=d, generator_lr=0.1)
        return distil(task, s, student, experts)[:2]

    g0 = datafree.init(task, 5, settings())["g"]
    (one, with_ema), (plain, without) = go(1, 0.75), go(1, 0.0)
    assert tree.same(with_ema["g"], without["g"]) and "ema" not in without
    want = tree.add(tree.scale(g0, 0.75), without["g"], 0.25)
    torch.testing.assert_close(tree.flatten(with_ema["ema"]), tree.flatten(want), rtol=0, atol=1e-14)
    assert tree.same(one, plain)
    assert not tree.same(go(2, 0.75)[0], go(2, 0.0)[0])


def on_probe(task: Any, experts: list[Any], counts: torch.Tensor, **changes: Any) -> tuple[Any, Any, Any]:
    s = DataFree(inputs="probe", iterations=4, **changes)
    state = datafree.init(task, 3, s)
    x = torch.randn(40, *task.input_shape, generator=rng(5), dtype=task.dtype)
    student = task.fresh_params(1)
    return student, state, datafree.distill(task, student, experts, counts, state, s, 7, 1, x)


def test_probe_rows_teach_the_student_and_leave_the_generator(task: Any) -> None:
    experts = [task.fresh_params(k) for k in (11, 12)]
    counts = torch.randint(1, 9, (2, task.classes), generator=rng(1))
    student, state, (taught, after, losses) = on_probe(task, experts, counts, student_lr=2.0)
    again = on_probe(task, experts, counts, student_lr=2.0)[2]
    assert tree.same(after, state) and tree.same(taught, again[0])
    x = torch.randn(200, *task.input_shape, generator=rng(6), dtype=task.dtype)
    target = ensemble.by_class(torch.stack([task.apply(e, x) for e in experts]), ensemble.class_weights(counts), 2.0)
    before, now = (float(ensemble.kl(target, task.apply(p, x), 2.0).mean()) for p in (student, taught))
    assert now < 0.9 * before and losses["student"] > 0


def test_on_probe_rows_too_one_expert_teaches_itself_nothing(task: Any) -> None:
    me = task.fresh_params(1)
    student, _, (taught, _, losses) = on_probe(task, [me], torch.ones(1, task.classes, dtype=torch.int64))
    assert tree.same(student, me) and losses["student"] < 1e-6
    assert float(tree.norm(tree.sub(taught, me))) < 1e-4


def test_only_shared_classes_are_drawn(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    draw = ensemble.draw_labels

    def watched(*a: Any) -> torch.Tensor:
        y = draw(*a)
        seen.update(y.tolist())
        return y

    monkeypatch.setattr(ensemble, "draw_labels", watched)
    counts = torch.zeros(2, task.classes, dtype=torch.int64)
    counts[0, :2], counts[1, 1:3] = 5, 5
    experts, s = [task.fresh_params(k) for k in (11, 12)], DataFree(classes="shared", iterations=3)
    state, start = datafree.init(task, 3, s), task.fresh_params(1)
    taught = datafree.distill(task, start, experts, counts, state, s, 7, 1)[0]
    assert seen == {1} and not tree.same(taught, start)
    counts[1, 1] = 0  # now nothing is shared
    assert tree.same(datafree.distill(task, start, experts, counts, state, s, 7, 1)[0], start)


# -- on generated word embeddings (ours) -------------------------------------------------------------------------------

SHORT = {"iterations": 2, "student_steps": 2, "batch": 8, "noise": 4}
DISUE = {"name": "disue", "inputs": "embeddings", "length": 5, **SHORT}
ADAPTERS: dict[str, Any] = {
    "lora": {"kind": "lora", "rank": 2, "targets": ["query", "value"]},
    "prompt": {"kind": "prompt", "tokens": 3},
    "full": {"kind": "full"},
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, file_cache: None) -> dict[str, Path]:
    return make_places(tmp_path_factory.mktemp("pretrained"), spread=0.4)


def on_texts(places: dict[str, Path], method: Any = DISUE, **more: Any) -> Any:
    return resident(toy.config(method, **changes(places, **more)))


def test_word_embeddings_start_where_the_words_are(places: dict[str, Path]) -> None:
    task = on_texts(places).task
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
    here = on_texts(places, adapter=ADAPTERS[adapter])
    task, data, rows = here.task, here.data, torch.arange(120)
    pooled = torch.as_tensor(np.asarray(here.sampler.fed.pooled_test))
    start = task.init_params(0)
    experts, counts = [], []
    for owns in ((0, 1), (1, 2)):
        at = rows[torch.isin(data["y"][:120], torch.tensor(owns))]
        experts.append(trained(task, start, data["x"][at], data["y"][at], lr))
        counts.append(torch.bincount(data["y"][at], minlength=3))
    average = tree.scale(tree.add(*experts), 0.5)
    alpha = ensemble.class_weights(torch.stack(counts))
    x = data["x"][pooled]
    teacher = ensemble.by_class(torch.stack([task.apply(e, x) for e in experts]), alpha, 1.0)
    assert float((teacher.argmax(-1) == data["y"][pooled]).float().mean()) > 0.7  # there is something to learn

    def apart(student: Any) -> float:
        return float(ensemble.kl(teacher, task.apply(student, x), 1.0).mean())

    s = datafree.DataFree(
        inputs="embeddings", length=6, iterations=10, batch=32, noise=8, student_lr=0.3, tau=1.0, generator_lr=0.01
    )
    first = datafree.init(task, 0, s)
    after, state, _ = datafree.distill(task, average, experts, torch.stack(counts), first, s, 7, 1)
    assert apart(after) < share * apart(average)
    assert not tree.same(state["g"], first["g"])


def test_switched_off_it_is_fedavg_to_the_bit(places: dict[str, Path]) -> None:
    off = [{**DISUE, "distill": False}, {**DISUE, "iterations": 0}, {**DISUE, "distill_until": 0}]
    plain = simulate(places, "fedavg")["model"]
    for spec in off:
        assert tree.same(simulate(places, spec)["model"], plain)
    assert not tree.same(simulate(places, DISUE)["model"], plain)

    s = datafree.DataFree(noise=4)
    for task in (on_texts(places, {"name": "disue", "distill": False}).task, toy.make_fed(toy.config("disue")).task):
        key = keys.key(1, 0, -1, "generator")
        old = generator.init(key, 4, task.classes, task.input_shape, dtype=task.dtype)
        assert tree.same(datafree.init(task, key, s)["g"], old)
        assert datafree.init(task, key, s.model_copy(update={"inputs": "probe"})) == {}


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


def test_fedftg_makes_embeddings_too(places: dict[str, Path]) -> None:
    after = simulate(places, {"name": "fedftg", "inputs": "embeddings", "length": 3, **SHORT})
    assert after["generator"]["g"]["2"]["w"].shape == (3 * 16, 128)
    assert not tree.same(after["model"], simulate(places, {"name": "fedftg", "iterations": 0})["model"])


def test_data_and_lengths_that_do_not_fit_are_refused(places: dict[str, Path]) -> None:
    def problem(method: Any, **more: Any) -> str:
        return refusal(lambda: Federations().of(toy.config(method, **more)))

    texts = changes(places)
    assert problem({**DISUE, "inputs": "generator", "length": 8}, **texts) == (
        "method.inputs: generator found, it makes images or features, not texts; allowed: embeddings, probe, statistics"
    )
    for method, more in ((DISUE, ", statistics, client_generators"), ({"name": "fedftg", "inputs": "embeddings"}, "")):
        assert problem(method) == (
            f"method.inputs: embeddings found, they are of texts, which task.data does not hold; allowed: generator, probe{more}"
        )
    assert "method.length: 25 found" in problem({**DISUE, "length": 25}, **texts)
    prompt = changes(places, adapter=ADAPTERS["prompt"])
    assert "takes at most 21 tokens next to 3 of the adapter" in problem({**DISUE, "length": 22}, **prompt)
    assert "method.inputs: 'embedding' found (did you mean 'embeddings'?)" in problem({**DISUE, "inputs": "embedding"})
    assert Federations().of(toy.config({**DISUE, "distill": False})).kind != "text"  # nothing is generated
