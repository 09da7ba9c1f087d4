"""Whole commands on a Ray that the command starts by itself."""

from __future__ import annotations

import json
from pathlib import Path

from tests.ray.conftest import numbers, only_run
from tests.tiny import make_places


def test_ray_gives_the_numbers_of_the_plain_process(rayfed, config, tmp_path):
    """Two actors in processes of their own: the same bits as no Ray at all, and the driver stays free of torch."""
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


def test_one_and_two_actors_agree(rayfed, config, tmp_path):
    for n in (1, 2):
        code, out = rayfed(
            "run", config(resources={"actors": n}), "--out", tmp_path / str(n), "--address", "local"
        ).wait()
        assert code == 0, out
    one, two = (numbers(only_run(tmp_path / str(n))) for n in (1, 2))
    assert one == two


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
