"""A disk between Python and the file system: it writes down every operation under a folder, and may fail or end the process at one.

From what was written down, `states` gives the folder as a death after each operation leaves it: of the process, in the
middle of a write, or of the machine, with which goes what was not synced.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from rayfed.storage.behind import Behind

DIED = 77  # exit code of a process that its disk ended


class Op(NamedTuple):
    """One operation that changes the disk or waits for it; paths are relative to the disk's root."""

    kind: str  # create | mkdir | write | truncate | sync | rename | unlink | rmdir | mark
    path: str
    data: bytes = b""
    at: int = 0  # offset of a write, size after a truncation, number of a mark
    to: str = ""  # new name


class Disk:
    """Writes down the operations of this process under `root`, while it is entered.

    What libraries write in C or Rust is not seen; rayfed writes its own files through `os.write` and `open`. Operations have an order
    only where one thread does them all: `AtOnce` or `AtTheLatest` stand for the folder's `Behind`.
    """

    def __init__(self, root: Path):
        self.root, self.ops = os.path.realpath(root), list[Op]()

    def before(self, op: Op, half: Callable[[], Any]) -> None:
        """Called before each operation; may raise OSError in its place, or end the process. half: makes half of a write."""

    def mark(self, number: int) -> None:
        """Write a number down among the operations."""
        self.ops.append(Op("mark", "", at=number))

    def _path(self, path: Any, dir_fd: int | None = None) -> str | None:
        """The path below the root, None if it is elsewhere."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        elif dir_fd is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), path)
        whole = os.path.abspath(os.fspath(path))
        if (whole != self.root and not whole.startswith(self.root + os.sep)) or whole.endswith(" (deleted)"):
            return None
        return os.path.relpath(whole, self.root) if whole != self.root else ""

    def _do(self, op: Op, real: Callable[[], Any], half: Callable[[], Any] = lambda: None) -> Any:
        self.before(op, half)
        result = real()
        self.ops.append(op._replace(data=op.data[:result]) if op.kind == "write" else op)
        return result

    def __enter__(self) -> Any:
        real = {
            n: getattr(os, n)
            for n in ("open", "write", "fsync", "ftruncate", "truncate", "mkdir", "unlink", "rmdir", "replace")
        }
        real_open = io.open

        def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            def opened() -> int:
                return real["open"](path, flags, mode, dir_fd=dir_fd)

            name = self._path(path, dir_fd)
            if name is None:
                return opened()
            if not os.path.exists(os.path.join(self.root, name)):
                return self._do(Op("create", name), opened) if flags & os.O_CREAT else opened()
            return self._do(Op("truncate", name), opened) if flags & os.O_TRUNC else opened()

        def write(fd: int, data: Any) -> int:
            name = self._path(fd)
            if name is None:
                return real["write"](fd, data)
            append = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
            at, data = os.fstat(fd).st_size if append else os.lseek(fd, 0, os.SEEK_CUR), bytes(data)
            half = data[: len(data) // 2]
            return self._do(
                Op("write", name, data, at), lambda: real["write"](fd, data), lambda: real["write"](fd, half)
            )

        def fsync(fd: int) -> None:
            name = self._path(fd)
            return real["fsync"](fd) if name is None else self._do(Op("sync", name), lambda: real["fsync"](fd))

        def truncate(which: str) -> Callable[[Any, int], None]:
            def call(file: Any, size: int) -> None:
                name = self._path(file)
                done = lambda: real[which](file, size)  # noqa: E731
                return done() if name is None else self._do(Op("truncate", name, at=size), done)

            return call

        def on_name(which: str) -> Callable[..., None]:
            def call(path: Any, *args: Any, dir_fd: int | None = None, **kwargs: Any) -> None:
                name = self._path(path, dir_fd)
                done = lambda: real[which](path, *args, dir_fd=dir_fd, **kwargs)  # noqa: E731
                return done() if name is None else self._do(Op(which, name), done)

            return call

        def replace(src: Any, dst: Any, **kwargs: Any) -> None:
            name, new = self._path(src), self._path(dst)
            done = lambda: real["replace"](src, dst, **kwargs)  # noqa: E731
            assert (name is None) == (new is None), f"{src} -> {dst} crosses the border of the disk"
            return done() if name is None else self._do(Op("rename", name, to=str(new)), done)

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                return os.write(self.fileno(), data)

            def truncate(self, size: int | None = None) -> int:
                os.ftruncate(self.fileno(), self.tell() if size is None else size)
                return self.tell()

        def file(path: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
                 newline: Any = None, closefd: bool = True, opener: Any = None) -> Any:  # fmt: skip
            if isinstance(path, int) or not set(mode) & set("wax+") or self._path(path) is None:
                return real_open(path, mode, buffering, encoding, errors, newline, closefd, opener)
            raw = Raw(path, mode.replace("b", "").replace("t", ""), opener=lambda p, flags: os.open(p, flags, 0o666))
            if buffering == 0:
                return raw
            buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

        made = {
            "open": open_, "write": write, "fsync": fsync, "fdatasync": fsync, "ftruncate": truncate("ftruncate"),
            "truncate": truncate("truncate"), "mkdir": on_name("mkdir"), "unlink": on_name("unlink"), "remove": on_name("unlink"),
            "rmdir": on_name("rmdir"), "replace": replace, "rename": replace,
        }  # fmt: skip
        self._patches = [mock.patch.object(os, name, f) for name, f in made.items()]
        self._patches += [mock.patch.object(where, "open", file) for where in (io, builtins)]
        for p in self._patches:
            p.start()
        return self

    def __exit__(self, *error: Any) -> None:
        for p in reversed(self._patches):
            p.stop()


class AtOnce(Behind):
    """Does work at the call that begins it, before anything of the next rounds."""

    def start(self, work: Callable[[], None]) -> None:
        self.wait()
        self._do(work)


class AtTheLatest(Behind):
    """Does work when it is waited for, after all that the next rounds do before."""

    work: Callable[[], None] | None = None

    def busy(self) -> bool:
        return self.work is not None

    def start(self, work: Callable[[], None]) -> None:
        self.wait()
        self.work = work

    def wait(self) -> None:
        if self.work is not None:
            work, self.work = self.work, None
            self._do(work)
        super().wait()


ORDERS: dict[str, type[Behind]] = {
    "at once": AtOnce,
    "at the latest": AtTheLatest,
}  # of what a thread does behind the rounds


class Failing(Disk):
    """Raises OSError in the place of operation number `n`; a disk without room (ENOSPC) stays so, other errors pass."""

    def __init__(self, root: Path, n: int, code: int):
        super().__init__(root)
        self.left, self.code, self.failed = n, code, list[Op]()

    def before(self, op: Op, half: Callable[[], Any]) -> None:
        if self.code == errno.ENOSPC and op.kind in ("unlink", "rmdir"):
            return
        self.left -= 1
        if self.left == 0 or (self.left < 0 and self.code == errno.ENOSPC and op.kind in ("create", "mkdir", "write")):
            self.failed.append(op)
            raise OSError(self.code, os.strerror(self.code), os.path.join(self.root, op.path))


class Deadly(Disk):
    """Ends the process in the place of operation number `n`, as `kill -9` does; torn: after half of it, if it is a write."""

    def __init__(self, root: Path, n: int, torn: bool = False):
        super().__init__(root)
        self.left, self.torn = n, torn

    def before(self, op: Op, half: Callable[[], Any]) -> None:
        self.left -= 1
        if self.left == 0:
            if self.torn:
                half()
            os._exit(DIED)


def killed(root: Path, n: int, torn: bool, act: Callable[[], Any]) -> bool:
    """`act()` in a forked process that dies at its disk operation number `n`; whether it had that many."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            with Deadly(root, n, torn):
                act()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, DIED), f"the process ended with {code} before it was killed"
    return code == DIED


