"""Which Ray a command computes on, what cannot be one, and what a Ray on this machine has."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors import session as module
from actors.session import RayLost, Session, local_node, refusal
from rayfed.errors import ConfigError, PlacementError


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def refused(address: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        Session(address)
    assert caught.value.exit_code == 2
    return str(caught.value)


# -- addresses ---------------------------------------------------------------------------------------------------------


def test_the_option_goes_before_the_variable_and_without_both_a_local_ray_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Session().local and Session("local").local and not Session("auto").local
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert Session("local").local
    for given in (None, "auto"):  # as Ray has it
        made = Session(given)
        assert (made.name, made.address, made.local) == ("RAY_ADDRESS", "head:6379", False)
    assert (Session("[::1]:1234").name, Session("[::1]:1234").address) == ("--address", "[::1]:1234")
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert Session().local


@pytest.mark.parametrize(
    "wrong", ["head", "head:", "head:x", "head:0", "head:65536", ":6379", "a b:6379", "::1:6379", "locl", "1:2:3"]
)
def test_what_is_no_address_is_refused_with_what_is_allowed(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    said = refused(wrong)
    assert said.startswith(f"--address {wrong}: ") and "HOST:PORT" in said and "\n" not in said
    monkeypatch.setenv("RAY_ADDRESS", wrong)
    assert refused().startswith(f"RAY_ADDRESS {wrong}: ")


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [("http://h:8265", "rayfed submit"), ("https://h", "rayfed submit"), ("ray://h:10001", "Ray Client")],
)
def test_a_dashboard_and_ray_client_are_told_from_a_head(
    monkeypatch: pytest.MonkeyPatch, wrong: str, advice: str
) -> None:
    assert advice in refused(wrong) and "HOST:PORT" in refused(wrong)
    monkeypatch.setenv("RAY_ADDRESS", wrong)
    assert refused().startswith(f"RAY_ADDRESS {wrong}") and refused("auto") == refused()


# -- what this process is connected to ---------------------------------------------------------------------------------


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A process that is connected to a Ray at 10.0.0.1:6379; `ray.shutdown` would fail."""
    import ray
    from ray.util.client import ray as client

    context = SimpleNamespace(gcs_address="10.0.0.1:6379", get_node_id=lambda: "n")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(
        ray, "nodes", lambda: [{"NodeID": "n", "NodeManagerAddress": "10.0.0.1", "NodeManagerPort": 7000}]
    )
    monkeypatch.setattr(ray, "shutdown", lambda: pytest.fail("the user's Ray was shut down"))
    monkeypatch.setattr(ray, "init", lambda **about: pytest.fail("a second Ray was started"))
    monkeypatch.setattr(module.RayWatch, "_watch", lambda self: None)
    return lambda: monkeypatch.setattr(client, "is_connected", lambda: True)


