"""What a client actor does when it starts, and what a job gives."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import torch

from actors.client import ClientActor
from rayfed import fold, tree
from rayfed.engine.messages import CallResult, GramCall, Job, Value, VisitCall
from rayfed.engine.pool import LocalPool
from tests import toy


def test_a_client_actor_imports_what_it_is_asked_to() -> None:
    code = """
import sys
from actors.client import ClientActor
assert "colorsys" not in sys.modules
ClientActor(0, 1, 0.0, imports=["colorsys"])
print("colorsys" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_what_a_client_actor_imports_is_out_of_the_collectors_way() -> None:
    code = """
import gc
from actors.client import ClientActor
ClientActor(0, 1, 0.0)
kept, there = gc.get_freeze_count(), len(gc.get_objects())
print(kept > 10 * there, gc.isenabled())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


def test_shares_of_a_gpu_leave_room_for_what_is_not_counted() -> None:
    code = """
import torch
from actors.client import ClientActor
torch.cuda.is_available, capped = lambda: True, []
torch.cuda.set_per_process_memory_fraction = capped.append
devices = [ClientActor(0, 1, share).worker.device for share in (0.0, 0.25, 1.0, 2.0)]
print(devices, [round(c, 3) for c in capped])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['cpu', 'cuda', 'cuda', 'cuda'] [0.235, 1.0, 1.0]"


def test_folds_are_a_separate_object_where_they_are_merged_separately() -> None:
    pool = LocalPool()
    fed = toy.make_fed(toy.config(), pool)
    client: Any = object.__new__(ClientActor)
    client.worker = pool.worker
    job = Job("toy", VisitCall("train", (3, 1), 1, 1, 1, ("model",), folds=(fold.mean("delta"),)))
    model = tree.to_numpy(fed.task.initial)
    whole, *_, nothing = client.execute_job(job, False, model)
    result, large, states, folded = client.execute_job(job, True, model)
    assert isinstance(result, CallResult) and result.folded is None and nothing is None and large is states is None
    assert (
        result.clients == whole.clients == [3, 1]
        and folded["delta"][""]["weight"] == whole.folded["delta"][""]["weight"]
    )
    a, b = (fold.from_numpy(f)["delta"][""]["total"] for f in (folded, whole.folded))
    assert all(torch.equal(a[n], b[n]) for n in a)
    rows = {"p": {"x": np.eye(2)}}
    value, *rest = client.execute_job(Job("toy", GramCall("p")), True, rows, rows)
    assert isinstance(value, Value) and value.value.tolist() == [[1.0, 0.0], [0.0, 1.0]] and rest == [None] * 3
