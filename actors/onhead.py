"""What a client asks of the head's machine, as a small job: its Python, a run's state, its folder, an end at once.

Runs alone, with the standard library only: the project need not be installed there. Answers are lines that start with
`MARK`, each one JSON value.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MARK = "@rayfed "
PACKAGES = ("actors", "rayfed", "tune_spaces")
SOURCES = (".py", ".yaml", ".json", ".typed")
CHUNK = 48 * 1024  # bytes per line of a folder that is sent
LETGO_S = 600  # how long a sent folder stays in the job's log if nobody says that it has arrived


def say(value: Any) -> None:
    print(MARK + json.dumps(value), flush=True)


def heard(text: str) -> list[Any]:
    """The values in a job's log."""
    return [json.loads(line[len(MARK) :]) for line in text.splitlines() if line.startswith(MARK)]


def sources() -> dict[str, Path]:
    """Relative name -> file of everything that belongs to the project as this Python would import it."""
    found = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            for file in sorted(Path(root).rglob("*")):
                if file.suffix in SOURCES and "__pycache__" not in file.parts:
                    found[f"{package}/{file.relative_to(root).as_posix()}"] = file
    return found


def fingerprint() -> str:
    """Digest of the project's sources; equal digests, equal programs."""
    digest = hashlib.blake2b(digest_size=12)
    for name, file in sorted(sources().items()):
        digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def about(requirements: Sequence[str] = ()) -> dict[str, Any]:
    """This Python: versions, the project's fingerprint, and which of the distributions it lacks."""

    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    return {
        "python": platform.python_version(),
        "ray": version("ray"),
        "project": fingerprint(),
        "missing": [r for r in requirements if version(r) is None],
    }


def place(out: str, run: str) -> Path:
    """A job's run folder on this machine: relative paths start at $RAYFED_HOME, or home; object storage has a cache."""
    if "://" in out:
        return Path(os.environ.get("RAYFED_CACHE") or "~/.cache/rayfed").expanduser() / "runs" / run
    return Path(os.environ.get("RAYFED_HOME") or Path.home()) / out / run


def states(folder: Path) -> dict[str, Any]:
    """`state.json` of a run; of a study or a sweep, the newest of its runs' with the arm (the trial) and the seed."""
    found = {}
    inner = ("*/seed-*", "trials/*/seed-*", "trials/*/clone-*/seed-*")
    for file in (folder / "state.json", *(f for i in inner for f in folder.glob(f"{i}/state.json"))):
        try:
            found[file] = (file.stat().st_mtime, json.loads(file.read_text()))
        except (OSError, ValueError):
            continue
    if not found:
        return {}
    newest = max(found, key=lambda f: found[f][0])
    state = found[newest][1]
    if newest.parent != folder:
        where = newest.relative_to(folder).parts
        what = {"trial": where[1]} if where[0] == "trials" and len(where) > 3 else {"arm": where[0]}
        state = {**what, "seed": int(where[-2].removeprefix("seed-")), **state}
    return state


def end(run: str) -> int:
    """Kill the drivers of a run; how many there were."""
    killed = 0
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            environ = (proc / "environ").read_bytes().split(b"\0")
            command = (proc / "cmdline").read_bytes()
        except OSError:
            continue
        if f"RAYFED_RUN_ID={run}".encode() in environ and b"rayfed.cli" in command and int(proc.name) != os.getpid():
            os.kill(int(proc.name), signal.SIGKILL)
            killed += 1
    return killed


def send(folder: Path) -> None:
    """A folder as lines of base64: a compressed tar file, then its size and digest. Cleared from the log afterwards."""
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w:gz", compresslevel=1) as tar:
            for at, dirs, names in os.walk(folder):
                dirs[:] = sorted(d for d in dirs if not d.startswith("."))
                for name in sorted(n for n in names if not n.startswith(".")):
                    file = Path(at) / name
                    try:  # a run that goes on replaces and removes files
                        tar.add(file, file.relative_to(folder).as_posix(), recursive=False)
                    except FileNotFoundError:
                        continue
        whole.seek(0)
        digest, size, number = hashlib.sha256(), 0, 0
        while block := whole.read(CHUNK):
            digest.update(block)
            size += len(block)
            say([number, base64.b64encode(block).decode()])
            number += 1
    arrived: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: arrived.append(1))
    say({"chunks": number, "bytes": size, "sha256": digest.hexdigest()})
    for _ in range(LETGO_S):
        if arrived or signal.sigtimedwait([signal.SIGINT], 1):
            break
    os.ftruncate(1, 0)


def main() -> None:
    """probe REQUIREMENTS | state OUT RUN | end RUN | send OUT RUN."""
    here = str(Path(__file__).parent)
    sys.path[:] = [p for p in sys.path if p not in ("", here, os.getcwd())]
    what, *rest = sys.argv[1:]
    if what == "probe":
        say(about(rest))
    elif what == "state":
        say({"path": str(place(*rest)), "state": states(place(*rest))})
    elif what == "end":
        say(end(*rest))
    elif not place(*rest).is_dir():
        say({"missing": str(place(*rest))})
    else:
        send(place(*rest))


if __name__ == "__main__":
    main()
