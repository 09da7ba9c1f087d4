"""rayfed, other engines, a round written by hand in JAX and a plain loop on the same work, in alternating runs.

    python benchmarks/peers/run.py [--workloads w1,n_mlp,...] [--engines rayfed_user,loop,...] [--repetitions 3] [--resume] [--tiny]

Every side runs in an environment of its own under `--envs` (made on first use with pip; what cannot be installed is left out and named
on the page) and replays one plan: the same first weights, clients, batches and weighting. Writes benchmarks/peers.json,
benchmarks/PEERS.md and the table in README.md after each workload, unless `--tiny` (sizes that only show that all of it works) or
`--out DIR` (there). Workloads that are not asked for keep what peers.json has of them; `--resume` leaves out those that the last sitting
has measured. A peers.json of another machine is kept beside it as peers-HOST.json, and shown on the page. An engine whose run takes
longer than `--patience` seconds is not repeated; the page says how often each was measured.

w1: 100 clients, 20 a round, scikit-learn's digits, Dirichlet 0.5, MLP 64-128-10, one epoch, batch 16.   w2: 1,000 clients of 40
images, 100 a round, McMahan's CNN on 28x28, one epoch, batch 20.   w3: a pretrained MiniLM with LoRA (r = 8, query and value) and a linear
head, 20 clients of 64 texts, 10 a round, batch 8, 32 tokens.   n_mlp, n_cnn: visits without training, 1,000 a round, with w1's and
w2's weights.

rayfed_user is rayfed as a user writes it: own data function, own network, all defaults. The other rows of rayfed: rayfed, evaluated
once and without trackers; rayfed_local, rayfed_actors and rayfed_compiled, the user's with --local, with its visits in actors, and
with compiled steps; rayfed_torch, on the kernels that torch takes by itself; rayfed_bf16, the frozen base in bfloat16. loop_kernels is the
loop on the kernels that rayfed's timing may choose (oneDNN's matrix products, channels-last convolutions).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import figures  # noqa: E402
import page  # noqa: E402
from environments import NEEDS, SHOWN, Missing, environment, versions  # noqa: E402
from watch import MARK, Watch, about, end_processes  # noqa: E402
from workloads import make_plan, user_config, workload  # noqa: E402


class Side(NamedTuple):
    """A row of a table: its engine, and what differs from the engine's usual run."""

    engine: str
    user: bool = False  # rayfed: by the user's config
    changes: Mapping[str, Any] = MappingProxyType({})  # of rayfed's config, or of the environment
    args: tuple[str, ...] = ()
    once: bool = (
        False  # a run before the first measured one makes what later runs find: its seconds more are told apart
    )


SIDES = {e: Side(e) for e in NEEDS} | {
    "rayfed_user": Side("rayfed", True),
    "rayfed_local": Side("rayfed", True, args=("--local",)),
    "rayfed_actors": Side("rayfed", True, {"resources": {"visits": "actors"}}),
    "rayfed_compiled": Side("rayfed", True, {"resources": {"executor": "compiled"}}, once=True),
    "rayfed_torch": Side("rayfed", False, {"resources": {"matmul": "torch", "channels_last": False}}),
    "rayfed_bf16": Side("rayfed", False, {"task": {"dtype": "bf16"}}),
    "loop_kernels": Side("loop", False, {"PEERS_KERNELS": "1"}),
    "blazefl": Side("blazefl", args=("serial",)),
    "blazefl_threads": Side("blazefl", args=("threads",)),
}
USUAL = ("rayfed_user", "rayfed", "loop", "flower", "pfl")
ALSO = {
    "w1": ("rayfed_actors", "rayfed_local", "rayfed_compiled", "jax", "blazefl", "blazefl_threads", "fedjax", "fluke", "nvflare"),
    "w2": ("blazefl", "blazefl_threads", "rayfed_torch", "loop_kernels"),
    "w3": ("rayfed_torch", "loop_kernels", "rayfed_bf16"),
}  # fmt: skip


