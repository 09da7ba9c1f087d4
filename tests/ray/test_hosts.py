"""The shipped `local` cluster on hosts that share nothing but a network: from `ray up` to `ray down`, one host lost on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.conftest import numbers, only_run, placed, until
from tests.ray.hosts import ROOT, Machines, missing

pytestmark = pytest.mark.slow  # its own cluster: minutes on two cores

SHIPPED = ROOT / "rayfed" / "config" / "ready" / "clusters" / "local.yaml"
ADDRESS = "--address http://127.0.0.1:8265"
WHAT = {
    "rounds": 120, "method": {"name": "fedavg"}, "evaluate": {"every": 40}, "storage": {"snapshot_every": 20},
    "task": {  # sums too large for Ray to send with the answer: they are on the node that made them, and die with it
        "data": {"name": "synthetic:blobs", "examples": 1200, "classes": 4, "features": 8, "test": 100},
        "model": {"name": "mlp", "hidden": [192, 192]},
    },
    "resources": {"actors": 2, "cohort": 2, "executor": "loop"},
}  # fmt: skip


@pytest.fixture
def machines() -> Iterator[Machines]:
    if why := missing():
        pytest.skip(why)
    with (
        tempfile.TemporaryDirectory(prefix="rf-hosts-", dir="/tmp", ignore_cleanup_errors=True) as where,
        Machines(Path(where), "head", "worker") as made,
    ):
        yield made


def prepared(machines: Machines) -> dict[str, str]:
    """Writes the shipped file with this test's addresses, user and key; the commands that its first lines give."""
    text = SHIPPED.read_text()
    for shipped, ours in {
        "192.0.2.10": machines["head"].address,
        "192.0.2.11": machines["worker"].address,
        "ssh_user: ubuntu": "ssh_user: root",
        "~/.ssh/id_ed25519": str(machines.key),
    }.items():
        assert shipped in text
        text = text.replace(shipped, ours)
    (machines.laptop.home / "local.yaml").write_text(text)
    lines = [re.split(r"\s+# ", line[4:])[0].strip(" &") for line in text.splitlines() if line.startswith("#   ")]
    found = {}
    for name in ("ray get-auth-token", "ray up", "ray dashboard", "ray down"):
        (found[name],) = [line for line in lines if name in line]
    return found


def whole(machines: Machines) -> bool:
    """Whether the launcher has both nodes; its list alone shows a dead one for a while."""
    if not any("/raylet " in line for line in machines["worker"].processes()):
        return False
    _, out = machines.laptop.call("ray exec local.yaml 'RAY_AUTH_MODE=token ray status'")
    return "2 local.cluster.node" in out and "(no pending nodes)" in out


def parameters(folder: Path) -> dict[str, bytes]:
    """The final model's files."""
    files = {str(p.relative_to(folder)): p.read_bytes() for p in (folder / "model").rglob("*") if p.is_file()}
    assert files
    return files


def test_a_host_of_the_local_cluster_is_lost_in_mid_run(machines, rayfed, config, tmp_path):
    """Each host has one CPU, so that two actors need both; the run ends on the one that is left, with the plain process's bits."""
    laptop, head = machines.laptop, machines["head"]
    commands = prepared(machines)
    file = config(**WHAT)
    (laptop.home / "config.yaml").write_text(file.read_text())
    plain = rayfed("run", file, "--out", tmp_path / "local", "--local")

    code, out = laptop.call(f"{commands['ray get-auth-token']}; {commands['ray up']}")
    assert code == 0, out
    until(lambda: whole(machines), "both nodes", 240)
    tunnel = laptop.start(commands["ray dashboard"])
    until(lambda: laptop.call(f"rayfed status {ADDRESS}")[0] == 0, "the tunnel", 120)
    code, out = laptop.call(f"rayfed status {ADDRESS}", RAY_AUTH_TOKEN="f" * 64)
    assert code == 3 and "the head refuses this token" in out and "Traceback" not in out, out
    code, out = plain.wait()
    assert code == 0, out

    run = laptop.start(f"rayfed submit run config.yaml {ADDRESS}")
    lines, at = [], None
    for line in run.stdout:
        lines.append(line)
        if (at := re.match(r"round (\d+)/120", line)) and int(at[1]) >= 2:
            break
    assert at and int(at[1]) < 90, "".join(lines)
    machines["worker"].end()
    rest, _ = run.communicate(timeout=600)
    assert run.returncode == 0, "".join(lines) + rest
    name = next(line.split()[1] for line in lines if line.startswith("job "))
    code, out = laptop.call(f"rayfed fetch {name} --out got {ADDRESS}")
    assert code == 0, out
    got, local = laptop.home / "got" / name, only_run(tmp_path / "local")
    assert len({c["node"] for c in placed(got)["clients"]}) == 2
    events = [json.loads(line)["kind"] for line in (got / "events.jsonl").read_text().splitlines()]
    assert "actor restarted" in events, "the host's end hit the run"
    assert numbers(got) == numbers(local) and parameters(got) == parameters(local)

    machines.add("worker")  # the launcher starts Ray on a host that is back
    until(lambda: whole(machines), "the lost node is back", 240)
    os.killpg(tunnel.pid, signal.SIGTERM)
    tunnel.wait(30)
    code, out = laptop.call(commands["ray down"])
    assert code == 0 and "ignoring the exception" not in out.lower(), out
    until(lambda: not head.processes(), "nothing runs on the head", 60)
    stop = "~/venv/bin/ray stop"
    assert f"on every worker: {stop}" in SHIPPED.read_text()
    code, out = laptop.call(
        f"ssh -i {machines.key} -o StrictHostKeyChecking=no root@{machines['worker'].address} '{stop}'"
    )
    assert code == 0, out
    until(lambda: not machines["worker"].processes(), "nothing runs on the worker", 60)
    machines.close()
    assert not any(m.init.is_running() for m in machines.there.values())