# -- what a death leaves -----------------------------------------------------------------------------------------------


class File:
    """Bytes as a process sees them, and as they were when they were synced last."""

    def __init__(self, data: bytes = b"", synced: bytes = b""):
        self.data, self.synced = bytearray(data), synced


class Folder:
    """Names as a process sees them, and as they were when they were synced last."""

    def __init__(self) -> None:
        self.now: dict[str, File | Folder] = {}
        self.synced: dict[str, File | Folder] = {}


Content = dict[str, bytes | None]  # path -> bytes of a file, None of a folder


class Model:
    """The file system under a root, by the operations on it. What was there at first is synced."""

    def __init__(self, start: Path | None = None):
        self.root = Folder()
        if start is not None:
            self._read(start, self.root)

    def _read(self, path: Path, into: Folder) -> None:
        for p in path.iterdir():
            node: File | Folder = Folder() if p.is_dir() else File(p.read_bytes(), p.read_bytes())
            if isinstance(node, Folder):
                self._read(p, node)
            into.now[p.name] = into.synced[p.name] = node

    def _place(self, path: str) -> tuple[Folder, str]:
        *above, name = path.split("/")
        at: Any = self.root
        for part in above:
            at = at.now[part]
        return at, name

    def apply(self, op: Op) -> None:
        if op.kind == "mark":
            return
        if not op.path:
            self.root.synced = dict(self.root.now)
            return
        where, name = self._place(op.path)
        if op.kind in ("create", "mkdir"):
            where.now[name] = File() if op.kind == "create" else Folder()
        elif op.kind in ("unlink", "rmdir"):
            del where.now[name]
        elif op.kind == "rename":
            there, new = self._place(op.to)
            there.now[new] = where.now.pop(name)
        else:
            node: Any = where.now[name]
            if op.kind == "sync":
                node.synced = dict(node.now) if isinstance(node, Folder) else bytes(node.data)
            elif op.kind == "truncate":
                node.data[op.at :] = bytes(max(0, op.at - len(node.data)))
            else:
                node.data[op.at : op.at + len(op.data)] = op.data

    def content(self, view: str = "kill", draw: random.Random | None = None) -> Content:
        """What a death leaves. view: one of VIEWS but `torn`; draw: for `power, some`."""
        out: Content = {}
        self._moved: dict[int, bool] = {}  # file or folder -> whether it is where it was last
        self._list(self.root, "", view, draw or random.Random(0), out)
        return out

    def _drawn(
        self, now: File | Folder | None, synced: File | Folder | None, draw: random.Random
    ) -> File | Folder | None:
        """What a name is of: a rename has happened or has not, at both of its ends."""
        moved = {x: self._moved.setdefault(id(x), draw.random() < 0.5) for x in (now, synced) if x is not None}
        if now is not None and (now is synced or moved[now]):
            return now
        return synced if synced is not None and (now is not None or not moved[synced]) else None

    def _list(self, folder: Folder, prefix: str, view: str, draw: random.Random, out: Content) -> None:
        for name in sorted({**folder.synced, **folder.now}):
            now, synced = folder.now.get(name), folder.synced.get(name)
            some = self._drawn(now, synced, draw) if view == "power, some" else None
            node = {"power": synced, "power, some": some}.get(view, now)
            if isinstance(node, Folder):
                out[prefix + name] = None
                self._list(node, f"{prefix}{name}/", view, draw, out)
            elif node is not None:
                data = bytes(node.data)
                kept = len(node.synced) if data.startswith(node.synced) else 0  # what was added to is not lost
                half = data[: kept + (len(data) - kept) // 2]
                part = data if data == node.synced else draw.choice((data, node.synced, half))
                out[prefix + name] = {"kill": data, "power, some": part}.get(view, node.synced)


VIEWS = {
    "kill": "the process dies: all that it wrote is there",
    "torn": "the process dies in a write, half of which is there",
    "power": "the machine dies: what was synced is there, names and contents",
    "power, names": "the machine dies: names are as they were last, of the contents what was synced is there",
    "power, some": "the machine dies: of each change of a name and of each content what was synced, what was last, or half of it, as drawn",
}


class State(NamedTuple):
    """The folder after a death: number of the operation that it came before, its view, the last mark before it, the content."""

    n: int
    view: str
    mark: int
    content: Content


def states(ops: list[Op], start: Path | None = None) -> Iterator[State]:
    """What a death before each operation, and after the last one, leaves, in each view; `torn` where it is a write."""
    model, mark = Model(start), 0
    for n, op in enumerate([*ops, Op("mark", "")]):
        for view in VIEWS:
            if view != "torn":
                yield State(n, view, mark, model.content(view, random.Random(n)))
            elif op.kind == "write":
                where, name = model._place(op.path)
                node: Any = where.now[name]
                kept = bytes(node.data)
                model.apply(op._replace(data=op.data[: len(op.data) // 2]))
                yield State(n, view, mark, model.content())
                node.data = bytearray(kept)
        model.apply(op)
        mark = op.at if op.kind == "mark" else mark


def write_out(content: Content, where: Path) -> None:
    """Make a folder of a content, as another process left it: temporary files carry the number of theirs."""
    where.mkdir(parents=True)
    mine = f".{os.getpid()}"
    for path, data in content.items():
        path = path.removesuffix(mine) + ".1" if path.endswith(mine) else path
        if data is None:
            (where / path).mkdir()
        else:
            (where / path).write_bytes(data)


def read_in(where: Path) -> Content:
    """The content of a folder."""
    return {str(p.relative_to(where)): None if p.is_dir() else p.read_bytes() for p in sorted(where.rglob("*"))}
