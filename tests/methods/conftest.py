"""Removing a method is deleting its file: its test is then left out, as is any other file here that no method is called after.
And what the tests work out by themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayfed.partition import Federation, Index
from rayfed.task import Task
from tests import toy
from tests.tiny import on_bert  # noqa: F401

HERE = Path(__file__).parent
READY = HERE.parents[1] / "rayfed" / "methods"

collect_ignore = [p.name for p in HERE.glob("test_*.py") if not (READY / p.name.removeprefix("test_")).is_file()]


class Plain:
    """Softmax regression on whole batches in NumPy; parameters are one vector, W (C, F) row by row, then b (C,)."""

    LR = 0.1
    STEPS = 3
    # the same work for the engine: every batch is a client's whole data
    WORK: dict[str, Any] = {  # noqa: RUF012
        "task": {"model": "linear"},
        "local": {"epochs": STEPS, "batch_size": 64, "optimizer": {"name": "sgd", "lr": LR}},
        "executor": "vmap",
        "dtype": "float64",
    }

    @staticmethod
    def vector(params: dict[str, torch.Tensor]) -> np.ndarray:
        """A model's parameters, copied."""
        return np.concatenate([p.detach().double().numpy().ravel() for p in params.values()])

    @staticmethod
    def data(fed: Any, client: int, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
        rows = getattr(fed.federation, split)[client]
        return fed.federation.arrays["x"][rows].astype(np.float64), fed.federation.arrays["y"][rows]

    @staticmethod
    def log_probs(p: np.ndarray, x: np.ndarray) -> np.ndarray:
        classes = len(p) // (x.shape[1] + 1)
        z = x @ p[:-classes].reshape(classes, -1).T + p[-classes:]
        z = z - z.max(1, keepdims=True)
        return z - np.log(np.exp(z).sum(1, keepdims=True))

    @classmethod
    def loss(cls, p: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
        return float(-cls.log_probs(p, x)[np.arange(len(y)), y].mean())

    @classmethod
    def accuracy(cls, p: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
        return float((cls.log_probs(p, x).argmax(1) == y).mean())

    @classmethod
    def gradient(cls, p: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        off = np.exp(cls.log_probs(p, x))
        off[np.arange(len(y)), y] -= 1
        off /= len(y)
        return np.concatenate([(off.T @ x).ravel(), off.sum(0)])

    @classmethod
    def descend(
        cls, p: np.ndarray, x: np.ndarray, y: np.ndarray, steps: int = STEPS, drift: Any = 0.0, lr: float = LR
    ) -> np.ndarray:
        """`steps` gradient steps; `drift` is added to every gradient."""
        for _ in range(steps):
            p = p - lr * (cls.gradient(p, x, y) + drift)
        return p


@pytest.fixture
def plain() -> type[Plain]:
    return Plain


Split = Callable[..., Federation]


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> Split:
    """Makes the toy's clients hold given examples: split(xs, ys, classes=2, group=None), one entry per client."""

    def give(
        xs: Sequence[np.ndarray], ys: Sequence[np.ndarray], classes: int = 2, group: Sequence[int] | None = None
    ) -> Federation:
        x = np.concatenate([np.asarray(x, np.float32) for x in xs])
        y = np.concatenate([np.asarray(y, np.int64) for y in ys])
        offsets = np.concatenate([[0], np.cumsum([len(y) for y in ys])]).astype(np.int64)
        rows = np.arange(len(y))
        counts = np.stack([np.bincount(np.asarray(y, np.int64), minlength=classes) for y in ys]).astype(np.int64)
        mine, n = Index(offsets, rows), len(xs)
        none = Index(np.zeros(n + 1, np.int64), rows[:0])
        made = Federation(
            {"x": x, "y": y}, mine, none, mine, rows, n, np.asarray(group if group is not None else [-1] * n),
            tuple(map(str, range(n))), counts, classes, x.shape[1:], "vector", tuple(map(str, range(classes))),
        )  # fmt: skip
        monkeypatch.setattr(toy, "federation", lambda c: made)
        return made

    return give


@pytest.fixture
def quadratics(split: Split, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Two clients: scalar x from 0, f_1 = 5 (x - 1)^2, f_2 = (x + 1)^2 / 2, rate 0.02, K steps each.

    quadratics(k1=20, k2=20) gives the changes to the config; a client takes as many steps as it has examples.
    """

    class Scalar(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(1, 1, bias=False)
            torch.nn.init.zeros_(self.head.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x)

    def loss(self: Task, params: dict[str, torch.Tensor], batch: Any, key: Any = None) -> torch.Tensor:
        gap = params["head.weight"].reshape(()) - batch["x"][:, 1]
        return batch["x"][:, 0] / 2 * gap**2

    def give(k1: int = 20, k2: int = 20) -> dict[str, Any]:
        monkeypatch.setattr("rayfed.models.build", lambda *a: Scalar())
        monkeypatch.setattr(Task, "loss", loss)
        split([np.tile([10.0, 1.0], (k1, 1)), np.tile([1.0, -1.0], (k2, 1))], [np.zeros(k1), np.zeros(k2)])
        return {
            "federation": {"clients": 2, "per_round": None, "holdout": {"kind": "none"}, "groups": {"kind": "none"}},
            "local": {"epochs": 1, "batch_size": 1, "optimizer": {"name": "sgd", "lr": 0.02}},
            "executor": "vmap",
            "dtype": "float64",
        }

    return give


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The batches that losses were asked for, in order, as the executor `debug` hands them over: the others record a step and
    play it."""
    batches: list[dict[str, torch.Tensor]] = []
    real = Task.loss

    def loss(self: Task, params: Any, batch: Any, key: Any = None) -> torch.Tensor:
        batches.append(batch)
        return real(self, params, batch, key)

    monkeypatch.setattr(Task, "loss", loss)
    return batches


class Hand:
    """The toy's network of one hidden layer on whole batches, by torch's own autograd on formulas written out here."""

    LR = 0.1
    STEPS = 3
    WORK: dict[str, Any] = {  # noqa: RUF012
        "local": {"epochs": STEPS, "batch_size": 64, "optimizer": {"name": "sgd", "lr": LR}},
        "executor": "vmap",
        "dtype": "float64",
    }
    HEAD = ("head.weight", "head.bias")

    @staticmethod
    def data(fed: Any, client: int, split: str = "train") -> tuple[torch.Tensor, torch.Tensor]:
        rows = getattr(fed.federation, split)[client]
        return torch.as_tensor(fed.federation.arrays["x"][rows]).double(), torch.as_tensor(
            fed.federation.arrays["y"][rows]
        )

    @staticmethod
    def features(p: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ p["body.0.weight"].T + p["body.0.bias"])

    @staticmethod
    def classify(p: Any, h: torch.Tensor) -> torch.Tensor:
        return h @ p["head.weight"].T + p["head.bias"]

    @classmethod
    def logits(cls, p: Any, x: torch.Tensor) -> torch.Tensor:
        return cls.classify(p, cls.features(p, x))

    @classmethod
    def loss(cls, p: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(cls.logits(p, x), y)

    @classmethod
    def descend(
        cls, p: Any, loss: Callable[[Any], torch.Tensor], steps: int = STEPS, moves: Sequence[str] = (), lr: float = LR
    ) -> dict[str, torch.Tensor]:
        """`steps` gradient steps of loss(p); moves: the entries that learn, by default all."""
        here = {n: v.detach().clone() for n, v in p.items()}
        for _ in range(steps):
            learn = {n: here[n].requires_grad_() for n in moves or here}
            slopes = torch.autograd.grad(loss(here), list(learn.values()))
            here = {n: v.detach() for n, v in here.items()}
            for n, g in zip(learn, slopes, strict=True):
                here[n] = here[n] - lr * g
        return here

    @staticmethod
    def mean(updates: Sequence[Any], n: Sequence[float]) -> dict[str, torch.Tensor]:
        w = torch.tensor(n, dtype=torch.float64) / sum(n)
        return {k: torch.tensordot(w, torch.stack([u[k] for u in updates]), dims=1) for k in updates[0]}

    @staticmethod
    def same(a: Any, b: Any, atol: float = 1e-12) -> None:
        assert a.keys() == b.keys()
        for n in a:
            torch.testing.assert_close(a[n].double(), b[n].double(), rtol=0, atol=atol)

    @classmethod
    def private_layers(cls, done: toy.Result, private: Sequence[str], train: Any, weigh: bool = True) -> None:
        """Do a run's rounds again whose clients keep the entries `private`; train: (model, x, y) -> trained model."""
        model = {n: p.clone() for n, p in done.initial["model"].items()}
        own: dict[int, Any] = {}
        shared = [n for n in model if n not in private]
        for draw in done.fed.drawn:
            updates, n = [], []
            for c in draw.ids:
                x, y = cls.data(done.fed, c)
                after = train({**model, **own.get(c, {})}, x, y)
                own[c] = {k: after[k] for k in private}
                updates.append({k: after[k] - model[k] for k in shared})
                n.append(len(y) if weigh else 1)
            model |= {k: model[k] + u for k, u in cls.mean(updates, n).items()}
        cls.same(done.state["model"], model)
        assert done.clients().keys() == {str(c) for c in own}
        for c, state in done.clients().items():
            cls.same(state["own"], own[int(c)])


@pytest.fixture
def hand() -> type[Hand]:
    return Hand
