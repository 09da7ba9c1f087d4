"""What Ray's dashboard and Prometheus see of a run, on a Ray that the command starts by itself."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from rayfed.monitor.board import Board
from rayfed.monitor.files import panels
from tests.ports import free_port
from tests.ray.conftest import at_round, only_run, placed, until

pytestmark = pytest.mark.slow  # their own clusters: minutes on two cores


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read().decode()


def ports(env: dict[str, str]) -> list[str]:
    """Metrics addresses, as the head of this test's Ray lists them."""
    file = Path(env["RAY_TMPDIR"]) / "ray" / "prom_metrics_service_discovery.json"
    return [t for group in json.loads(file.read_text()) for t in group["targets"]]


def exported(env: dict[str, str]) -> list[str]:
    """Lines of ours on all ports."""
    found = []
    for target in ports(env):
        try:
            found += [line for line in fetch(f"http://{target}/metrics").splitlines() if line.startswith("ray_rayfed_")]
        except OSError:
            continue
    return found


def dashboard(env: dict[str, str], path: str) -> Any:
    """An answer of the dashboard of this test's Ray, on whichever port it found free."""
    ours = [p for p in psutil.process_iter() if _ours(p, env["RAY_TMPDIR"])]
    for connection in (c for p in ours for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN):
        try:
            return json.loads(fetch(f"http://127.0.0.1:{connection.laddr.port}{path}"))
        except (OSError, ValueError, http.client.HTTPException):
            continue
    raise OSError("no dashboard answers")


def _ours(process: psutil.Process, folder: str) -> bool:
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return "dashboard/dashboard.py" in command and folder in command


def rows(answer: Any) -> list[dict[str, Any]]:
    return answer["data"]["result"]["result"]


@pytest.fixture
def running(rayfed, config, env, tmp_path):
    """A long run under way that Prometheus may watch: (its folder, its command)."""
    file = config(rounds=5000, track=["prometheus"], evaluate={"every": 2}, storage={"snapshot_every": 100})
    command = rayfed("run", file, "--out", tmp_path / "o", "--address", "local")
    yield at_round(tmp_path / "o", 3), command
    if command.process.poll() is None:
        command.kill(signal.SIGINT)
        command.wait(120)


def test_names_states_metrics_and_a_replaced_actor(running, env, tmp_path):
    folder, _ = running
    label = until(
        lambda: [a for a in rows(dashboard(env, "/api/v0/actors")) if a["class_name"] == "ServerActor"], "server"
    )
    base = label[0]["name"].removesuffix("/server")
    actors = {a["name"]: a["repr_name"] for a in rows(dashboard(env, "/api/v0/actors?detail=1"))}
    assert re.fullmatch(r"rayfed/t-\d+", base)
    assert actors[f"{base}/server"] == f"ServerActor({base}, 2 client actors)"
    assert actors[f"{base}/client-0"] == "ClientActor(0, cpu)" and f"{base}/client-1" in actors
    (job,) = dashboard(env, "/api/jobs/")
    wanted = {
        "job_name": "rayfed t",
        "method": "scaffold",
        "rounds": "5000",
        "clients": "40",
        "clients per round": "16",
    }
    assert wanted.items() <= job["metadata"].items()

    def current_rounds() -> list[str]:
        tasks = rows(dashboard(env, "/api/v0/tasks?detail=1&limit=10000"))
        named = re.compile(r"scaffold rounds \d+-\d+/5000, 16 of 40 clients")  # "scaffold starting" before the first
        return [t["name"] for t in tasks if t["state"] == "RUNNING" and named.fullmatch(t["name"])]

    until(current_rounds, "the current rounds as a running task")
    tasks = rows(dashboard(env, "/api/v0/tasks?detail=1&limit=10000"))
    assert [t for t in tasks if t["name"] == f"scaffold, 40 clients, 16 per round, 5000 rounds ({folder.name})"]

    os.kill(placed(folder)["clients"][0]["pid"], signal.SIGKILL)
    wanted_lines = (
        "rayfed_round{",
        "rayfed_accuracy{",
        "rayfed_memory_bytes{",
        "rayfed_actor_restarts_total{",
        "rayfed_queue_depth{",
    )

    def all_there() -> list[str] | None:
        lines = exported(env)
        return lines if all(any(f"ray_{w}" in line for line in lines) for w in wanted_lines) else None

    lines = until(all_there, "all metrics on Ray's port")
    assert not [line for line in lines if "client=" in line]
    restarts = [line for line in lines if "restarts_total" in line]
    assert restarts and float(restarts[0].rpartition(" ")[2]) == 1
    actors_memory = [float(line.rpartition(" ")[2]) for line in lines if 'part="actors"' in line]
    assert actors_memory and actors_memory[0] > 100e6, "two processes with torch"
    (run_id,) = {re.search('run="([^"]*)"', line).group(1) for line in lines}
    assert run_id == json.loads((folder / "lock.json").read_text())["run"]

    seen = Board(folder.parent).run(folder.name)
    who = {p["what"]: p for p in seen["actors"]["processes"]}
    assert seen["status"] == "running" and seen["actors"]["restarts"] == 1
    assert who["server"]["alive"] and who["server"]["rss"] > 50e6
    assert who["client actor 0"]["replaced"] == 1 and who["client actor 1"]["alive"]


@pytest.mark.skipif(not shutil.which("prometheus"), reason="Prometheus is not installed (apt-get install prometheus)")
def test_prometheus_finds_ray_and_answers_the_dashboard(running, rayfed, env, tmp_path):
    """The config of `rayfed monitor --out`, unchanged; every panel that a healthy run fills has a value."""
    _, command = running
    code, out = rayfed("monitor", "--out", tmp_path / "files").wait()
    assert code == 0 and "prometheus --config.file=" in out
    port = free_port()
    options = [f"--config.file={tmp_path}/files/prometheus.yml", f"--storage.tsdb.path={tmp_path}/db"]
    prometheus = subprocess.Popen(
        ["prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ask(expr: str) -> list[dict[str, Any]]:
        for variable, value in {"$run": ".*", "$method": ".*", "$__rate_interval": "1m", "$__range": "5m"}.items():
            expr = expr.replace(variable, value)
        return json.loads(fetch(f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': expr})}"))[
            "data"
        ]["result"]

    try:
        empty = ("Other scores", "Actors replaced")  # nothing of either in this run
        for title, _, targets in panels():
            for expr, _ in targets:
                if title not in empty:
                    assert until(lambda expr=expr: ask(expr), title, 120)[0]["value"][1] != "NaN", title
        assert ask("sum(ray_rayfed_running)")[0]["value"][1] == "1"
        command.kill(signal.SIGINT)
        command.wait(120)
    finally:
        prometheus.terminate()
        prometheus.wait(30)
    assert json.loads((only_run(tmp_path / "o") / "state.json").read_text())["status"] == "stopped"
