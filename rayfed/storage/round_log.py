"""The rows of a run on disk: one per round, and one per evaluated round and client.

During a run, rounds are lines of `parts/rows-FENCE.jsonl`, each appended at once and synced before each snapshot, from which
a run continues; a torn last line does not count. Client rows are `parts/clients-ROUND-FENCE.parquet`. At the end they become
`metrics.parquet` and `clients/round-000005.parquet`. Readers take both forms, so that a crash between them loses nothing and
doubles nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed.storage.atomic import durable_write, make_folder, sync_dir, write_all

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]


def number(name: str, value: Any) -> float | int | None:
    """Convert a row's value to a plain number. TypeError names the column."""
    if value is not None and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool):
        return int(value)
    if value is None or isinstance(value, int | float):
        return value
    raise TypeError(f"metric {name!r} must be a number or None, found {type(value).__name__}")


def _fence(path: Path) -> int:
    return int(path.stem.rsplit("-", 1)[1])


def _parts(folder: Path, pattern: str) -> list[Path]:
    """Return part files, oldest writer first."""
    return sorted((folder / "parts").glob(pattern), key=lambda p: (_fence(p), p.name))


def _lines(path: Path) -> tuple[list[Row], bool]:
    """Return (complete rows, whether the file holds nothing else)."""
    whole, torn = [], False
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line) if line else None
        except ValueError:
            row, torn = None, True
        if isinstance(row, dict) and isinstance(row.get("round"), int):
            whole.append(row)
        elif line:
            torn = True
    return whole, not torn


def _compacted(folder: Path) -> list[Row]:
    import pyarrow.parquet as pq

    path = folder / "metrics.parquet"
    if not path.exists():
        return []
    return pq.read_table(path).to_pylist()


def read(folder: Path) -> dict[int, Row]:
    """Return all rows by round, in order; where two writers left the same round, the later writer's."""
    found = {row["round"]: row for row in _compacted(folder)}
    for path in _parts(folder, "rows-*.jsonl"):
        found.update({row["round"]: row for row in _lines(path)[0]})
    return dict(sorted(found.items()))


def table(rows: Sequence[Row]) -> pa.Table:
    """Return rows as a table: `round` (int64) first, then columns in order of appearance, int64 or float64, null where absent."""
    import pyarrow as pa

    names = list(dict.fromkeys(["round", *(name for row in rows for name in row)]))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        present = [v for v in values if v is not None]
        whole = name == "round" or (bool(present) and not any(isinstance(v, float) for v in present))
        kind = pa.int64() if whole else pa.float64()
        columns[name] = pa.array([v if v is None or whole else float(v) for v in values], kind, from_pandas=False)
    return pa.table(columns)


def append(folder: Path, fence: int, round: int, row: Mapping[str, Any], sync: bool = True) -> Callable[[], None]:
    """Append a row, and return a function that removes it again.

    sync: wait until it and all rows before it are on the disk, so that they survive the machine, not only this process. After
    an OSError the row is not there.
    """
    line = json.dumps({"round": round, **{k: number(k, v) for k, v in row.items() if k != "round"}}).encode() + b"\n"
    path = f"{folder}/parts/rows-{fence}.jsonl"
    try:
        fd, fresh = os.open(path, os.O_RDWR), False
    except FileNotFoundError:
        make_folder(folder / "parts")
        fd, fresh = os.open(path, os.O_RDWR | os.O_CREAT, 0o644), True
    try:
        end = _cut_torn_line(fd)
        try:
            write_all(fd, line)
            if sync:
                os.fsync(fd)
        except OSError:
            os.ftruncate(fd, end)
            raise
    finally:
        os.close(fd)
    if fresh:
        sync_dir(folder / "parts")

    def undo() -> None:
        os.truncate(path, end)

    return undo


def _cut_torn_line(fd: int) -> int:
    """Cut off what an interrupted append left, and return the end of the last complete line, where the file is then positioned."""
    size = end = os.lseek(fd, 0, os.SEEK_END)
    if not size or os.pread(fd, 1, size - 1) == b"\n":
        return size
    while end:
        start = max(0, end - 65536)
        at = os.pread(fd, end - start, start).rfind(b"\n")
        if at >= 0:
            end = start + at + 1
            break
        end = start
    os.ftruncate(fd, end)
    return os.lseek(fd, end, os.SEEK_SET)


