"""A process that computes: memory kept, torch's compiler left out until someone wants it."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

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
