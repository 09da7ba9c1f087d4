"""The failure policy: a status goes in, a decision with its reason comes out; no cluster is needed."""

from __future__ import annotations

import logging
import pickle

import pytest

from rayfed.engine.failures import ActorDeath, ClientFailed, Drop, Failure, FailurePolicy, Raise, Retry, TooLarge
from rayfed.engine.time_limit import TimedOut
from rayfed.execute.debug import PieceFailed
from tests import toy

ERROR = Failure("ValueError: bad luck", "Traceback ...", attempts=1)
AGAIN = Failure("ValueError: bad luck", "Traceback ...", attempts=2)
NAN = Failure("NaN or infinity in part delta", repeatable=False, diverged=True)


@pytest.mark.parametrize(
    ("client_error", "status", "kind"),
    [
        ("raise", ERROR, Raise), ("raise", AGAIN, Raise), ("raise", NAN, Raise),
        ("drop", ERROR, Drop), ("drop", NAN, Drop),
        ("retry", ERROR, Retry), ("retry", AGAIN, Drop), ("retry", NAN, Drop),
    ],
)  # fmt: skip
def test_what_a_clients_failure_leads_to(client_error: str, status: Failure, kind: type) -> None:
    decision = FailurePolicy(client_error).decide(status)
    assert type(decision) is kind and decision.reason == status.reason


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_call_survives_as_many_deaths_as_the_config_allows(retries: int) -> None:
    policy = FailurePolicy(actor_retries=retries)
    decisions = [policy.decide(ActorDeath(n, "over the same call", "gone")) for n in range(1, retries + 2)]
    assert [type(d) for d in decisions] == [Retry] * retries + [Raise]
    last = f"an actor died {retries + 1} times over the same call (failures.actor_death.retries={retries}): gone"
    assert decisions[-1].reason == last


def test_the_policy_is_the_configs() -> None:
    c = toy.config(failures={"client_error": "drop", "actor_death": {"retries": 7}})
    assert FailurePolicy.of(c.failures) == FailurePolicy("drop", 7)


def test_every_decision_is_logged_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rayfed.engine.failures"):
        FailurePolicy("drop").decide(NAN)
        FailurePolicy("retry").decide(ERROR)
    assert [r.getMessage() for r in caplog.records] == [f"Drop: {NAN.reason}", f"Retry: {ERROR.reason}"]


def test_a_failure_of_a_debugged_client_keeps_what_its_code_was_given() -> None:
    try:
        try:
            raise ValueError("bad luck")
        except ValueError as e:
            raise PieceFailed(0, "end", {"x": 1}) from e
    except PieceFailed as error:
        found = Failure.of(error, 1)
    assert found.reason.startswith("ValueError: bad luck (") and "test_failures.py, line" in found.reason
    assert "in test_a_failure_of" in found.trace
    assert found.arguments == {"x": 1} and Failure.of(ValueError("x"), 2).arguments is None


def test_what_would_happen_again_is_known() -> None:
    """Also in another process: a sweep asks for it."""
    slow = Failure.of(TimedOut("still at work"), 1)
    assert not slow.repeatable and slow.reason == "still at work"
    found = {f: pickle.loads(pickle.dumps(ClientFailed(3, 2, "train", f))) for f in (ERROR, NAN, slow)}
    assert [found[f].certain for f in (ERROR, NAN, slow)] == [True, True, False]
    assert [found[f].diverged for f in (ERROR, NAN, slow)] == [None, 2, None]


def test_errors_survive_pickling() -> None:
    for error in (ClientFailed(3, 2, "train", ERROR), TooLarge(1, 0.5), TooLarge(4, 1)):
        back = pickle.loads(pickle.dumps(error))
        assert type(back) is type(error) and str(back) == str(error)
    assert "resources.cohort: 2" in str(TooLarge(4, 1)) and "resources.executor: loop" in str(TooLarge(1, 1))
