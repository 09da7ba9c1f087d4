"""Whole commands on a Ray that the command starts by itself."""

from __future__ import annotations

import json
import signal
import textwrap
from pathlib import Path

import psutil

from tests.ray.conftest import at_round, numbers, only_run, placed, until
from tests.tiny import make_places


def test_ray_gives_the_numbers_of_the_plain_process(rayfed, config, tmp_path):
    """Two actors in separate processes: the same bits as no Ray at all, and the driver stays free of torch."""
    file = config()
    code, out = rayfed("run", file, "--out", tmp_path / "ray", "--address", "local").wait()
    assert code == 0, out
    assert "torch in the driver: False" in out
    code, out = rayfed("run", file, "--out", tmp_path / "local", "--local").wait()
    assert code == 0, out
    rows = numbers(only_run(tmp_path / "ray"))
    assert [r["round"] for r in rows] == list(range(1, 9))
    assert rows == numbers(only_run(tmp_path / "local"))
    summary = json.loads((only_run(tmp_path / "ray") / "summary.json").read_text())
    assert summary["status"] == "done" and summary["rounds"] == 8 and summary["executor"] == "vmap"


def test_small_rounds_begin_before_there_are_client_actors(rayfed, config, tmp_path):
    """In the server's process, several calls a round; the actors join while it is at work. The same numbers as without Ray, on a Ray
    without a dashboard."""
    file = config(
        rounds=2000, local={"epochs": 20}, evaluate={"every": 1}, resources={"actors": "auto", "cohort": 4}
    )  # some tens of ms a round
    command = rayfed("run", file, "--out", tmp_path / "ray")
    folder = at_round(tmp_path / "ray", 1)
    until(lambda: len(placed(folder)["clients"]) == 2, "the client actors are there")
    joined = json.loads((folder / "state.json").read_text())["round"]
    at_round(tmp_path / "ray", joined + 5)
    processes = psutil.Process(command.process.pid).children(recursive=True)
    programs = " ".join(word for p in processes for word in p.cmdline()[:2])
    command.kill(signal.SIGINT)
    assert command.wait()[0] == 130
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    first, second = [e for e in events if e["kind"] == "placed"]
    assert first["clients"] == [] and first["server"] == second["server"]
    (chosen,) = [e for e in events if e["kind"] == "executor"]
    assert (chosen["visits"], chosen["cohort"], chosen["judged_by"]) == ("actors", 4, "estimate")
    from rayfed.api import Run

    moved = Run(folder).metrics()["ray/bytes/up"].to_pylist()
    assert moved[0] == 0 < moved[-1]
    assert "/raylet" in programs and "dashboard.py" not in programs
    rounds = f"rounds={len(moved)}"
    assert rayfed("run", file, "--set", rounds, "--out", tmp_path / "local", "--local").wait()[0] == 0
    assert numbers(folder) == numbers(only_run(tmp_path / "local"))


def test_a_pretrained_model_gives_the_same_numbers_in_actors(rayfed, config, tmp_path):
    """LoRA of unequal ranks on a text model: two actors read the frozen base from the object store, and the adapter is kept."""
    places = make_places(tmp_path)
    file = config(
        rounds=4,
        task={
            "data": {"name": f"parquet:{places['data']}", "length": 8},
            "model": {"name": f"hf:{places['bert']}"},
        },
        adapter={"kind": "lora", "rank": {1: 0.5, 2: 0.5}, "targets": ["query", "value"]},
        federation={"clients": 6, "per_round": 4, "partition": {"kind": "dirichlet", "alpha": 1.0}},
        local={"epochs": None, "steps": 3, "batch_size": 4, "optimizer": {"name": "adamw", "lr": 0.01}},
        method={"name": "fedit"},
    )
    found = {}
    for name, how in (("ray", ["--address", "local"]), ("local", ["--local"])):
        code, out = rayfed("run", file, "--out", tmp_path / name, *how).wait()
        assert code == 0, out
        folder = only_run(tmp_path / name)
        found[name] = (numbers(folder), (folder / "model" / "adapter_model.safetensors").read_bytes())
    assert len(found["ray"][0]) == 4 and found["ray"] == found["local"]


COUNTING = '''
    import torch

    from rayfed import SCALAR, Part, Phase, Visit, total, visit
    from rayfed.methods.fedavg import FedAvg
    from rayfed.visits import once

    class Counting(FedAvg):
        """FedAvg that also asks how many examples of a class its clients have."""
        wire = FedAvg.wire._replace(up={**FedAvg.wire.up, "n": Part(SCALAR)})

        @visit
        def count(self, task, k):
            def step(carry, batch, key):
                return {"n": carry["n"] + ((batch["y"] == k) * batch["w"]).sum()}
            zero = torch.zeros((), dtype=task.dtype, device=task.device)
            return Visit(lambda client: {"n": zero}, [Phase(once(), step, counts=False)], lambda client, carry: (carry, {}))

        def round(self, state, fed, task):
            for k in (1, 3):
                got = fed.ask(self.count.with_(k=k), range(fed.population), fold=total("n"))
                fed.log(f"examples/{k}", float(got.folded["n"]))
                fed.log(f"right/{k}", float(got.folded["n"] == fed.federation.class_counts[: fed.population, k].sum()))
            return super().round(state, fed, task)
'''


def test_one_and_two_actors_agree(rayfed, config, tmp_path):
    """Also on visits that take arguments."""
    method = tmp_path / "counting.py"
    method.write_text(textwrap.dedent(COUNTING))
    for n in (1, 2):
        file = config(resources={"actors": n}, method={"name": f"{method}:Counting"})
        code, out = rayfed("run", file, "--out", tmp_path / str(n), "--address", "local").wait()
        assert code == 0, out
    one, two = (numbers(only_run(tmp_path / str(n))) for n in (1, 2))
    assert one == two and all(row["right/1"] == row["right/3"] == 1 for row in one)
    assert one[0]["examples/1"] != one[0]["examples/3"]


def test_an_impossible_plan_is_refused_before_ray_starts(rayfed, config, env, tmp_path):
    code, out = rayfed("run", config(resources={"actors": 500}), "--out", tmp_path / "o", "--address", "local").wait()
    assert code == 3
    assert "resources.actors=500" in out and "fit on" in out and "Lower resources.actors" in out
    assert not list((Path(env["RAY_TMPDIR"]) / "ray").iterdir()), "Ray was started for nothing"


def test_a_wrong_config_is_reported_before_ray_starts(rayfed, config, env, tmp_path):
    code, out = rayfed(
        "run", config(method={"name": "scafold"}, rounds=0), "--out", tmp_path / "o", "--address", "local"
    ).wait()
    assert code == 2
    assert "scaffold" in out and "rounds" in out, "all problems at once, with the nearest name"
    assert not list((Path(env["RAY_TMPDIR"]) / "ray").iterdir())
    assert not (tmp_path / "o").exists()
