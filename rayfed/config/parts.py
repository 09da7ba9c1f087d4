"""Folders as registries: each module of a package holds one part, a class of one base, that the config chooses by `kind`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from rayfed.config import unread
from rayfed.config.problems import sentences
from rayfed.config.schema import Kind
from rayfed.errors import nearest

P = TypeVar("P")


@dataclass(frozen=True)
class Registry(Generic[P]):
    """Find and make the parts of a package.

    package, folder: its `__name__` and `__path__`; base: the class that each of its modules has one of, with `Settings`; nothing:
    a kind without a module, which asks for nothing.
    """

    package: str
    folder: Iterable[str]
    base: type[P]
    nothing: str | None = None

    def names(self) -> list[str]:
        """Return the known kinds, sorted."""
        return sorted(m.name for m in pkgutil.iter_modules(self.folder) if not m.name.startswith("_"))

    def get(self, kind: str) -> type[P]:
        """Return the class of a known kind."""
        module = importlib.import_module(f"{self.package}.{kind}")
        (found,) = [
            c
            for c in vars(module).values()
            if isinstance(c, type) and issubclass(c, self.base) and c.__module__ == module.__name__
        ]
        return found

    def make(self, chosen: Kind) -> P:
        """Return a part with its settings, which are valid."""
        made: Any = self.get(chosen.kind)
        return made(made.Settings.model_validate(chosen.options))

    def problems(self, chosen: Kind, where: str) -> list[str]:
        """Return what is wrong with the kind and the settings of a section; where: its path."""
        known = [*([self.nothing] if self.nothing else []), *self.names()]
        if chosen.kind not in known:
            return [f"{where}.kind: {chosen.kind!r} found{nearest(chosen.kind, known)}, allowed: {', '.join(known)}"]
        if chosen.kind == self.nothing:
            return [f"{where}.{k}: unknown key{nearest(str(k), ['kind'])}; known: kind" for k in chosen.options]
        made: Any = self.get(chosen.kind)
        try:
            settings = made.Settings.model_validate(chosen.options)
        except ValidationError as e:
            return sentences(e, made.Settings, where)
        return [*unread.sentences(settings, where)]