# -- clients -----------------------------------------------------------------------------------------------------------


def write_clients(folder: Path, fence: int, round: int, clients: Sequence[Mapping[str, Any]]) -> None:
    """Write a Parquet part with a row per client, column `round` first. It counts once the round's own row is there."""
    import pyarrow as pa

    names = list(dict.fromkeys(name for row in clients for name in row if name != "round"))
    columns: dict[str, Any] = {"round": pa.array([round] * len(clients), pa.int64())}
    for name in names:
        columns[name] = pa.array(_column([row.get(name) for row in clients]), from_pandas=False)
    make_folder(folder / "parts")
    durable_write(folder / "parts" / f"clients-{round:06d}-{fence}.parquet", _parquet(pa.table(columns)))


def _column(values: Sequence[Any]) -> list[Any]:
    """Return plain values of one type: numbers become floats if one of them is."""
    values = [v.item() if hasattr(v, "item") else v for v in values]
    numbers = all(v is None or isinstance(v, int | float) for v in values)
    if numbers and any(isinstance(v, float) for v in values):
        return [None if v is None else float(v) for v in values]
    return values


def _parquet(content: pa.Table) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(content, sink)
    return sink.getvalue()


def client_files(folder: Path) -> dict[int, Path]:
    """Return round -> file of its client rows, also of rounds that were not committed; a later writer's part takes precedence."""
    found = {int(p.stem.removeprefix("round-")): p for p in (folder / "clients").glob("round-*.parquet")}
    found.update({int(p.stem.split("-")[1]): p for p in _parts(folder, "clients-*.parquet")})
    return dict(sorted(found.items()))


def read_clients(folder: Path, round: int | None = None) -> list[Row]:
    """Return client rows of a committed evaluated round, by default the newest that has any; empty if there are none."""
    import pyarrow.parquet as pq

    committed = read(folder)
    files = {r: p for r, p in client_files(folder).items() if r in committed}
    path = files.get(max(files) if round is None and files else round or 0)
    return pq.read_table(path).to_pylist() if path else []


# -- rounds with their clients -----------------------------------------------------------------------------------------


def drop_after(folder: Path, last: int) -> int:
    """Drop every round after `last`, in all forms; returns the number of rows. Each file changes atomically; may be repeated."""
    dropped = {r for r in read(folder) if r > last}
    for path in _parts(folder, "rows-*.jsonl"):
        rows, clean = _lines(path)
        kept = [row for row in rows if row["round"] <= last]
        if not kept:
            os.unlink(path)
        elif not clean or len(kept) < len(rows):
            durable_write(path, b"".join(json.dumps(row).encode() + b"\n" for row in kept))
    done = _compacted(folder)
    if any(row["round"] > last for row in done):
        if last:
            durable_write(folder / "metrics.parquet", _parquet(table([row for row in done if row["round"] <= last])))
        else:
            os.unlink(folder / "metrics.parquet")
    for path in [*_parts(folder, "clients-*.parquet"), *(folder / "clients").glob("round-*.parquet")]:
        if int(path.stem.split("-")[1]) > last:
            os.unlink(path)
    return len(dropped)


def compact(folder: Path) -> dict[int, Row]:
    """Turn parts into `metrics.parquet` and `clients/*.parquet`; returns the rows."""
    rows = read(folder)
    durable_write(folder / "metrics.parquet", _parquet(table(list(rows.values()))))
    clients = folder / "clients"
    make_folder(clients)
    for round, path in client_files(folder).items():
        if round in rows and path.parent != clients:
            os.replace(path, clients / f"round-{round:06d}.parquet")
    sync_dir(clients)
    # Only now are the parts not needed any more.
    if (folder / "parts").is_dir():
        for path in (folder / "parts").iterdir():
            os.unlink(path)
        os.rmdir(folder / "parts")
    return rows
