"""What a run is made from, compared with what it was made from when it is resumed."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed import methods
from rayfed.config import user_code
from rayfed.method import Method
from rayfed.storage.provenance import (
    FILE,
    Provenance,
    changes,
    differing_settings,
    refuse_changes,
    version_changes,
)

if TYPE_CHECKING:
    from rayfed.storage.run_folder import RunFolder

# may change on resume
RESUMABLE = ("rounds", "resources", "failures", "storage", "stop", "track", "evaluate.every")


def code_digests(config: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest of each file of own code that a config (plain values) names, and of each that its method is made of.

    A study's config stands for its arms' too.
    """
    found = {path: _digest(text) for path, text in user_code.used(config).items()}
    for name in sorted(_methods(config)):
        for cls in methods.get(name).__mro__:
            file = inspect.getsourcefile(cls) if issubclass(cls, Method) and cls is not Method else None
            text = user_code.content(file) if file else None
            if text is not None and not cls.__module__.startswith("rayfed_user_"):
                found[cls.__module__] = _digest(text)
    return found


def _methods(config: Mapping[str, Any]) -> set[str]:
    """Return the names of the methods of a config, or of a study's base and arms."""
    found = set()
    for part in (config, *(config.get("arms") or {}).values()):
        method = part.get("method") if isinstance(part, Mapping) else None
        name = method.get("name") if isinstance(method, Mapping) else method
        found |= {name} if isinstance(name, str) else set()
    return found


def _digest(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=16).hexdigest()


class Changes:
    """What is not as it was when the run, the study or the sweep in a folder was made, or last resumed.

    refused: a phrase for each change that decides the numbers; notes: a sentence for each that is accepted or only noted;
    changed: whether `provenance.json` is to be written again; accepted: whether changes were accepted.
    """

    def __init__(
        self,
        folder: Path,
        file: str,
        code: Mapping[str, str],
        *,
        split: str | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        """file: the folder's settings' file; code: as `code_digests` gives it; split: `Federation.digest`, None where it is not
        known; config: what is to be executed, where a study's file decides it."""
        self.folder = folder
        self.now = Provenance(file, (folder / file).read_bytes().decode(errors="replace"), split=split, code=code)
        self.refused: list[str] = []
        self.notes: list[str] = []
        self.changed, self.accepted = True, False
        try:
            then = Provenance.read(folder)
        except ValueError:
            then = None
        if then is None:
            self.notes.append(
                f"{FILE} is missing: whether settings, data and code are those that the run began with cannot be checked"
            )
            return
        self.refused = changes(then, self.now)
        if config is not None:
            self.refused += differing_settings(then.settings(), config, RESUMABLE)
        if split is None:
            self.now = replace(self.now, split=then.split)
        if other := version_changes(then, self.now):
            self.notes.append(
                f"resumed with {', '.join(other)}: the numbers may differ from those of an uninterrupted run"
            )
        self.changed = then != replace(self.now, before=then.before)

    def check(self, accept: bool) -> None:
        """Raise ConfigError where something was changed and that is not accepted; what is accepted becomes a note."""
        if not accept:
            refuse_changes(self.folder, self.refused)
        self.notes += [f"changed before a resume, and accepted: {phrase}" for phrase in self.refused]
        self.accepted = bool(self.refused)

    def record(self, run: RunFolder, before: Sequence[str] = ()) -> None:
        """Write the notes into the events of an opened run, after those of `before`, and what it is made from from now on."""
        for note in before:
            run.event("set aside", note=note)
        for note in self.notes:
            run.event("changed", note=note)
        if self.changed:
            run.set_provenance(self.now)
