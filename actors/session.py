"""The Ray session of a command: the Ray that its process is connected to, a local one that it starts, or a cluster that it joins."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from actors.ray_watch import LOST_S, Place, RayWatch, parse_place
from rayfed.config import phases
from rayfed.errors import ConfigError, PlacementError, RunFailed

PLACE = re.compile(r"(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(\d{1,5})")  # HOST:PORT
PROBE_S = 5  # for a head to take a connection, and to answer
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # what a gRPC client says first
SETTINGS = 4  # what a gRPC server says first
PATIENCE = {  # with a head that does not answer, and for a node on this machine; Ray's own is a minute and more
    "RAY_NUM_REDIS_GET_RETRIES": "5",
    "RAY_gcs_server_request_timeout_seconds": "20",
    "RAY_py_gcs_connect_timeout_s": "5",
}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
LOCAL_S = 2.0  # without an answer of a local Ray, to which no network leads
NOTICE_S = 3.0  # for a process to notice that its Ray is lost


class RayLost(RunFailed):
    """The Ray of this process is gone."""


class Session:
    """The Ray on which a request is computed.

    attached: whether this process was connected before, as a user's script or a Ray task is; that Ray is used and left alone.
    local: whether it is started for this request, with this machine's CPUs and GPUs; bare: whether nobody asked for it, so that
    it has no dashboard.
    """

    def __init__(self, address: str | None = None):
        """address: "local", "auto" or a cluster's; default: the Ray of this process, RAY_ADDRESS, or a local one.

        Raises ConfigError, before anything starts, for what cannot be a cluster's address, and where this process has another
        Ray already.
        """
        here = _connected_to()
        self.attached = here is not None
        if here is not None and address not in (None, "auto", here):
            raise ConfigError(
                f"--address {address}: this process is connected to the Ray at {here} already, and a process has one; leave the "
                "address out to use it, or call ray.shutdown() before"
            )
        self.name, self.address = _choose(address) if here is None else ("Ray", here)
        self.local = not self.attached and self.address == "local"
        self.bare = self.local and address is None and not os.environ.get("RAY_ADDRESS")
        self.connected = False
        self.resume = ""  # how to go on, for a process that is ended where its Ray is lost
        self._watch: RayWatch | None = None
        self._noticed = threading.Event()

    def connect(self, metadata: dict[str, str], monitored: bool = False) -> None:
        """Start the local Ray or join the cluster, once.

        metadata: what the dashboard shows of this job; monitored: whether a local Ray needs what watches it in any case.

        Raises PlacementError, one sentence, where no Ray answers or none can be started.
        """
        if self.connected:
            return
        if not self.attached:
            phases.begin("starting a local Ray" if self.local else f"joining the Ray at {self.address}")
            if self.local:
                _start(metadata, bare=self.bare and not monitored)
            else:
                _join(self.name, self.address, metadata)
        self.connected = True
        end = (lambda sentence: None) if self.attached else self._end_process
        self._watch = RayWatch(_places(), end, patience=LOCAL_S if self.local else LOST_S)

    def check(self, now: bool = False) -> None:
        """Raise RayLost where the Ray of this session is gone. now: also where it does not answer at this moment."""
        if self._watch and now and not self._watch.lost:
            self._watch.lost = self._watch.look()
        if self._watch and self._watch.lost:
            self._noticed.set()
            raise RayLost(self._watch.lost)

    def _end_process(self, sentence: str) -> None:
        """End this process unless it notices by itself: what waits inside Ray cannot be interrupted, and Ray would end it later."""
        if self._noticed.wait(NOTICE_S):
            return
        print(f"rayfed: {sentence}\n{self.resume}".rstrip(), file=sys.stderr, flush=True)
        os._exit(RayLost.exit_code)

    def close(self) -> None:
        """Leave Ray: end a local one, disconnect from a cluster, and leave alone what this process had before. May be called again."""
        if not self.connected:
            return
        self.connected = False
        if self._watch:
            self._watch.stop()
        if not self.attached:
            import ray

            ray.shutdown()


def _choose(address: str | None) -> tuple[str, str]:
    """Return the setting that names the Ray, and the address: "local", "auto" or HOST:PORT. ConfigError for anything else."""
    variable = os.environ.get("RAY_ADDRESS")
    if variable and address in (None, "auto"):  # as Ray itself has it
        name, found = "RAY_ADDRESS", variable
    else:
        name, found = "--address", address or "local"
    scheme, separator, _ = found.partition("://")
    if separator and scheme in ("http", "https"):
        raise ConfigError(
            f"{name} {found}: a dashboard's address, to which jobs are sent (rayfed submit ...); to compute, allowed: local, auto "
            "(on a machine of the cluster), or the head's own HOST:PORT (6379 by default)"
        )
    if separator and scheme == "ray":
        raise ConfigError(
            f"{name} {found}: Ray Client is not supported; allowed: local, auto (on a machine of the cluster), the head's own "
            "HOST:PORT (6379 by default), or send the run there: rayfed submit"
        )
    match = PLACE.fullmatch(found)
    if found not in ("local", "auto") and not (match and 0 < int(match[2]) < 2**16):
        raise ConfigError(f"{name} {found}: no address of a Ray; allowed: local, auto, or HOST:PORT (6379 by default)")
    return name, found


def _connected_to() -> str | None:
    """Return the address of the Ray that this process is connected to, None if it is to none. ConfigError under Ray Client."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    from ray.util.client import ray as client

    if client.is_connected():
        raise ConfigError(
            "this process is connected through Ray Client (ray://...), which is not supported; run it on a machine of the cluster, "
            "or send the run there: rayfed submit"
        )
    return str(ray.get_runtime_context().gcs_address)


