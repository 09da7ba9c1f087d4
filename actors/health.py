"""Whether Ray works on this machine, or on a cluster: `rayfed doctor`."""

from __future__ import annotations

import time

from actors.placement import nodes_of
from actors.session import Session
from rayfed.errors import RayfedError
from rayfed.launch.doctor import Check
from rayfed.storage.versions import versions

ANSWER_S = 60.0  # for a task


def check_ray(address: str | None = None) -> list[Check]:
    """Start a local Ray or join the one at an address, compute a task on every node, and leave it. Errors become checks.

    address: as `Session` takes it. ConfigError for what cannot be one.
    """
    session, began = Session(address), time.monotonic()
    try:
        session.connect({"rayfed": "doctor"})
        return _look(session, time.monotonic() - began)
    except RayfedError as error:
        return [Check("Ray", "wrong", str(error))]
    finally:
        session.close()


def _look(session: Session, seconds: float) -> list[Check]:
    """Look at the nodes of a session that is connected; seconds: what the connection took."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = nodes_of(ray.nodes())
    total = f"{sum(n['CPU'] for n in nodes):g} CPUs, {sum(n.get('GPU', 0) for n in nodes):g} GPUs"
    kind = "a local Ray started" if session.local else f"the Ray at {session.address} answered"
    found = [Check("Ray", "ok", f"{kind} in {seconds:.1f} s: {len(nodes)} node{'s' * (len(nodes) != 1)}, {total}")]
    here = versions()
    for node in (n for n in ray.nodes() if n["Alive"]):
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked = ray.remote(versions).options(num_cpus=0, scheduling_strategy=where).remote()
        try:
            there = ray.get(asked, timeout=ANSWER_S)
        except Exception as error:
            why = str(error).strip().splitlines() or [type(error).__name__]
            found.append(Check("Ray", "wrong", f"node {node['NodeManagerAddress']} computes nothing: {why[-1]}"))
            continue
        other = ", ".join(f"{name} {there[name]} (here {here[name]})" for name in here if there[name] != here[name])
        text = f"node {node['NodeManagerAddress']} computes{f', with {other}' if other else ''}"
        found.append(Check("Ray", "note" if other else "ok", text))
    return found
