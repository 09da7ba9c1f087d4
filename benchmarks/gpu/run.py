"""Cohorts on one GPU: loop, vmap and a plain PyTorch or PEFT loop; one process or several that share the device.

    python benchmarks/gpu/run.py [--device cuda|cpu] [--tiny] [--parts ceiling,w1,w2,w3,decoder,fractions] [--minutes 8] [--out FILE.json]

Needs torch; w3, decoder and fractions also transformers and peft; nothing else besides this checkout, no Ray. The results file
(default benchmarks/gpu.json, none with --tiny) is written after every row; no row is begun once the minutes are used.
`python benchmarks/gpu/page.py` makes benchmarks/GPU.md of it.

ceiling: the largest matmul rate of this device, bf16 and float32 (without TF32), over some sizes.   w1: an MLP, 20 clients.
w2: McMahan's CNN, 100 clients.   w3: MiniLM with LoRA, 10 clients.   decoder: about 1.1 billion random weights in bf16, LoRA.
fractions: clients of the decoder and of w3 trained by 1, 2 or 4 processes at once, each with its share of the memory.
`plain` is one client after another with autograd and torch.optim, its network wrapped by PEFT where there is an adapter. All train the
same clients on the same batches from the same weights; `apart` is the largest difference to plain's updates as a share of the largest.
Timed is training alone, between synchronisations, after a warm-up: no plan, no transport, no fold.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]  # also where rayfed is not installed
PARTS = ("ceiling", "w1", "w2", "w3", "decoder", "fractions")
UNTIL = {"decoder": 0.7}  # share of the minutes after which a part leaves the rest to the next one
PLAIN = 8  # clients that the slow rows train: they go one after another, so their rate does not depend on how many
SECONDS = 10.0  # of repetitions per row, unless it takes fewer to have three


class Run:
    """The rows so far, the clock, and the file that they are kept in."""

    def __init__(self, a: argparse.Namespace):
        import torch

        self.a, self.began, self.device = a, time.perf_counter(), a.device
        self.rows: list[dict[str, Any]] = []
        self.skipped: list[str] = []
        self.ceiling: dict[str, Any] = {}
        self.until, self.repeat = 1.0, 1 if a.tiny else 3
        gpu = torch.cuda.get_device_properties(0) if a.device == "cuda" else None
        self.about = {
            "device": f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" if gpu else f"CPU, {torch.get_num_threads()} threads",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version(),
            **{n: version(n) for n in ("torch", "transformers", "peft")}, "cuda": torch.version.cuda,
            "tiny": a.tiny, "parts": a.parts,
        }  # fmt: skip

    @property
    def used(self) -> float:
        return time.perf_counter() - self.began

    def late(self, what: str) -> bool:
        """Return whether the minutes are used up, so that `what` is not begun."""
        if self.used < 60 * self.a.minutes * self.until:
            return False
        self.skipped.append(what)
        return True

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        print(line(row), flush=True)
        self.save()

    def save(self) -> None:
        if self.a.out:
            found = {"about": {**self.about, "seconds": round(self.used, 1)}, "ceiling": self.ceiling, "rows": self.rows,
                     "skipped": self.skipped}  # fmt: skip
            part = self.a.out.with_name(self.a.out.name + ".part")
            part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            part.replace(self.a.out)

    def share(self, rate: float, kind: str) -> dict[str, float]:
        """Return a rate in TFLOP/s, and as a share of the ceiling if that was measured."""
        top = self.ceiling.get(kind, {}).get("tflops")
        return {"tflops": rate, **({"of_ceiling": rate / top} if top else {})}


def version(package: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def line(row: dict[str, Any]) -> str:
    """Return a row of the table that is printed."""
    sizes = " ".join(f"{n}={row[n]}" for n in ("rank", "batch", "length", "k", "processes") if n in row)
    head = f"{row['part']:9} {row['row']:18} {sizes:42}"
    if "failed" in row:
        return f"{head} {row['failed']}"
    tokens = f"{row['tokens_per_s']:12,.0f} tokens/s" if "tokens_per_s" in row else ""
    of = f"{100 * row['of_ceiling']:6.2f} % of ceiling" if "of_ceiling" in row else ""
    speed = f"{row['speedup']:7.2f} x plain" if "speedup" in row else ""
    away = f"apart {row['apart']:.0e}" if "apart" in row else ""
    return f"{head} {row['clients_per_s']:10.2f} clients/s {tokens} {of} {speed} {row['peak_mib']:9,.0f} MiB {away}"


# -- timing ------------------------------------------------------------------------------------------------------------


def sync(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def free(device: str) -> None:
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def timed(work: Callable[[], Any], device: str, repeat: int) -> tuple[Any, dict[str, Any]]:
    """Return what `work` gives, its median seconds and the peak of memory: PyTorch's on a GPU, else the process's.

    fallback: the operations that vmap has no rule for, so that it calls them client by client.
    """
    import torch

    free(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        out = work()  # warm-up
    alone = sorted({m for w in heard for m in re.findall(r"batching rule for (aten::\w+)", str(w.message))})
    times: list[float] = []
    while len(times) < repeat and sum(times) < SECONDS:
        out = None
        sync(device)
        began = time.perf_counter()
        out = work()
        sync(device)
        times.append(time.perf_counter() - began)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else rss
    return out, {
        "seconds": statistics.median(times), "least": min(times), "repeats": len(times), "peak_mib": peak / 2**20,
        **({"fallback": alone} if alone else {}),
    }  # fmt: skip


@contextmanager
def caught(row: dict[str, Any], run: Run) -> Iterator[None]:
    """Turn a failure into a row that says so; the run goes on."""
    import torch

    try:
        yield
    except Exception as e:
        out_of_memory = isinstance(e, torch.OutOfMemoryError) or "can't allocate memory" in str(e)
        reason = "out of memory" if out_of_memory else f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]}"
        run.add({**row, "failed": reason})
    free(run.device)


def ceiling(run: Run) -> None:
    """Measure the largest rate of a square matmul over a few sizes, each for about 0.3 s after a warm-up, on random normal numbers."""
    import torch

    torch.set_float32_matmul_precision("highest")
    least = 0.03 if run.a.tiny else 0.3
    for kind, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        rates: dict[str, float] = {}
        for n in (64, 128, 256) if run.a.tiny else (4096, 8192, 16384):
            x, y = (torch.randn(n, n, device=run.device, dtype=dtype) for _ in range(2))
            calls, seconds = 2, 0.0
            for _ in range(12):  # a CPU's first calls are slow, and a GPU's clock rises
                sync(run.device)
                began = time.perf_counter()
                for _ in range(calls):
                    x @ y
                sync(run.device)
                seconds = time.perf_counter() - began
                if seconds > least:
                    break
                calls *= 2
            rates[str(n)] = 2 * n**3 * calls / seconds / 1e12
            del x, y
        run.ceiling[kind] = {"tflops": max(rates.values()), "sizes": rates}
        print(
            f"ceiling   {kind}: {max(rates.values()):.3g} TFLOP/s ({', '.join(f'{n}: {r:.3g}' for n, r in rates.items())})"
        )
        run.save()


# -- one workload's rows -----------------------------------------------------------------------------------------------


def compare(run: Run, part: str, s: Any, rows: list[tuple[str, int, str]], about: dict[str, Any]) -> None:
    """Measure rows (executor, k, attention) of one setup, after `plain`'s, with which they are compared."""
    import workloads

    base, per_client = None, None
    some = range(min(PLAIN, s.clients)) if part == "decoder" else range(s.clients)
    few = s.cohorts(len(some), some)
    for kind, k, attention in [("plain", 1, "sdpa"), *rows]:
        row: dict[str, Any] = {"part": part, "row": kind, **about, "k": k}
        if s.length:
            row["attention"] = attention
        if run.late(line_of(row)):
            continue
        with caught(row, run):
            workloads.attention(s, attention)
            if kind == "plain":
                cohorts, given = few, workloads.batches(s, few)
                found, cost = timed(partial(workloads.plain, s, given), run.device, run.repeat)
            else:
                cohorts = few if kind == "loop" else s.cohorts(k, range(k) if part == "decoder" else None)
                found, cost = timed(partial(workloads.ours, s, kind, cohorts), run.device, run.repeat)
            examples = sum(float(co.phases[0].w.sum()) for co in cohorts)
            clients = sum(len(co.clients) for co in cohorts)
            row |= {"clients": clients, **cost, "clients_per_s": clients / cost["seconds"]}
            row["examples_per_s"] = examples / cost["seconds"]
            if kind == "plain":
                base, per_client = {n: x.clone() for n, x in found.items()}, cost["seconds"] / clients
            elif base is not None and per_client is not None:
                row |= {"apart": workloads.apart(found, base), "speedup": per_client * row["clients_per_s"]}
            if s.length:
                tokens = float(sum(real_tokens(s, co) for co in cohorts)) / cost["seconds"]
                need = workloads.flops(s.task, s.length, part != "w3")
                row |= {"tokens_per_s": tokens, **run.share(tokens * need / 1e12, "bf16" if s.task.half else "float32")}
            del found
            run.add(row)
    free(run.device)


