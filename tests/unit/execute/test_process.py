"""A process that computes: memory kept, torch's compiler left out until someone wants it."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rayfed.cli import app
from rayfed.execute.tuning import process
from tests import toy

ROOT = Path(__file__).parents[3]

CODE = """
import json, sys, torch
from rayfed.execute.tuning import process
if sys.argv[1] == "prepared":
    process.prepare()
loss = lambda p, x, y: torch.nn.functional.cross_entropy(x @ p, y)
g = torch.Generator().manual_seed(0)
draw = lambda *shape: torch.randn(*shape, generator=g)
grads = torch.vmap(torch.func.grad(loss))(draw(3, 4, 5), draw(3, 6, 4), torch.arange(18).reshape(3, 6) % 5)
left_out = "torch._dynamo" not in sys.modules
compiled = torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
again = torch.func.grad(lambda x: (x**2).sum())(torch.ones(2))
print(json.dumps([left_out, grads.tolist(), compiled.tolist(), again.tolist(), type(torch._dynamo).__name__]))
"""


def said(how: str) -> list[object]:
    done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_gradients_without_the_compiler_which_comes_when_it_is_asked_for() -> None:
    prepared, plain = said("prepared"), said("plain")
    assert prepared[0] is True and plain[0] is False
    assert prepared[1:] == plain[1:] and prepared[2:] == [[2.0, 2.0], [2.0, 2.0], "module"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_kept() -> None:
    code = """
import resource, torch
from rayfed.execute.tuning import process
assert process.keep_freed_memory()
def work():
    for _ in range(20):
        torch.ones(2_000_000)  # 8 MB, freed at once
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2_000  # pages of one such tensor; of twenty that are returned each time: 39,000


IN_A_NOTEBOOK = """
import ctypes, gc, json, logging, os, random, signal, sys, threading, warnings
import numpy as np, torch
import rayfed
from rayfed.execute.tuning import process
from tests import toy

torch.set_num_threads(2)
called, cdll = [], ctypes.CDLL

class Spied(cdll):
    def __getattr__(self, name):
        called.append(name)
        return super().__getattr__(name)

ctypes.CDLL = Spied
put_in_place, deferred = [], process._Deferred
process._Deferred = lambda module, **known: put_in_place.append(module) or deferred(module, **known)

def state():
    module = type(sys)
    return {
        "malloc": [n for n in called if n.startswith("mallopt")],
        "torch's compiler": [put_in_place, isinstance(vars(torch).get("_dynamo", sys), module)],
        "frozen objects": gc.get_freeze_count(), "collector": [gc.isenabled(), *gc.get_threshold()],
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "precision": [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32],
        "deterministic": [torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark],
        "types": [str(torch.get_default_dtype()), torch.is_grad_enabled()],
        "generators": [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()],
        "environment": {n: v for n, v in os.environ.items() if "INDUCTOR" not in n},  # set by torch's compiler
        "folder": os.getcwd(), "path": sys.path,
        "signals": [str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)],
        "warnings": [str(f[0]) + str(f[2]) for f in warnings.filters if "sympy" not in str(f)],  # likewise
        "logging": [logging.root.level, len(logging.root.handlers)], "errors": str(np.geterr()), "hook": str(sys.excepthook),
        "running": sorted(t.name for t in threading.enumerate()),
    }

before = json.loads(json.dumps(state()))
how = {**toy.TOY, "method": "scaffold", "resources": {"executor": "auto", **json.loads(sys.argv[2])}}
ran = rayfed.run(how, local=True, out=sys.argv[1])
assert ran.summary["status"] == "done"
after = json.loads(json.dumps(state()))
print(json.dumps({n: [before[n], after[n]] for n in before if before[n] != after[n]}))
"""


@pytest.mark.parametrize("resources", [{}, {"deterministic": True, "executor": "loop", "matmul": "onednn"}])
def test_a_run_leaves_the_process_that_called_it_as_it_was(resources: dict[str, object], tmp_path: Path) -> None:
    command = [sys.executable, "-c", IN_A_NOTEBOOK, str(tmp_path), json.dumps(resources)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}


@pytest.mark.parametrize("words", [["run", "{config}", "--local", "--out", "{out}"], ["resume", "{run}", "--local"]])
def test_the_commands_own_process_is_set_up(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_up: list[bool] = []
    monkeypatch.setattr(process, "prepare", lambda: set_up.append(True))
    ran = toy.run_folder("fedavg", tmp_path / "o", stop_after=1)
    assert not set_up
    known = {"config": ran.folder.path / "config.yaml", "out": tmp_path / "p", "run": ran.folder.path}
    done = CliRunner().invoke(app, [w.format(**known) for w in words])
    assert done.exit_code == 0 and set_up == [True], done.output
