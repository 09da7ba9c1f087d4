"""Base class of the methods about what an adapter of some kind trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rayfed.methods._bases.one_model import OneModel

if TYPE_CHECKING:
    from rayfed.config.schema import Config


class OverAdapter(OneModel):
    """Base: refuses configs whose adapter is of another kind than `kinds`."""

    kinds: ClassVar[tuple[str, ...]] = ()

    def check(self, config: Config) -> list[str]:
        if config.adapter.kind in self.kinds:
            return []
        found, needed = config.adapter.kind, " or ".join(self.kinds)
        return [f"adapter.kind: {found} found, method.name: {config.method.name} needs {needed}"]
