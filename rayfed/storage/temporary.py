"""Folders that are made under a hidden name and then renamed; what a killed process left of them is swept."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path

from rayfed.storage.atomic import remove
from rayfed.storage.owner import Owner, process_start

NAME = re.compile(r"\.(?:new|old|clone)-([0-9a-f]{8})-(\d+)-([0-9a-f]{8})-[0-9a-f]{8}")


def temporary(parent: Path, kind: str) -> Path:
    """Return a free hidden name in a folder; it says which process makes it. kind: new | old | clone."""
    me = Owner.me()
    return parent / f".{kind}-{_short(me.host)}-{me.pid}-{_short(me.start)}-{secrets.token_hex(4)}"


def sweep(parent: Path) -> None:
    """Delete what `abandoned` gives. What cannot be deleted stays."""
    for path in abandoned(parent):
        remove(path)


def abandoned(parent: Path) -> list[Path]:
    """Return hidden folders in a folder that processes of this machine left which do not run any more."""
    try:
        entries = [e.name for e in os.scandir(parent) if e.name.startswith(".")]
    except OSError:
        return []
    here, left = _short(Owner.me().host), []
    for name in entries:
        found = NAME.fullmatch(name)
        if found and found[1] == here:
            start = process_start(int(found[2]))
            if start is None or _short(start) != found[3]:
                left.append(parent / name)
    return left


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