def _start(metadata: dict[str, str], bare: bool) -> None:
    """Start a local Ray; bare: without what only watches it. PlacementError where it does not come up, ConfigError where its folder
    has too long a name."""
    import ray

    node = local_node()
    resources = {"num_cpus": int(node["CPU"]), "num_gpus": int(node["GPU"])}
    try:
        with _loopback(), _bare() if bare else contextlib.nullcontext():
            ray.init(address="local", include_dashboard=False if bare else None, **resources, **_options(metadata))
    except Exception as e:
        ray.shutdown()  # what came up before
        why = " ".join(str(e).split())
        if "AF_UNIX" in why:
            raise ConfigError(
                f"{_temporary()}: too long a path for the sockets of a local Ray; set RAY_TMPDIR=/tmp"
            ) from None
        raise PlacementError(f"a local Ray does not start under {_temporary()}: {why}") from None
    _guard_token()


def _temporary() -> str:
    """Return the folder of Ray's files behind the variable that says so."""
    name = next((n for n in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(n)), None)
    return f"{name}={os.environ[name]}" if name else "/tmp"


def _guard_token() -> None:
    """Let only this user read the token that Ray has written for its clusters."""
    with contextlib.suppress(OSError):
        (Path.home() / ".ray" / "auth_token").chmod(0o600)


def _join(name: str, address: str, metadata: dict[str, str]) -> None:
    """Join a cluster. PlacementError where there is none. name: of the setting that has the address."""
    if address != "auto" and (why := refusal(parse_place(address))):
        raise PlacementError(f"{name} {address}: no Ray answers there: {why}")
    with _variables(PATIENCE):  # Ray reads them when it is imported
        import ray
    try:
        ray.init(address=address, **_options(metadata))
    except Exception as e:
        ray.shutdown()
        why = " ".join(str(e.__cause__ or e).partition(" Last connection error")[0].split()).rstrip(".")
        if "No node info found" in why:
            why = "there is a head, but no node of it on this machine; run it on one, or send the run there: rayfed submit"
        else:
            why += ". Is the head running? If it asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token"
        raise PlacementError(f"{name} {address}: no Ray answers there: {why}") from None


def refusal(place: Place) -> str | None:
    """Return why no Ray head can be there, None where one may be: something that speaks gRPC."""
    try:
        with socket.create_connection(place, timeout=PROBE_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return None
            connection.sendall(PREFACE)
            try:
                answer = connection.recv(9)
            except TimeoutError:
                return "something listens there, and says nothing"
    except socket.gaierror:
        return "no such host"
    except TimeoutError:
        return f"no connection within {PROBE_S} s"
    except OSError as e:
        return (e.strerror or str(e)).lower()
    if answer.startswith(b"HTTP"):
        return "it is a web server (the dashboard?); the head's own port is 6379 by default"
    return (
        None
        if len(answer) > 3 and answer[3] == SETTINGS
        else "it is another service; the head's port is 6379 by default"
    )


def _options(metadata: dict[str, str]) -> dict[str, Any]:
    """Return the arguments of `ray.init` that local Rays and clusters share."""
    from ray.job_config import JobConfig

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "namespace": "rayfed"}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:  # a submitted job has its own
        common["job_config"] = JobConfig(metadata=metadata)
    return common


def _places() -> dict[str, Place]:
    """Return where head and node of this process listen."""
    import ray

    context = ray.get_runtime_context()
    here = next(n for n in ray.nodes() if n["NodeID"] == context.get_node_id())
    return {
        "the head of Ray": parse_place(context.gcs_address),
        "this machine's node of Ray": (here["NodeManagerAddress"], int(here["NodeManagerPort"])),
    }


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Let a Ray that starts here listen on 127.0.0.1 alone.

    Ray does so by itself where it knows no clusters, as on a Mac. Its switch is a variable, which the processes that it starts
    read, and which this one read when Ray was imported.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    with _variables(LOOPBACK):
        ray_constants.ENABLE_RAY_CLUSTER = False
        try:
            yield
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _bare() -> Iterator[None]:
    """Leave out of a Ray that starts here what its work does not need and its start waits for: more than a second.

    These are the autoscaler's monitor and the monitor of logs, which `ray start` can leave out and `ray.init` cannot, and the head
    process of the dashboard, which Ray starts even where it is to serve no page.
    """
    from ray._private import node, parameter

    left_out = {"no_monitor": True, "include_log_monitor": False}
    there = left_out.keys() <= inspect.signature(parameter.RayParams).parameters.keys()
    if not (there and hasattr(node.Node, "start_api_server")):  # another Ray's insides: it starts whole
        yield
        return
    params, serve = parameter.RayParams, node.Node.start_api_server
    parameter.RayParams = functools.partial(params, **left_out)
    node.Node.start_api_server = lambda self, **about: None
    try:
        yield
    finally:
        parameter.RayParams, node.Node.start_api_server = params, serve


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set those environment variables that are not set, for a while."""
    new = {k: v for k, v in values.items() if k not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for k in new:
            os.environ.pop(k, None)


def local_node() -> dict[str, float]:
    """Return what a Ray started here will have: CPU and GPU counts."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cpus = os.cpu_count() or 1
    return {"CPU": float(cpus), "GPU": float(_count_gpus())}


def _count_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [v.strip() for v in visible.split(",")]
        return len(list(itertools.takewhile(lambda v: v.isdigit() or v.startswith(("GPU-", "MIG-")), names)))
    drivers = Path("/proc/driver/nvidia/gpus")
    return len(list(drivers.glob("*"))) if drivers.exists() else 0
