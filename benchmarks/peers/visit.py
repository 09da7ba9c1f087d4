"""CPU time of one client's visit: the plain loop's, and rayfed's executors with and without what makes them fast.

    python benchmarks/peers/visit.py [w1|w2|w3] [--cohort 10] [--repeat 3]

Each figure is a separate process with one thread, in alternating order; no Ray. A visit is all that a client actor does for it:
batches drawn, trained, checked and folded. kept: freed memory stays with the process
(`rayfed.execute.tuning.process`); played: pieces are recorded and played (`rayfed.execute.tuning.replay`). Prints a table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import workloads
import yaml
from watch import about

KINDS = ("plain", "loop", "vmap")


def measure(kind: str, kept: bool, played: bool, cohort: int, where: Path, enough: float) -> float:
    """Measure CPU milliseconds per visit, in this process; `enough`: CPU seconds that are measured."""
    import torch

    from rayfed.execute.tuning import process

    torch.set_num_threads(1)
    process.defer_compiler()
    if kept:
        process.keep_freed_memory()
    if kind == "plain":
        import plan as plans
        import work

        plan = plans.Plan(where / "plan")
        client, at = work.Client(plan), 0

        def some() -> int:
            nonlocal at
            r = at % plan.rounds
            sums = None
            for i in range(len(plan.clients[r])):
                sums = work.mean(sums, client.visit(plan.start, r, i), 1.0)
            at += 1
            return len(plan.clients[r])
    else:
        from rayfed import partition, tree
        from rayfed.engine.messages import Job, VisitCall
        from rayfed.engine.worker import Worker
        from rayfed.fold import mean
        from rayfed.launch.preflight import load_request
        from rayfed.models.start import start_from

        c = load_request(yaml.safe_load((where / "config.yaml").read_text(encoding="utf-8"))).with_resources(
            executor=kind, cohort=cohort, replay="auto" if played else "off"
        )
        worker, fed = Worker(), partition.build(c)
        worker.setup("run", c, fed, start_from(c))
        resident, at = worker.runs["run"], 0
        value = tree.to_numpy(resident.task.initial)
        ordered = sorted(range(fed.population), key=lambda i: len(fed.train[i]))

        def some() -> int:
            nonlocal at
            begin = at * cohort % (fed.population - cohort + 1)
            ids = tuple(ordered[begin : begin + cohort])
            call = VisitCall("train", ids, (at << 20) + 1, at + 1, 10**6, ("model",), folds=(mean("delta"),))
            worker.do(Job("run", call), [value])
            at += 1
            return cohort

    began = time.process_time()
    while time.process_time() < began + enough / 2:  # what later calls reuse is built
        some()
    visits, began = 0, time.process_time()
    while time.process_time() < began + enough:
        visits += some()
    return (time.process_time() - began) / visits * 1e3


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("workload", nargs="?", default="w1", choices=("w1", "w2", "w3"))
    p.add_argument("--cohort", type=int, default=10)
    p.add_argument("--repeat", type=int, default=3)
    p.add_argument("--tiny", action="store_true")
    p.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.one:
        kind, kept, played, where = args.one
        print(
            json.dumps(measure(kind, kept == "1", played == "1", args.cohort, Path(where), 0.05 if args.tiny else 2.0))
        )
        return
    variants = [(k, kept, played) for k in KINDS for kept in (0, 1) for played in ((0,) if k == "plain" else (0, 1))]
    found: dict[tuple[str, int, int], list[float]] = {v: [] for v in variants}
    with tempfile.TemporaryDirectory(prefix="rayfed-visit-") as folder:
        where = Path(folder)
        config = workloads.workload(args.workload, args.tiny, where)
        (where / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        workloads.make_plan(args.workload, config, where)
        for _ in range(args.repeat):
            for v in variants:
                arguments = [
                    args.workload,
                    f"--cohort={args.cohort}",
                    *["--tiny"] * args.tiny,
                    "--one",
                    *map(str, v),
                    folder,
                ]
                command = [sys.executable, __file__, *arguments]
                done = subprocess.run(command, capture_output=True, encoding="utf-8")
                if done.returncode:
                    sys.exit(done.stderr)
                found[v].append(float(json.loads(done.stdout)))
    print(f"CPU ms of one client's visit, {args.workload}, cohorts of {args.cohort}; {about()}\n")
    print("| executor | memory kept | played | ms (least to largest) |\n|---|---|---|---|")
    for (kind, kept, played), ms in found.items():
        switches = ["yes" if x else "no" for x in (kept, played)]
        print(f"| {kind} | {' | '.join(switches)} | {statistics.median(ms):.2f} ({min(ms):.2f} to {max(ms):.2f}) |")


if __name__ == "__main__":
    main()
