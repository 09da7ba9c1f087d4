"""Answers a client's questions on the head's machine, as a small job: its Python, a run's state, a run's folder.

Runs alone, with the standard library only: the project need not be installed there. Every answer is a frozen dataclass of
this module, printed as one line: `MARK` and a JSON object with the name of its class.
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
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MARK = "@rayfed "
PACKAGES = ("actors", "rayfed", "tune_spaces")
SOURCES = (".py", ".yaml", ".json", ".typed")
BLOCK_BYTES = 48 * 1024  # bytes per line of a folder that is sent
RECEIVED_S = 600  # how long a sent folder stays in the job's log if nobody says that it has arrived


# -- answers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What is printed; one of the classes below."""


@dataclass(frozen=True)
class Environment(Answer):
    """A Python: versions, the fingerprint of the project's sources, and the required distributions that it lacks."""

    python: str
    ray: str | None  # None where there is no Ray
    project: str
    missing: list[str]


@dataclass(frozen=True)
class RunState(Answer):
    """A run's folder and its `state.json`; {} before it has one."""

    path: str
    state: dict[str, Any]


@dataclass(frozen=True)
class Killed(Answer):
    """How many drivers of a run were killed."""

    drivers: int


@dataclass(frozen=True)
class Block(Answer):
    """A piece of a folder's archive; data: base64."""

    number: int
    data: str


@dataclass(frozen=True)
class ArchiveEnd(Answer):
    """What all blocks of an archive have to add up to."""

    blocks: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class NoFolder(Answer):
    """There is no folder of that run."""

    path: str


def format_answer(answer: Answer) -> str:
    """Write an answer as a line of a job's log."""
    fields = asdict(answer)
    return MARK + json.dumps({"answer": type(answer).__name__, **fields})


def read_answers(lines: Iterable[str]) -> list[Answer]:
    """Read the answers among the lines of a job's log."""
    kinds: dict[str, Any] = {c.__name__: c for c in Answer.__subclasses__()}
    found: list[Answer] = []
    for line in lines:
        if line.startswith(MARK):
            fields = json.loads(line[len(MARK) :])
            found.append(kinds[fields.pop("answer")](**fields))
    return found


# -- questions ---------------------------------------------------------------------------------------------------------


def find_sources() -> dict[str, Path]:
    """Find what belongs to the project as this Python would import it: relative name -> file."""
    found = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            for file in sorted(Path(root).rglob("*")):
                if file.suffix in SOURCES and "__pycache__" not in file.parts:
                    found[f"{package}/{file.relative_to(root).as_posix()}"] = file
    return found


def fingerprint() -> str:
    """Compute the digest of the project's sources; equal digests, equal programs."""
    digest = hashlib.blake2b(digest_size=12)
    for name, file in sorted(find_sources().items()):
        digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def describe_environment(requirements: Sequence[str] = ()) -> Environment:
    """Describe this Python. requirements: names of distributions."""

    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    missing = [r for r in requirements if version(r) is None]
    return Environment(platform.python_version(), version("ray"), fingerprint(), missing)


def run_folder(out: str, run: str) -> Path:
    """Return a run's folder on this machine.

    A relative `out` starts at $RAYFED_HOME, or home; of what is in object storage, it is the cache's.
    """
    if "://" in out:
        return Path(os.environ.get("RAYFED_CACHE") or "~/.cache/rayfed").expanduser() / "runs" / run
    return Path(os.environ.get("RAYFED_HOME") or Path.home()) / out / run


def read_state(folder: Path) -> dict[str, Any]:
    """Read a run's `state.json`; {} where there is none.

    Of a study or a sweep it is that of the run written to last, with `arm` (or `trial`) and `seed` added.
    """
    found = {}
    inner = ("*/seed-*", "trials/*/seed-*", "trials/*/clone-*/seed-*")
    for file in (folder / "state.json", *(f for i in inner for f in folder.glob(f"{i}/state.json"))):
        try:
            found[file] = (file.stat().st_mtime, json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
    if not found:
        return {}
    newest = max(found, key=lambda f: found[f][0])
    state = found[newest][1]
    if newest.parent == folder:
        return state
    where = newest.relative_to(folder).parts
    owner = {"trial": where[1]} if where[0] == "trials" and len(where) > 3 else {"arm": where[0]}
    return {**owner, "seed": int(where[-2].removeprefix("seed-")), **state}


def kill_drivers(run: str) -> Killed:
    """Kill the drivers of a run."""
    killed = 0
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            environ = (proc / "environ").read_bytes().split(b"\0")
            command = (proc / "cmdline").read_bytes()
        except OSError:
            continue
        if f"RAYFED_RUN_ID={run}".encode() in environ and b"-m\0rayfed\0" in command and int(proc.name) != os.getpid():
            os.kill(int(proc.name), signal.SIGKILL)
            killed += 1
    return Killed(killed)


def send_folder(folder: Path) -> None:
    """Print a folder as the blocks of a compressed tar file, then its size and digest, and clear the log once it has arrived.

    Files and folders whose names start with a dot stay here.
    """
    with tempfile.TemporaryFile() as archive:
        with tarfile.open(fileobj=archive, mode="w:gz", compresslevel=1) as tar:
            for at, dirs, names in os.walk(folder):
                dirs[:] = sorted(d for d in dirs if not d.startswith("."))
                for name in sorted(n for n in names if not n.startswith(".")):
                    file = Path(at) / name
                    try:  # a run that goes on replaces and removes files
                        tar.add(file, file.relative_to(folder).as_posix(), recursive=False)
                    except FileNotFoundError:
                        continue
        archive.seek(0)
        digest, size, number = hashlib.sha256(), 0, 0
        while block := archive.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
            _print(Block(number, base64.b64encode(block).decode()))
            number += 1
    terminated: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: terminated.append(1))
    _print(ArchiveEnd(number, size, digest.hexdigest()))
    for _ in range(RECEIVED_S):
        if terminated or signal.sigtimedwait([signal.SIGINT], 1):
            break
    os.ftruncate(1, 0)


def _print(answer: Answer) -> None:
    print(format_answer(answer), flush=True)


def main() -> None:
    """Answer one question: probe REQUIREMENTS | state OUT RUN | kill RUN | send OUT RUN."""
    here = str(Path(__file__).parent)
    sys.path[:] = [p for p in sys.path if p not in ("", here, os.getcwd())]
    question, *rest = sys.argv[1:]
    if question == "probe":
        _print(describe_environment(rest))
    elif question == "kill":
        _print(kill_drivers(*rest))
    elif question == "state":
        folder = run_folder(*rest)
        _print(RunState(str(folder), read_state(folder)))
    elif not run_folder(*rest).is_dir():
        _print(NoFolder(str(run_folder(*rest))))
    else:
        send_folder(run_folder(*rest))


if __name__ == "__main__":
    main()
