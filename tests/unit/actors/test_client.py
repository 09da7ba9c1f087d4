"""What a client actor does when it starts."""

from __future__ import annotations

import subprocess
import sys


def test_a_client_actor_begins_with_what_it_is_told_to_import() -> None:
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