def line_of(row: dict[str, Any]) -> str:
    return " ".join(f"{v}" if n in ("part", "row") else f"{n}={v}" for n, v in row.items())


def real_tokens(s: Any, cohort: Any) -> Any:
    """Count the tokens of a cohort's planned examples, padding left out."""
    plan = cohort.phases[0]
    x = s.data["x"][plan.rows]
    ids = x[..., 0, :] if x.dim() == 6 else x
    return ((ids >= 0).sum(-1) * plan.w).sum()


def small(run: Run, part: str) -> None:
    """Measure w1 or w2."""
    import workloads

    s = getattr(workloads, part)(run.device, run.a.tiny)
    ks = sorted({max(1, s.clients // 4), s.clients})
    compare(run, part, s, [("loop", 1, ""), *(("vmap", k, "") for k in ks)], {})


def w3(run: Run) -> None:
    import workloads

    where = minilm(run.a)
    run.about["w3"] = "all-MiniLM-L6-v2" if where else "MiniLM's architecture with random weights"
    s = workloads.w3(run.device, run.a.tiny, where)
    ks = sorted({1, s.clients // 2, s.clients})
    compare(run, "w3", s, [("loop", 1, "eager"), *(("vmap", k, "eager") for k in ks), ("vmap", s.clients, "sdpa")], {})


def minilm(a: argparse.Namespace) -> Path | None:
    """Return the folder of all-MiniLM-L6-v2 if it is installed; None with --tiny."""
    import cohorts  # type: ignore[import-not-found]

    return None if a.tiny else a.minilm or cohorts.installed()


def decoder(run: Run) -> None:
    """Measure the decoder's points, the most informative ones first."""
    import workloads

    tiny = run.a.tiny
    # In float32 the numbers are equal to rounding; bf16 rounds so much that only a wrong result would stand out.
    made: Any = workloads.decoder_task(workloads.TINY, run.device, 8, "float32")
    s: Any = workloads.decoder(made, run.device, 4, 2, 32)
    rows = [("loop", 1, "sdpa"), ("vmap", 4, "sdpa"), ("vmap", 4, "eager")]
    compare(run, "decoder", s, rows, {"model": "2 layers, float32", "rank": 8, "batch": 2, "length": 32})
    points: list[tuple[int, int, int, list[int], bool]] = (  # rank, batch, length, clients per pass, checkpointing
        [(4, 1, 32, [1, 4], False), (8, 2, 32, [4], True)]
        if tiny
        else [
            (16, 1, 128, [1, 4, 16, 32, 64], False), (16, 4, 128, [1, 8, 32, 64], False), (16, 1, 512, [16, 64], False),
            (16, 4, 512, [16, 32], False), (4, 4, 128, [32], False), (64, 4, 128, [32, 64], False), (16, 4, 512, [64], True),
        ]
    )  # fmt: skip
    now = None
    for rank, batch, length, ks, checkpointing in points:
        label = {"rank": rank, "batch": batch, "length": length, **({"checkpointing": True} if checkpointing else {})}
        if run.late(f"decoder {label}"):
            continue
        with caught({"part": "decoder", "row": "setup", **label}, run):
            if now != (rank, checkpointing):
                made = s = None
                free(run.device)
                about = workloads.TINY if tiny else workloads.DECODER
                made, now = (
                    workloads.decoder_task(about, run.device, rank, checkpointing=checkpointing),
                    (rank, checkpointing),
                )
                size = sum(p.numel() for p in made.frozen.values()) / 1e9
                run.about["decoder"] = f"{size:.3g} billion random weights, bf16; LoRA on q_proj and v_proj, float32"
            s = workloads.decoder(made, run.device, max(ks), batch, length)
            first = [("loop", 1, "sdpa")] if (rank, batch, length) == points[0][:3] else []
            compare(run, "decoder", s, [*first, *(("vmap", k, "sdpa") for k in ks), ("vmap", ks[-1], "eager")], label)


# -- several processes on one device -----------------------------------------------------------------------------------


def fractions(run: Run) -> None:
    """Train the same clients in n processes at once, k per call in each; processes start their timed work at the same time."""
    import workloads

    tiny = run.a.tiny
    plans = {"decoder": (4, [4]) if tiny else (64, [64, 16]), **({} if tiny else {"w3": (40, [40, 10])})}
    for what, (clients, alone) in plans.items():
        base: Any = None
        for n in (1, 2) if tiny else (1, 2, 4):
            ks = alone if n == 1 else [clients // n]
            label = {"part": "fractions", "row": what, "processes": n}
            if run.late(f"fractions {what} processes={n}"):
                continue
            with tempfile.TemporaryDirectory(prefix="gpu-fractions-") as tmp, caught({**label, "k": ks[0]}, run):
                for row, found in side_by_side(run, what, n, ks, clients, Path(tmp)):
                    away = {} if base is None else {"apart": workloads.apart(found, base)}
                    base = found if base is None else base
                    run.add({**label, **row, **away})


def side_by_side(
    run: Run, what: str, n: int, ks: list[int], clients: int, tmp: Path
) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield (row, updates of all clients) for each k."""
    import numpy as np
    import torch

    jobs: list[subprocess.Popen[str]] = []

    def stop() -> None:
        for job in jobs:
            if job.poll() is None:
                job.kill()

    late = threading.Timer(max(90.0, 60 * run.a.minutes - run.used), stop)  # whatever they wait for
    late.start()
    try:
        for i in range(n):
            order = {"what": what, "process": i, "of": n, "ks": ks, "clients": clients, "tmp": str(tmp)}
            command = [sys.executable, str(HERE / "run.py"), "--device", run.device, "--worker", json.dumps(order)]
            command += ["--tiny"] if run.a.tiny else []
            log = open(tmp / f"{i}.log", "w", encoding="utf-8")  # noqa: SIM115  (closed with the process)
            jobs.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, encoding="utf-8")
            )
        for k in ks:
            for i, job in enumerate(jobs):
                next_answer(job, tmp, i)  # ready
            for job in jobs:
                assert job.stdin
                job.stdin.write("go\n")
                job.stdin.flush()
            got = [next_answer(job, tmp, i) for i, job in enumerate(jobs)]
            seconds = (max(g["ended"] for g in got) - min(g["began"] for g in got)) / got[0]["calls"]
            tokens = sum(g["tokens"] for g in got) / seconds
            row = {"k": k, "clients": clients, "seconds": seconds, "clients_per_s": clients / seconds, "tokens_per_s": tokens,
                   "peak_mib": sum(g["peak_mib"] for g in got)}  # fmt: skip
            kind = "bf16" if what == "decoder" else "float32"
            row |= run.share(sum(g["flops"] for g in got) / seconds / 1e12, kind)
            files = [np.load(tmp / f"{i}-{k}.npz") for i in range(n)]
            yield row, {m: torch.from_numpy(np.concatenate([f[m] for f in files])) for m in files[0].files}
    finally:
        late.cancel()
        stop()
        for job in jobs:
            job.wait()
            for pipe in (job.stdin, job.stdout):
                if pipe:
                    pipe.close()


def next_answer(job: subprocess.Popen[str], tmp: Path, i: int) -> Any:
    """Return the next line of a process as JSON; RuntimeError with the end of its log if it has ended."""
    assert job.stdout
    for text in job.stdout:
        if text.startswith("{"):
            got = json.loads(text)
            if "failed" in got:
                raise RuntimeError(got["failed"])
            return got
    log = (tmp / f"{i}.log").read_text(encoding="utf-8").strip().splitlines()
    raise RuntimeError(f"a process ended: {log[-1] if log else 'it said nothing'}")


def worker(a: argparse.Namespace, job: dict[str, Any]) -> None:
    """Work as one of the processes: train its share of the clients, k per call, at each `go`."""
    import numpy as np
    import torch
    import workloads

    n, i = job["of"], job["process"]
    if a.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(0.94 / n)  # contexts and libraries are outside of it
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // n))
    try:
        if job["what"] == "w3":
            s = workloads.w3(a.device, False, minilm(a), clients=job["clients"])
        else:
            made = workloads.decoder_task(workloads.TINY if a.tiny else workloads.DECODER, a.device, 16)
            batch, length = (1, 32) if a.tiny else (4, 128)
            s = workloads.decoder(made, a.device, job["clients"], batch, length)
        for k in job["ks"]:
            mine = range(i * job["clients"] // n, (i + 1) * job["clients"] // n)
            cohorts = s.cohorts(k, mine)
            _, cost = timed(partial(workloads.ours, s, "vmap", cohorts), a.device, 1)
            tokens = float(sum(real_tokens(s, co) for co in cohorts))
            calls = 1 if a.tiny else 3
            print(json.dumps({"ready": k}), flush=True)
            sys.stdin.readline()
            began = time.time()
            for _ in range(calls):
                found = workloads.ours(s, "vmap", cohorts)
            sync(a.device)
            ended = time.time()
            np.savez(Path(job["tmp"]) / f"{i}-{k}.npz", **{m: x.cpu().numpy() for m, x in found.items()})
            need = workloads.flops(s.task, s.length or 0, job["what"] == "decoder")
            print(json.dumps({"began": began, "ended": ended, "calls": calls, "tokens": tokens, "flops": tokens * need,
                              "peak_mib": cost["peak_mib"]}), flush=True)  # fmt: skip
            del found
    except torch.OutOfMemoryError:
        print(json.dumps({"failed": "out of memory"}), flush=True)


# -- main --------------------------------------------------------------------------------------------------------------


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    p.add_argument("--tiny", action="store_true", help="sizes that only show that all of it works")
    p.add_argument("--parts", default=",".join(PARTS))
    p.add_argument("--minutes", type=float, default=8.0)
    p.add_argument("--out", type=Path)
    p.add_argument(
        "--minilm", type=Path, help="folder of all-MiniLM-L6-v2; else random weights, unless it is installed"
    )
    p.add_argument("--worker", help=argparse.SUPPRESS)
    a = p.parse_args()
    parts = a.parts.split(",")
    if unknown := [n for n in parts if n not in PARTS]:
        p.error(f"--parts: {unknown[0]!r} found, known: {', '.join(PARTS)}")
    needs = ["torch", "numpy", *(["transformers", "peft"] if {"w3", "decoder", "fractions"} & set(parts) else [])]
    if lacks := [n for n in needs if importlib.util.find_spec(n) is None]:
        sys.exit(f"--parts {a.parts} needs {', '.join(needs)}; not installed here: {', '.join(lacks)}")
    import torch

    if a.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: PyTorch sees no GPU here; --device cpu --tiny shows that all of it works")
    from rayfed.execute.tuning import kernels

    if a.device == "cuda":
        kernels.prepare_gpu()
    if a.worker:
        worker(a, json.loads(a.worker))
        return
    if not a.out and not a.tiny and a.device == "cuda":
        a.out = HERE.parent / "gpu.json"
    warnings.filterwarnings("ignore", "There is a performance drop because we have not yet")  # see `timed`
    run = Run(a)
    print("; ".join(f"{n} {v}" for n, v in run.about.items()))
    does = {"ceiling": ceiling, "w3": w3, "decoder": decoder, "fractions": fractions}
    todo = [n for n in PARTS if n in parts]
    for name in todo:
        run.until = UNTIL.get(name, 1.0) if name != todo[-1] else 1.0
        if not run.late(name):
            with caught({"part": name, "row": "all"}, run):
                does[name](run) if name in does else small(run, name)
    run.save()
    print(
        f"{run.used:.0f} s" + (f"; not begun in {a.minutes:g} minutes: {'; '.join(run.skipped)}" if run.skipped else "")
    )


if __name__ == "__main__":
    main()