def once(name: str, config: dict[str, Any], plan: Path, where: Path, python: Path) -> dict[str, Any]:
    """Run one side once; return its figures, its last weights, and the loop's after the rounds at which slower sides stop."""
    side, (mark, out) = SIDES[name], (uuid.uuid4().hex, where / f"{name}-{uuid.uuid4().hex[:6]}")
    out.mkdir()
    paths = os.pathsep.join([str(HERE), *([str(HERE.parents[1])] if side.engine == "rayfed" else [])])
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    env |= {MARK: mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    if side.engine == "rayfed":
        command = rayfed_command(side, config, plan, out, python)
        env["RAYFED_CACHE"] = str(where / "cache")
    else:
        command = [str(python), str(HERE / f"{side.engine}_side.py"), str(plan), str(out), *side.args]
        env |= side.changes
    watch, began = Watch(mark, every=1.0), time.time()
    watch.start()
    with open(out / "log", "w", encoding="utf-8") as log:
        done = subprocess.run(command, env=env, stdout=log, stderr=log, cwd=out)
    took = time.time() - began
    end_processes(watch.end(), mark)  # Flower leaves its Ray to end by itself
    if done.returncode:
        raise Missing(f"it failed:\n{(out / 'log').read_text(encoding='utf-8')[-3000:]}")
    span, end = ran(out) if side.engine == "rayfed" else replayed(out)
    cpu = watch.between(span.begin, span.finished) / len(span.rounds)
    result = {
        "engine": name, **span.figures(began), "cpu_s": cpu, "total_s": took, "pss_mb": watch.peak / 1e6,
        "end": end, "ends": {int(f.stem[4:]): dict(np.load(f)) for f in out.glob("end-*.npz")},
    }  # fmt: skip
    shutil.rmtree(out)
    return result


def rayfed_command(side: Side, config: dict[str, Any], plan: Path, out: Path, python: Path) -> list[str]:
    import yaml

    from rayfed.config.load import merge

    made = user_config(config["name"], config, plan) if side.user else config
    (out / "config.yaml").write_text(yaml.safe_dump(merge(made, dict(side.changes))), encoding="utf-8")
    return [str(python.parent / "rayfed"), "run", str(out / "config.yaml"), "--out", str(out / "runs"), *side.args]


def ran(out: Path) -> tuple[figures.Span, dict[str, Any]]:
    """Read a run folder."""
    from safetensors.numpy import load_file

    from rayfed.storage.events import read_events
    from rayfed.storage.run_folder import read_metrics

    (run,) = (p for p in (out / "runs").iterdir() if not p.name.startswith("."))
    span = figures.of_run(read_metrics(run).to_pylist(), read_events(run))
    return span, load_file(run / "model" / "model.safetensors")


def replayed(out: Path) -> tuple[figures.Span, dict[str, Any]]:
    """Read what `plan.Times` wrote."""
    times = json.loads((out / "times.json").read_text(encoding="utf-8"))
    return figures.of_side(times), dict(np.load(out / "end.npz"))


def measure(
    name: str, sides: list[str], pythons: dict[str, Path], a: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, str]]:
    """Run the sides of one workload in turn, every second time in the reverse order; return side -> figures, and why one has none.

    Missing where rayfed or the loop fails.
    """
    with tempfile.TemporaryDirectory(prefix="peers-") as tmp:
        where = Path(tmp)
        config = workload(name, a.tiny, where)
        plan = make_plan(name, config, where)
        runs: list[dict[str, Any]] = []
        failed: dict[str, str] = {}
        for n in range(a.repetitions):
            for side in sides if n % 2 == 0 else sides[::-1]:
                slow = any(r["engine"] == side and r["total_s"] > a.patience for r in runs)
                if slow or side in failed:
                    continue
                try:
                    before = once(side, config, plan, where, pythons[side]) if SIDES[side].once and n == 0 else None
                    r = once(side, config, plan, where, pythons[side])
                    if before:
                        r["once_s"] = before["total_s"] - r["total_s"]
                except Missing as e:
                    print(f"{side}: {e}", flush=True)
                    if SIDES[side].engine in ("rayfed", "loop"):
                        raise
                    failed[side] = str(e).splitlines()[-1]
                    continue
                runs.append(r)
                print(json.dumps({"workload": name, **{k: v for k, v in r.items() if "end" not in k}}), flush=True)
        found = judged(runs, plan)
    print(json.dumps({"workload": name, "apart": {e: f["apart"] for e, f in found.items()}}), flush=True)
    return found, failed


def judged(runs: list[dict[str, Any]], plan: Path) -> dict[str, dict[str, Any]]:
    """Return side -> median, least and largest of each figure, and how far its last weights are from the plain loop's."""
    about = json.loads((plan / "plan.json").read_text(encoding="utf-8"))
    start = dict(np.load(plan / "start.npz"))
    loop = next((r for r in runs if r["engine"] == "loop"), runs[0])
    per_round = len(np.load(plan / "plan.npz")["clients"][0])
    out: dict[str, dict[str, Any]] = {}
    for side in dict.fromkeys(r["engine"] for r in runs):
        mine = [r for r in runs if r["engine"] == side]
        f = figures.summary(mine)
        own = about.get("own", {}) if SIDES[side].user else {}
        end = {own.get(n, n): w for n, w in mine[-1]["end"].items()}
        f["apart"] = apart(start, end, loop["ends"].get(f["rounds"], loop["end"]))
        f["visits_per_s"] = per_round / f["period_s"]["median"]
        out[side] = f
    return out


