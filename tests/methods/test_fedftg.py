"""FedFTG: what it reduces to, who teaches and with which weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from rayfed import keys, methods, tree
from rayfed.distill import datafree, ensemble, generator
from tests import toy

SHORT = {"name": "fedftg", "iterations": 2, "student_steps": 2, "batch": 8, "noise": 4}
DOUBLE = {"executor": "vmap", "dtype": "float64"}
needs_fedavg = pytest.mark.skipif("fedavg" not in methods.names(), reason="compared with fedavg, which is not there")


@needs_fedavg
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_without_iterations_it_is_fedavg_to_the_bit(executor: str) -> None:
    done = toy.simulate({**SHORT, "iterations": 0}, executor=executor)
    assert tree.same(done.state["model"], toy.simulate("fedavg", executor=executor).state["model"])
    assert tree.same(done.state["generator"], done.initial["generator"])


@needs_fedavg
@pytest.mark.parametrize("settings", [{}, {"adversary": "kl", "tau": 3.0, "fidelity_of": "ensemble"}])
def test_a_single_client_teaches_the_average_nothing(settings: dict[str, Any]) -> None:
    one = {"federation": {"per_round": 1}, **DOUBLE}
    done, plain = toy.simulate({**SHORT, **settings}, **one), toy.simulate("fedavg", **one)
    torch.testing.assert_close(
        tree.flatten(done.state["model"]), tree.flatten(plain.state["model"]), rtol=0, atol=1e-12
    )
    assert not tree.same(done.state["generator"], done.initial["generator"])


@pytest.mark.parametrize("cohort", [1, 2, 7])
def test_every_client_of_the_round_teaches_by_its_class_counts(cohort: int) -> None:
    """The shared loop, fed with models and counts gathered by hand, gives the same model, however calls are cut."""
    done = toy.simulate(SHORT, rounds=1, resources={"cohort": cohort}, **DOUBLE)
    start, ids = done.initial["model"], done.fed.drawn[0].ids
    fed = toy.make_fed(done.fed.config)
    fed.begin(1)
    got = fed.ask(fed.method.train, fed.sample(), shared={"model": start})
    delta = got.gather("delta")
    assert tuple(got.ids) == ids and len(ids) == 7
    n = np.array([done.fed.federation.class_counts[c].sum() for c in ids])
    average = start
    for c, share in zip(ids, n / n.sum()):
        average = tree.add(average, delta[c], share)
    teachers = [tree.add(start, delta[c]) for c in ids]
    counts = torch.as_tensor(done.fed.federation.class_counts[list(ids)])
    key = keys.key(1, 1 << 20, -1, "distillation")
    want = datafree.distill(fed.task, average, teachers, counts, done.initial["generator"], fed.method.settings, key, 1)
    torch.testing.assert_close(tree.flatten(done.state["model"]), tree.flatten(want[0]), rtol=0, atol=1e-10)
    assert float(tree.norm(tree.sub(want[0], average))) > 1e-4
    assert {n.removeprefix("distill/") for n in done.rows[0] if n.startswith("distill/")} == set(want[2])


def test_each_teacher_answers_for_its_share_of_a_class() -> None:
    """sum_k alpha_{k,y} CE(f_k, y): two teachers, three labels, by hand; nobody is asked about a class it has not seen."""
    alpha = ensemble.class_weights(torch.tensor([[3, 0], [1, 5]]))
    assert alpha.tolist() == [[0.75, 0.0], [0.25, 1.0]]
    logits = torch.tensor([[[1.0, 0.0], [5.0, -5.0], [0.0, 0.0]], [[0.0, 2.0], [0.0, 2.0], [1.0, 1.0]]]).double()
    ce = lambda right, wrong: math.log(1 + math.exp(wrong - right))  # noqa: E731
    want = (0.75 * ce(1, 0) + 0.25 * ce(0, 2)) + ce(2, 0) + (0.75 + 0.25) * ce(0, 0)
    got = ensemble.judged(logits, alpha, torch.tensor([0, 1, 0]))
    assert float(got) == pytest.approx(want / 3, abs=1e-12)


def test_a_student_step_is_the_published_codes() -> None:
    """At the same rate: SGD on the mean over examples and classes of -log softmax(student) times the teachers' mixture, by
    torch's autograd; a KL's step would be C = 4 times as long."""
    fed = toy.make_fed(toy.config({**SHORT, "iterations": 1, "generator_steps": 0, "student_steps": 1}, **DOUBLE))
    task, s = fed.task, fed.method.settings
    student, teachers = task.fresh_params(1), [task.fresh_params(2), task.fresh_params(3)]
    counts, state = torch.tensor([[6, 2, 0, 1], [2, 2, 5, 1]]), datafree.init(task, 1, s)
    assert task.classes == 4 and s.student_lr == 0.1
    taught = datafree.distill(task, student, teachers, counts, state, s, 3, round=2)[0]

    rng = keys.torch_generator(3)
    y = ensemble.draw_labels(counts, s.batch, rng)
    z = torch.randn(s.batch, s.noise, generator=rng, dtype=torch.float64)
    x = generator.generate(state["g"], z, y, 4, task.input_shape)
    share = counts[:, y] / counts.sum(0)[y]
    mixture = sum(w[:, None] * torch.softmax(task.apply(t, x), 1) for w, t in zip(share, teachers))
    free = {n: p.clone().requires_grad_() for n, p in student.items()}
    sgd = torch.optim.SGD(free.values(), lr=0.1 * 0.998)
    (-torch.log_softmax(task.apply(free, x), 1) * mixture).mean().backward()
    sgd.step()
    want = {n: p.detach() for n, p in free.items()}
    torch.testing.assert_close(taught, want, rtol=0, atol=1e-13)
    assert float(tree.norm(tree.sub(want, student))) > 1e-4


def test_one_teacher_pulls_the_student_towards_it() -> None:
    """On inputs that neither has seen before, after 200 student steps."""
    fed = toy.make_fed(
        toy.config({**SHORT, "iterations": 10, "student_steps": 20, "batch": 64, "student_lr": 0.4}, **DOUBLE)
    )
    task, s = fed.task, fed.method.settings
    student, teacher = task.fresh_params(1), tree.scale(task.fresh_params(2), 2.0)
    x = torch.rand(200, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def apart(p: tree.Tree) -> float:
        return float(ensemble.kl(task.apply(teacher, x), task.apply(p, x), 1.0).mean())

    counts = torch.tensor([[5, 5, 5, 5]])
    taught = datafree.distill(task, student, [teacher], counts, datafree.init(task, 1, s), s, 3, 1)[0]
    assert apart(taught) < apart(student) / 3
