"""`local.buffers: private`: running statistics stay at the client."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rayfed.errors import ConfigError
from tests import toy


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_private_buffers_stay_at_the_client(nets: Any, executor: str) -> None:
    changes = {**nets("batchnorm"), "local": {"buffers": "private"}}
    done = toy.simulate("fedavg", executor=executor, rounds=3, **changes)
    task = done.fed.task
    for n in task.buffers:
        assert torch.equal(done.state["model"][n], done.initial["model"][n]), n
    own = done.clients()
    assert own and all(set(s["buffers"]) == set(task.buffers) for s in own.values())
    assert all(float(s["buffers"]["1.num_batches_tracked"]) > 0 for s in own.values())
    assert len({float(s["buffers"]["1.running_mean"].sum()) for s in own.values()}) == len(own)
    scores = done.scores()[1]
    assert len({r["loss"] for r in scores if r["client"] < 12}) > 6


def test_private_buffers_are_refused_where_a_method_would_send_them(nets: Any) -> None:
    """SCAFFOLD sends control variates, which hold what moved, buffers too."""
    with pytest.raises(ConfigError, match=r"local.buffers: private found, .* no updates \(dc\)"):
        toy.config("scaffold", **{**nets("batchnorm"), "local": {"buffers": "private"}})
