"""The data broker: one actor on the driver's node that trials ask for their request, data splits and run folders.

Data is split once per sweep and kept in the object store; only the driver's node must have it. Run folders are opened in the
driver's name, as `rayfed run` does, so that a resumed sweep can take them over and fence off what is left of the old one.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rayfed.storage.owner import Owner
from tune_spaces.sweep.messages import TrialRequest

STARTING_S = 60  # for the name of a driver that was killed just now to become free


class DataBroker:
    """request: what all trials share; owner: the driver."""

    def __init__(self, request: TrialRequest, owner: Owner):
        from rayfed.config import user_code

        user_code.install(request.code)
        self._request, self._owner = request, owner
        self._splits: dict[str, Any] = {}

    def request(self) -> TrialRequest:
        """Return what all trials share."""
        return self._request

    def split(self, config: dict[str, Any]) -> list[Any]:
        """Return the data split of a run: [reference to `Federation.numpy()`], in a list so that it arrives as a reference."""
        import ray

        from rayfed import partition
        from rayfed.config.schema import Config

        key = partition.split_key(config)
        if key not in self._splits:
            self._splits[key] = ray.put(partition.build(Config.from_dict(config)).numpy())
        return [self._splits[key]]

    def open_folder(self, path: str, config: dict[str, Any]) -> int:
        """Make a run folder, or take it over; return its fence."""
        from rayfed.storage.run_folder import RunFolder

        where = Path(path)
        if (where / "config.yaml").exists():
            return RunFolder.open(where, owner=self._owner).fence
        return RunFolder.create(where, config, owner=self._owner, exact=True, stored=self._stored(where)).fence

    def clone_folder(self, source: str, round: int, path: str, config: dict[str, Any]) -> int:
        """Make a run folder that continues from another one after `round`; return its fence."""
        from rayfed.storage.run_folder import RunFolder

        stored = self._stored(Path(path))
        return RunFolder.clone(Path(source), round, Path(path), config, owner=self._owner, stored=stored).fence

    def _stored(self, path: Path) -> str | None:
        """Return where a run is stored if the sweep is in object storage."""
        from rayfed.storage import object_store

        home = Path(self._request.home)
        mirror = object_store.mirror_of(home)
        return object_store.join_uri(mirror.uri, *path.relative_to(home).parts) if mirror else None


def start_broker(name: str, request: TrialRequest) -> Any:
    """Start the broker on this node under a name; return its handle: the actor ends with it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    end = time.monotonic() + STARTING_S
    while True:
        try:
            made = ray.remote(DataBroker).options(name=name, num_cpus=0, scheduling_strategy=here)
            broker = made.remote(request, Owner.me())
            ray.get(broker.request.remote())
            return broker
        except ValueError:  # the name is that of a driver that was killed just now
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
