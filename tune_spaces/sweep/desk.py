"""The desk: one actor beside the driver that trials ask for data, settings and run folders.

Data is split once per sweep and lies in the object store; only the driver's node must have it. Run folders are opened in the
driver's name, as `rayfed run` does, so that a resumed sweep can take them over and what is left of the old one is fenced off.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Desk:
    """request: what all trials share, as plain values; driver: the Owner of the sweep as a mapping."""

    def __init__(self, request: dict[str, Any], code: dict[str, bytes], driver: dict[str, Any]):
        from rayfed.config import user_code
        from rayfed.storage.owner import Owner

        user_code.install(code)
        self._request, self._code, self._owner = request, code, Owner(**driver)
        self._splits: dict[str, Any] = {}

    def request(self) -> tuple[dict[str, Any], dict[str, bytes]]:
        """(request, the user's own files by their names in the config)."""
        return self._request, self._code

    def split(self, config: dict[str, Any]) -> list[Any]:
        """[reference to `Federation.numpy()`]: who holds what in a run."""
        import ray

        from rayfed import partition
        from rayfed.config.schema import Config

        key = partition.split_key(config)
        if key not in self._splits:
            self._splits[key] = ray.put(partition.build(Config.from_dict(config)).numpy())
        return [self._splits[key]]

    def folder(self, path: str, config: dict[str, Any]) -> int:
        """Make a run folder, or take it over: its fence."""
        from rayfed.storage.run_folder import RunFolder

        where = Path(path)
        if (where / "config.yaml").exists():
            return RunFolder.open(where, owner=self._owner).fence
        return RunFolder.create(where, config, owner=self._owner, exact=True, stored=self._stored(where)).fence

    def clone(self, source: str, round: int, path: str, config: dict[str, Any]) -> int:
        """A new run folder that goes on where another one was after `round`: its fence."""
        from rayfed.storage.run_folder import RunFolder

        stored = self._stored(Path(path))
        return RunFolder.clone(Path(source), round, Path(path), config, owner=self._owner, stored=stored).fence

    def _stored(self, path: Path) -> str | None:
        """Where a run goes if the sweep is in object storage."""
        from rayfed.storage import object_store

        home = Path(self._request["path"])
        mirror = object_store.of(home)
        return object_store.join(mirror.uri, *path.relative_to(home).parts) if mirror else None
