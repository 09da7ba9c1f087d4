"""What crosses the border between server and workers: it survives pickling, and the right handler takes it."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import Any, get_args

import numpy as np
import pytest

from rayfed.engine import messages
from rayfed.engine.evaluation import Evaluation
from rayfed.engine.failures import Failure
from rayfed.engine.messages import CallResult, Job, Value, VisitCall, label
from rayfed.engine.worker import Worker
from rayfed.fold import mean
from tests import toy

CALL = VisitCall("train", (3, 1), 7, 2, 9, ("model",), {"m": np.ones((2, 1))}, ((0, 4), None), (mean("delta"),), ("k",))
RESULT = CallResult([3], {1: Failure("bad luck")}, [8], [2], [0], None, {}, ("delta",), True, {}, 12, {}, 0.5)
REQUESTS: list[Any] = [
    CALL,
    VisitCall(Evaluation.PERSONAL, (0,), 1, 1, 1),
    messages.LinearCall("delta", np.eye(2)),
    messages.PickCall("delta", ("head.bias",)),
    messages.GramCall("delta"),
    messages.DotCall("delta"),
    messages.CombineCall("delta", (("head.bias",),), 0, 4, (np.arange(3),), 1, 9),
    messages.TimingCall(4),
]


def test_every_kind_of_request_is_tried_here_and_has_a_handler() -> None:
    kinds = set(get_args(messages.Request))
    assert {type(r) for r in REQUESTS} == kinds == set(Worker()._handlers)


@pytest.mark.parametrize("message", [*REQUESTS, RESULT, Value({"x": np.ones(3)})], ids=lambda m: type(m).__name__)
def test_a_message_is_frozen_and_survives_pickling(message: Any) -> None:
    assert is_dataclass(message)
    back = pickle.loads(pickle.dumps(Job("r", message))).request
    assert type(back) is type(message)
    for f in fields(message):
        a, b = getattr(message, f.name), getattr(back, f.name)
        np.testing.assert_equal(b, a)
        with pytest.raises(FrozenInstanceError):
            setattr(message, f.name, None)


def test_an_evaluation_is_the_same_object_in_every_process() -> None:
    assert all(pickle.loads(pickle.dumps(e)) is e for e in Evaluation)


def test_labels_name_the_kind_and_the_visit() -> None:
    assert [label(r) for r in REQUESTS] == [
        "visit:train", "visit:evaluation personal", "linear", "pick", "gram", "dot", "combine", "timing",
    ]  # fmt: skip


def test_a_methods_visit_may_bear_an_evaluations_name(tmp_path: Any) -> None:
    """`personal` of a method is the method's visit, not the engine's scores."""
    (tmp_path / "own.py").write_text(
        "from rayfed import Method, Part, SCALAR, Visit, Wire, visit\n"
        "class Own(Method):\n"
        "    wire = Wire(up={'k': Part(SCALAR)})\n"
        "    @visit\n"
        "    def personal(self, task):\n"
        "        def end(client, carry):\n"
        "            return {'k': client.info.client.to(task.dtype)}, client.own\n"
        "        return Visit(lambda client: {}, (), end)\n"
    )
    fed = toy.make_fed(toy.config(f"{tmp_path / 'own.py'}:Own"))
    fed.begin(1)
    assert fed.ask(fed.method.personal, (4, 2)).stacked("k").tolist() == [2.0, 4.0]