def test_the_ray_of_this_process_is_used_and_left_alone(attached: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")  # what the process has goes before
    for given in (None, "auto", "10.0.0.1:6379"):
        session = Session(given)
        assert session.attached and not session.local and session.address == "10.0.0.1:6379"
        session.connect({})
        session.close()
        session.close()
    for other in ("local", "10.0.0.2:6379"):
        assert "10.0.0.1:6379 already" in refused(other) and "ray.shutdown()" in refused(other)


def test_ray_client_is_refused(attached: Callable[[], None]) -> None:
    attached()
    assert "Ray Client" in refused()


# -- what answers there ------------------------------------------------------------------------------------------------


@pytest.fixture
def service() -> Iterator[Callable[[bytes], tuple[str, int]]]:
    """Start a service that answers every connection with the same bytes, or with none."""
    made: list[socket.socket] = []

    def start(answer: bytes) -> tuple[str, int]:
        listening = socket.create_server(("127.0.0.1", 0))
        made.append(listening)

        def serve() -> None:
            with contextlib.suppress(OSError):  # nobody came
                connection, _ = listening.accept()
                made.append(connection)
                connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        return listening.getsockname()

    yield start
    for s in made:
        s.close()


def test_only_what_speaks_grpc_may_be_a_head(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(service(bytes([0, 0, 6, 4, 0, 0, 0, 0, 0]) + b"......")) is None
    assert "dashboard" in str(refusal(service(b"HTTP/1.1 400 Bad Request\r\n")))
    assert "another service" in str(refusal(service(b"SSH-2.0-OpenSSH\r\n")))
    monkeypatch.setattr(module, "PROBE_S", 0.2)
    assert "says nothing" in str(refusal(service(b"")))
    monkeypatch.setenv("RAY_USE_TLS", "1")  # the handshake is another one
    assert refusal(service(b"")) is None


def test_a_dead_head_is_named_with_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(
        PlacementError, match=f"^RAY_ADDRESS 127.0.0.1:{port}: no Ray answers there: connection refused$"
    ):
        Session().connect({})


def test_what_ray_says_of_a_head_is_one_sentence_without_its_traceback(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def fail(**about: Any) -> None:
        try:
            raise RuntimeError(text)
        except RuntimeError as e:
            raise ConnectionError("Failed to connect to Ray cluster") from e

    def said() -> str:
        host, port = service(bytes([0, 0, 6, 4, 0, 0, 0, 0, 0]))
        with pytest.raises(PlacementError) as caught:
            Session(f"{host}:{port}").connect({})
        return str(caught.value)

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    text = "Failed to connect to GCS. Last connection error: Traceback (most recent call last):\n  File"
    assert ": Failed to connect to GCS. Is the head running?" in said() and "RAY_AUTH_MODE=token" in said()
    assert "Traceback" not in said()
    text = "No node info found matching attributes: ''"
    assert "no node of it on this machine" in said() and "rayfed submit" in said()


# -- a local one -------------------------------------------------------------------------------------------------------


def test_a_local_ray_that_does_not_start_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def fail(**about: Any) -> None:
        raise OSError(text)

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/a/long/one")
    text = "validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /a/long/one/ray/session"
    with pytest.raises(ConfigError, match=r"^TMPDIR=/a/long/one: .*RAY_TMPDIR=/tmp$"):
        Session("local").connect({})
    text = "[Errno 13] Permission\ndenied"
    with pytest.raises(PlacementError, match=r"does not start under TMPDIR=/a/long/one: .*Permission denied$"):
        Session("local").connect({})


@pytest.mark.parametrize(
    ("address", "variable", "monitored", "bare"),
    [(None, "", False, True), (None, "", True, False), ("local", "", False, False), (None, "local", False, False)],
)
def test_a_ray_that_nobody_asked_for_has_nothing_that_only_watches_it(
    monkeypatch: pytest.MonkeyPatch, address: str | None, variable: str, monitored: bool, bare: bool
) -> None:
    import ray
    from ray._private import node, parameter

    monkeypatch.setenv("RAY_ADDRESS", variable)
    before, seen = (parameter.RayParams, node.Node.start_api_server), []

    def start(include_dashboard: bool | None, **about: Any) -> None:
        made = parameter.RayParams()
        seen.append((include_dashboard, made.no_monitor, made.include_log_monitor))
        seen.append(node.Node.start_api_server is not before[1])
        raise OSError("enough")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(PlacementError, match="enough"):
        Session(address).connect({}, monitored)
    assert seen == ([(False, True, False), True] if bare else [(None, False, None), False])
    assert (parameter.RayParams, node.Node.start_api_server) == before


def test_variables_of_ray_are_set_for_a_while_and_a_users_own_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_NUM_REDIS_GET_RETRIES", "9")
    with module._variables(module.PATIENCE):
        assert os.environ["RAY_NUM_REDIS_GET_RETRIES"] == "9" and os.environ.get("RAY_py_gcs_connect_timeout_s") == "5"  # noqa: SIM112
    assert os.environ["RAY_NUM_REDIS_GET_RETRIES"] == "9" and "RAY_py_gcs_connect_timeout_s" not in os.environ


def test_a_token_is_its_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    module._guard_token()  # there is none
    (tmp_path / ".ray").mkdir()
    file = tmp_path / ".ray" / "auth_token"
    file.write_text("t")
    file.chmod(0o644)
    module._guard_token()
    assert file.stat().st_mode & 0o777 == 0o600


# -- a Ray that is lost ------------------------------------------------------------------------------------------------


def test_a_lost_ray_is_an_error_that_is_noticed(attached: Any) -> None:
    session = Session()
    session.check()
    session.connect({})
    session.check()
    assert session._watch
    session._watch.look = lambda: "the head is gone"  # type: ignore[method-assign]
    session.check()
    with pytest.raises(RayLost, match="the head is gone"):
        session.check(now=True)
    with pytest.raises(RayLost):
        session.check()
    session._end_process("not reached: it was noticed")


def test_a_process_that_does_not_notice_is_ended(
    attached: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(module, "NOTICE_S", 0.01)
    monkeypatch.setattr(os, "_exit", ended.append)
    session = Session()
    session.resume = "Continue with: rayfed resume x"
    session._end_process("the head is gone")
    assert ended == [4]
    assert capsys.readouterr().err == "rayfed: the head is gone\nContinue with: rayfed resume x\n"


# -- this machine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("visible", "gpus"), [("", 0), ("0", 1), ("2,5", 2), (" , ", 0)])
def test_this_machine_has_the_visible_cards(monkeypatch: pytest.MonkeyPatch, visible: str, gpus: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    node = local_node()
    assert node["GPU"] == gpus
    assert node["CPU"] >= 1


@pytest.mark.parametrize("visible", ["-1", "NoDevFiles"])
def test_the_usual_ways_to_hide_all_cards(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local_node()["GPU"] == 0


def test_a_bare_ray_is_one_without_what_its_own_parts_can_leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's insides are as before afterwards, and left alone where another version has others."""
    from ray._private import node, parameter

    params, serve = parameter.RayParams, node.Node.start_api_server
    with module._bare():
        made = parameter.RayParams()
        assert made.no_monitor and not made.include_log_monitor and node.Node.start_api_server is not serve
    assert parameter.RayParams is params and node.Node.start_api_server is serve
    monkeypatch.setattr(parameter, "RayParams", lambda include_log_monitor=True: None)
    with module._bare():
        assert node.Node.start_api_server is serve
