"""`rayfed fetch`: a job's run folder brought here through the job's log, whole and checked, or not at all."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import os
import shutil
import tarfile
from pathlib import Path
from typing import BinaryIO

from actors.jobs.connection import Connection
from actors.jobs.head import helper_job
from actors.jobs.head_program import ArchiveEnd, Block, NoFolder, read_answers
from actors.jobs.log import stream_log
from rayfed.errors import ConfigError, RunFailed
from rayfed.storage import object_store
from rayfed.storage.atomic import remove, sync_dir
from rayfed.storage.temporary import sweep, temporary


def fetch_folder(connection: Connection, name: str, out: Path) -> Path:
    """Bring a job's run folder to OUT/NAME and return its path; what is there already is replaced.

    A folder in object storage that is reached from here comes from there. Raises ConfigError where there is nothing to bring or
    the folder here is in use, RunFailed where it does not arrive as it was sent.
    """
    metadata = connection.find_job(name).metadata
    target = Path(out) / metadata.run
    object_store.check_unused(target)
    if object_store.is_uri(metadata.out) and not metadata.out.startswith("file:"):
        return object_store.download(object_store.join_uri(metadata.out, metadata.run), target)
    hidden = temporary(target.parent, "new")
    try:
        hidden.mkdir(parents=True)
        sweep(target.parent)
        archive = hidden / ".archive"
        asyncio.run(_receive(connection, name, metadata.out, metadata.run, archive))
        inside = hidden / "run"
        inside.mkdir()
        with tarfile.open(archive) as tar:
            tar.extractall(inside, filter="data")
        for pointer in inside.rglob(object_store.POINTER):  # a copy: nothing more is uploaded from it
            pointer.unlink()
        _replace(target, inside)
    except (OSError, tarfile.TarError) as e:
        raise RunFailed(f"cannot bring {name} to {target}: {e}") from e
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return target


def _replace(target: Path, folder: Path) -> None:
    """Move a folder to `target`, in place of what is there."""
    if target.exists():
        old = temporary(target.parent, "old")
        os.rename(target, old)
        remove(old)
    os.rename(folder, target)
    sync_dir(target.parent)


class _Archive:
    """Blocks on their way into a file, checked one by one and as a whole. name: of the job, for messages."""

    def __init__(self, name: str, file: BinaryIO):
        self.name, self.file = name, file
        self.digest, self.size, self.count = hashlib.sha256(), 0, 0

    def add(self, block: Block) -> None:
        """Write the next block. Raises RunFailed where one is lost or damaged."""
        if block.number != self.count:
            raise RunFailed(
                f"fetch {self.name}: part {self.count} of the folder is lost on the way; repeat the command"
            )
        try:
            data = base64.b64decode(block.data, validate=True)
        except binascii.Error:
            raise RunFailed(
                f"fetch {self.name}: part {self.count} of the folder is damaged; repeat the command"
            ) from None
        self.file.write(data)
        self.digest.update(data)
        self.size, self.count = self.size + len(data), self.count + 1

    def check(self, end: ArchiveEnd) -> None:
        """Raise RunFailed where the whole is not what was sent."""
        if (end.blocks, end.bytes, end.sha256) != (self.count, self.size, self.digest.hexdigest()):
            raise RunFailed(f"fetch {self.name}: the folder did not arrive as it was sent; repeat the command")


async def _receive(connection: Connection, name: str, out: str, run: str, path: Path) -> None:
    """Write what `head_program.send_folder` prints as a file."""
    rest = ""
    with helper_job(connection, "send", out, run) as helper, open(path, "wb") as file:
        archive = _Archive(name, file)
        async for text in stream_log(connection, helper):
            *lines, rest = (rest + text).split("\n")
            for answer in read_answers(lines):
                if isinstance(answer, Block):
                    archive.add(answer)
                elif isinstance(answer, ArchiveEnd):
                    archive.check(answer)
                    return
                elif isinstance(answer, NoFolder):
                    raise ConfigError(
                        f"fetch: {name} has no run folder on the head ({answer.path}); see: rayfed logs {name}"
                    )
    raise RunFailed(f"fetch {name}: the head stopped sending: {rest.strip()[-500:] or 'no message'}")
