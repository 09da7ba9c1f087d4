"""Own code in actors that exits or hangs."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from rayfed.storage.run_folder import read_metrics
from tests.ray.conftest import numbers, only_run, until

OWN = '''
import sys, time
from pathlib import Path
from rayfed import visit
from rayfed.methods.fedavg import FedAvg
from rayfed.method import MethodSettings

class Leaves(FedAvg):
    """Client 3 exits, client 5 hangs if it may."""
    class Settings(FedAvg.Settings):
        hang: bool = True

    @visit
    def train(self, task):
        made = super().train(task)
        def end(client, carry):
            if int(client.info.client) == 3:
                sys.exit(0)
            if int(client.info.client) == 5 and self.settings.hang:
                Path("HERE").touch()
                time.sleep(3600)
            return made.end(client, carry)
        return made._replace(end=end, vectorize="it looks at the client's number")
'''


def own(tmp_path: Path) -> dict[str, str]:
    file = tmp_path / "own.py"
    file.write_text(OWN.replace("HERE", str(tmp_path / "hangs")))
    return {"name": f"{file}:Leaves"}


def test_an_exit_and_a_time_limit_are_client_errors(rayfed, config, tmp_path):
    """No actor is lost by them, and the others' rounds are those of the plain process."""
    made = config(
        rounds=2,
        method=own(tmp_path),
        federation={"per_round": 40},
        evaluate={"every": 2},
        failures={"client_error": "drop", "client_timeout_s": 4},
    )
    rows = {}
    for name, how in (("ray", ["--address", "local"]), ("plain", ["--local"])):
        code, out = rayfed("run", made, "--out", tmp_path / name, *how).wait()
        assert code == 0, out
        rows[name] = numbers(only_run(tmp_path / name))
        counts = read_metrics(only_run(tmp_path / name)).to_pylist()
        assert [(r["clients/dropped"], r["actors/restarts"]) for r in counts] == [(2, 0)] * 2
    assert rows["ray"] == rows["plain"]


def test_a_second_ctrl_c_ends_at_once_while_a_client_hangs(rayfed, config, tmp_path):
    made = config(method=own(tmp_path), federation={"per_round": 40}, failures={"client_error": "drop"})
    command = rayfed("run", made, "--out", tmp_path / "o", "--address", "local")
    until(lambda: (tmp_path / "hangs").exists(), "the client hangs")
    time.sleep(2)  # the command asks the server for its status now and then
    command.kill(signal.SIGINT)
    assert command.process.stdout
    said = ""
    while "stopping; waiting for" not in said:
        said = command.process.stdout.readline()
        assert said, "the command has ended"
    assert "round 1 of 8" in said and "clients at work: " in said and "5" in said, said
    command.kill(signal.SIGINT)
    code, out = command.wait(timeout=60)
    assert code == 130 and "interrupted at once" in out, out