def apart(start: dict[str, Any], end: dict[str, Any], of_loop: dict[str, Any]) -> float:
    """Return the largest difference of last weights to the loop's, as a share of how far the loop moved."""
    first, mine, loop = (
        np.concatenate([np.asarray(weights[n], np.float64).ravel() for n in start]) for weights in (start, end, of_loop)
    )
    return float(np.abs(mine - loop).max() / np.abs(loop - first).max())


def make_environments(sides: list[str], envs: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Return side -> Python, and side -> why it is not here."""
    pythons, missing = {}, {}
    for side in sides:
        try:
            pythons[side] = environment(SIDES[side].engine, envs)
        except Missing as e:
            missing[side] = str(e)
    return pythons, missing


def previous(file: Path | None, machine: str) -> dict[str, Any]:
    """Return what was measured before on this machine; what peers.json has of another one is set aside under that one's name."""
    before = json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else {}
    there = next((s["machine"] for s in before.get("about", {}).values()), machine)
    if file and there != machine:
        file.rename(file.with_name(f"peers-{re.sub('[^a-z0-9]+', '-', there.lower())}.json"))
        before = {}
    return {"about": {}, "workloads": {}} | before


def progress(measured: dict[str, Any], resume: bool) -> tuple[set[str], str]:
    """Return the workloads that the sitting has measured, and its name: the last one's where it is resumed, else a new one's."""
    last = max((s.get("sitting", "") for s in measured.values()), default="")
    if not (resume and last):
        return set(), time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    return {w for w, s in measured.items() if s.get("sitting") == last}, last


def report(out: Path | None, found: dict[str, Any]) -> None:
    """Print the page, and write it and README's table: after each workload, so that nothing measured is lost."""
    others = (
        [] if out is None else [json.loads(f.read_text(encoding="utf-8")) for f in sorted(out.glob("peers-*.json"))]
    )
    text = page.write(found, others)
    print(text, flush=True)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / "peers.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / "PEERS.md").write_text(text, encoding="utf-8")
    if out == HERE.parent:
        readme = HERE.parents[1] / "README.md"
        readme.write_text(page.into_readme(readme.read_text(encoding="utf-8"), found["workloads"]), encoding="utf-8")


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--workloads", default="w1,n_mlp,w2,w3,n_cnn")
    p.add_argument("--engines", help=f"of {', '.join(SIDES)}; each workload has some of them")
    p.add_argument("--repetitions", type=int, default=3)
    p.add_argument("--patience", type=float, default=90, help="seconds of a run beyond which it is not repeated")
    p.add_argument("--resume", action="store_true", help="leave out the workloads that the last sitting has measured")
    p.add_argument("--tiny", action="store_true")
    p.add_argument("--envs", type=Path, default=Path.home() / ".cache" / "rayfed-peers")
    p.add_argument("--out", type=Path)
    a = p.parse_args()
    a.engines, a.workloads = a.engines and a.engines.split(","), a.workloads.split(",")
    if unknown := set(a.engines or ()) - set(SIDES):
        p.error(f"--engines: unknown {', '.join(sorted(unknown))}; known: {', '.join(SIDES)}")
    if unknown := set(a.workloads) - set(page.TITLES):
        p.error(f"--workloads: unknown {', '.join(sorted(unknown))}; known: {', '.join(page.TITLES)}")
    return a


def main() -> None:
    a = arguments()
    out, machine = a.out or (None if a.tiny else HERE.parent), about()
    found = previous(out / "peers.json" if out else None, machine["machine"])
    done, sitting = progress(found["about"], a.resume)
    left = [w for w in a.workloads if w not in done]
    wanted = {w: [s for s in (*USUAL, *ALSO.get(w, ())) if s in (a.engines or SIDES)] for w in left}
    pythons, missing = make_environments(list(dict.fromkeys(s for sides in wanted.values() for s in sides)), a.envs)
    peers = {SHOWN[SIDES[s].engine]: p for s, p in pythons.items() if SIDES[s].engine in SHOWN}
    setup = {
        **machine, "sitting": sitting,
        "command": " ".join(["python", *sys.argv]),
        **versions(Path(sys.executable), ["torch", "ray", "transformers", "peft"]),
        **{package: versions(python, [package])[package] for package, python in peers.items()},
    }  # fmt: skip
    for name, sides in wanted.items():
        found["workloads"][name], failed = measure(name, [s for s in sides if s in pythons], pythons, a)
        absent = {s: missing[s] for s in sides if s in missing} | failed
        found["about"][name] = setup | ({"left out": absent} if absent else {})
        report(out, found)


if __name__ == "__main__":
    main()
