"""What a run was made from, in `provenance.json`: settings, the digests of its split and of its code, versions.

A resume compares it with what is there now. It also holds the text of the settings' file, so that a damaged `config.yaml` is
noticed and can be written again.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rayfed.errors import ConfigError
from rayfed.storage.atomic import durable_write, set_aside
from rayfed.storage.saved_config import flatten
from rayfed.storage.text_files import load_json, read_yaml, sealed_bytes, yaml_mapping
from rayfed.storage.versions import versions

FILE = "provenance.json"
ACCEPT = "--accept-changes"
SHOWN = 8  # differences in a message


@dataclass(frozen=True)
class Provenance:
    """What a run, a study or a sweep was made from.

    file, text: its settings' file (config.yaml, study.yaml, sweep.yaml) and that file's content as it was last written; before:
    the checksum of the content that `text` replaced, since a crash may come between the two files; split: digest of the data and
    of who holds what, None where it was not taken; code: digests of the files of own code and of the method, by name.
    """

    file: str
    text: str
    before: int | None = None
    split: str | None = None
    code: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=versions)

    @classmethod
    def read(cls, folder: Path) -> Provenance | None:
        """Read a folder's; None if it has none. ValueError says what is wrong with the file."""
        try:
            found = load_json(folder / FILE)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            made = cls(**found)
        except TypeError:
            raise ValueError("it is not what rayfed writes there") from None
        if not (isinstance(made.text, str) and isinstance(made.file, str) and "/" not in made.file):
            raise ValueError("it is not what rayfed writes there")
        return made

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        return sealed_bytes(asdict(self), 1)

    def settings(self) -> dict[str, Any]:
        """Return the settings as they were last written."""
        return yaml_mapping(self.text, self.file)

    def with_text(self, text: str, folder: Path) -> Provenance:
        """Return it for new settings, which are to be written into the folder's file next."""
        try:
            before = zlib.crc32((folder / self.file).read_bytes())
        except OSError:
            before = None
        return replace(self, text=text, before=before)


def read_settings(folder: Path, file: str = "config.yaml") -> dict[str, Any]:
    """Return the settings of a run or a study, also where their file is damaged or missing.

    ConfigError if they can be had neither from `provenance.json` nor from the file.
    """
    try:
        known = Provenance.read(folder)
        if known is not None and known.file == file:
            return known.settings()
    except ValueError:
        pass
    try:
        return read_yaml(folder / file)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{folder}: {file} cannot be read, and {FILE} holds no copy of it: {e}") from None


def settings_file(folder: Path) -> str | None:
    """Return which file holds a folder's settings, also where it is missing: config.yaml of a run, study.yaml, sweep.yaml.

    None if the folder is none of these.
    """
    for file in ("study.yaml", "sweep.yaml", "config.yaml"):
        if (folder / file).is_file():
            return file
    try:
        known = Provenance.read(folder)
    except ValueError:
        return None
    return known.file if known else None


def restore(folder: Path) -> list[str]:
    """Set aside a damaged `provenance.json` or settings' file, and write the latter again; return a sentence for each.

    Settings that can be read and differ are left as they are: that may be an edit, which `refuse_changes` reports.
    """
    try:
        known = Provenance.read(folder)
    except ValueError as e:
        aside = set_aside(folder / FILE)
        return [f"{FILE}: {e}; set aside as {aside.name}"]
    if known is None:
        return []
    path, found = folder / known.file, None
    try:
        content = path.read_bytes()
        if content == known.text.encode():
            return []
        if zlib.crc32(content) == known.before:  # a crash came between the two writes
            durable_write(path, known.text.encode())
            return []
        if known.text.encode().startswith(content):
            found = f"it is cut to {len(content)} bytes"
        elif not read_yaml(path):
            found = "it is empty"
    except FileNotFoundError:
        found = "it is missing"
    except (OSError, ValueError) as e:
        found = f"it cannot be read: {e}"
    if found is None:
        return []
    where = f"set aside as {set_aside(path).name}, and " if path.exists() or path.is_symlink() else ""
    durable_write(path, known.text.encode())
    return [f"{known.file}: {found}; {where}written again from {FILE}"]


def differing_settings(then: Mapping[str, Any], now: Mapping[str, Any], ignored: Sequence[str] = ()) -> list[str]:
    """Return a phrase for each setting that has another value than then. ignored: settings and sections that may differ."""
    old, new = flatten(then), flatten(now)
    names = [n for n in dict.fromkeys([*old, *new]) if old.get(n) != new.get(n)]
    names = [n for n in names if not any(n == i or n.startswith(f"{i}.") for i in ignored)]
    return [f"{n} is {new.get(n, 'missing')} and was {old.get(n, 'not set')}" for n in names]


def edits(folder: Path) -> list[str]:
    """Return a phrase for each setting of a folder's file that is not as it was last written; empty if that cannot be known."""
    try:
        known = Provenance.read(folder)
        now = read_yaml(folder / known.file) if known else {}
    except (OSError, ValueError):
        return []
    return [f"{known.file}: {d}" for d in differing_settings(known.settings(), now)] if known else []


def changes(then: Provenance, now: Provenance) -> list[str]:
    """Return a phrase for each thing that decides a run's numbers and is not what it was; versions aside."""
    found = []
    if then.text != now.text:
        found += [f"{then.file}: {d}" for d in differing_settings(then.settings(), now.settings())]
    if then.split and now.split and then.split != now.split:
        found.append(
            f"data: rows, labels or who holds what are not the same (digest {now.split[:12]}, was {then.split[:12]})"
        )
    found += [f"code: {name} was changed" for name in sorted(then.code) if then.code[name] != now.code.get(name)]
    return found


def version_changes(then: Provenance, now: Provenance) -> list[str]:
    """Return a phrase for each version that is not what it was."""
    names = dict.fromkeys([*then.versions, *now.versions])
    return [
        f"{n} {now.versions.get(n, 'not installed')} (was {then.versions.get(n, 'not installed')})"
        for n in names
        if then.versions.get(n) != now.versions.get(n)
    ]


def refuse_changes(folder: Path, found: Sequence[str]) -> None:
    """Raise ConfigError where what a run is made from has changed; found: what `changes` returned."""
    if not found:
        return
    shown = [f"  {f}" for f in found[:SHOWN]] + ([f"  and {len(found) - SHOWN} more"] if len(found) > SHOWN else [])
    raise ConfigError(
        [
            f"{folder} cannot go on as it began:",
            *shown,
            f"Put back what it was, or continue under what is there now with {ACCEPT}: its numbers are then not those of an "
            "uninterrupted run, and summary and report say so",
        ]
    )
