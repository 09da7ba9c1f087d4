"""The rows of a run on disk: one per round, and one per evaluated round and client.

During a run, rounds are lines of `parts/rows-FENCE.jsonl`, each appended at once and synced before a snapshot of them counts, from
which a run continues; a torn last line does not count. Client rows are `parts/clients-ROUND-FENCE.parquet`. At the end they become
`metrics.parquet` and `clients/round-000005.parquet`. Readers take both forms, so that a crash between them loses nothing and
doubles nothing.

A line ends with a checksum of the rest of it, and holds size and checksum of its round's client rows. `metrics.parquet` has the
same in its schema's metadata, where readers of Parquet do not stumble over it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rayfed.errors import DamagedFile
from rayfed.storage.atomic import Sum, durable_write, free_aside, make_folder, set_aside, sync_dir, write_all

if TYPE_CHECKING:
    import pyarrow as pa

LINE = re.compile(rb'(\{.*), "crc32": (\d+)\}')
ROWS = re.compile(r"rows-(\d+)\.jsonl")
CLIENTS = re.compile(r"clients-(\d+)-(\d+)\.parquet")
ROUND = re.compile(r"round-(\d+)\.parquet")
METADATA = b"rayfed"  # key of the checksums in the schema of metrics.parquet

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


class Line(NamedTuple):
    """A whole line of a part file: its row, the sum of its round's client rows if it was evaluated, and its bytes."""

    row: Row
    clients: Sum | None
    content: bytes


class Log(NamedTuple):
    """Rows by round, in order, and the sums of the client rows of those rounds that were evaluated."""

    rows: dict[int, Row]
    clients: dict[int, Sum]


def _parts(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Return part files, oldest writer first; other files in the folder do not count."""
    where = folder / "parts"
    found = [(pattern.fullmatch(n), n) for n in (os.listdir(where) if where.is_dir() else ())]
    return [where / n for _, n in sorted((int(m.groups()[-1]), n) for m, n in found if m)]


def _line(row: Mapping[str, Any], clients: Sum | None) -> bytes:
    """Return a row as a line with its checksum."""
    text = json.dumps({**row, **({"clients": clients} if clients else {})})
    return f'{text[:-1]}, "crc32": {zlib.crc32(text.encode())}}}\n'.encode()


def _parse(line: bytes) -> Line | None:
    """Return what `_line` made a line of; None if it is damaged."""
    found = LINE.fullmatch(line)
    text = found[1] + b"}" if found else b""
    if found is None or zlib.crc32(text) != int(found[2]):
        return None
    row = json.loads(text)
    clients = row.pop("clients", None)
    return Line(row, None if clients is None else Sum(*clients), line + b"\n")


def _lines(path: Path) -> tuple[list[Line], list[int]]:
    """Return (whole lines, numbers of damaged ones); the rest after the last line's end is torn and does not count.

    DamagedFile if the file cannot be read.
    """
    try:
        *lines, _ = path.read_bytes().split(b"\n")
    except OSError as e:
        raise DamagedFile(path.parent.parent, path, f"it cannot be read: {e.strerror or e}") from None
    parsed = [_parse(line) for line in lines]
    return [p for p in parsed if p], [i for i, p in enumerate(parsed, 1) if p is None]


def _compacted(folder: Path) -> Log:
    """Read `metrics.parquet`; empty if there is none. DamagedFile if it is not as it was written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "metrics.parquet"
    if not path.exists():
        return Log({}, {})
    try:
        found = pq.read_table(pa.BufferReader(path.read_bytes()))
        about = json.loads((found.schema.metadata or {})[METADATA])
        clients = {int(r): Sum.read(s) for r, s in about["clients"].items()}
        rows = found.to_pylist()
    except KeyError:
        raise DamagedFile(folder, path, "it has no checksum, so another program wrote it") from None
    except (pa.ArrowException, OSError, ValueError, TypeError, AttributeError) as e:
        raise DamagedFile(folder, path, f"it cannot be read: {e}") from None
    if about.get("crc32") != _checksum(rows, clients):
        raise DamagedFile(folder, path, "it has a wrong checksum")
    return Log({row["round"]: row for row in rows}, clients)


def _compacted_bytes(log: Log) -> Any:
    """Return the content of `metrics.parquet`."""
    found = table(list(log.rows.values()))
    about = {"clients": log.clients, "crc32": _checksum(found.to_pylist(), log.clients)}
    return _parquet(found.replace_schema_metadata({METADATA: json.dumps(about).encode()}))


def _checksum(rows: Sequence[Row], clients: Mapping[int, Sum]) -> int:
    return zlib.crc32(json.dumps([rows, sorted(clients.items())]).encode())


def read(folder: Path) -> dict[int, Row]:
    """Return all rows by round, in order; where two writers left the same round, the later writer's.

    DamagedFile where rows are not as they were written, or rows between others are lost. Damaged lines at the end of a part are
    as a crash may leave them: they do not count.
    """
    return read_log(folder).rows


def read_log(folder: Path) -> Log:
    """Return what `read` returns, with the sums of client rows."""
    rows, clients = _compacted(folder)
    for path in _parts(folder, ROWS):
        lines, damaged = _lines(path)
        if damaged and damaged[0] <= len(lines):
            raise DamagedFile(folder, path, f"line {damaged[0]} has a wrong checksum")
        rows |= {line.row["round"]: line.row for line in lines}
        clients |= {line.row["round"]: line.clients for line in lines if line.clients}
    lost = next((r for r in range(1, max(rows, default=0)) if r not in rows), None)
    if lost:
        raise DamagedFile(folder, folder / "parts", f"the row of round {lost} is lost")
    return Log(dict(sorted(rows.items())), clients)


def mend(folder: Path) -> Iterator[tuple[str, str]]:
    """Set damaged files of rows aside, in the run's folder; yield (file and what was found, its new name) of each.

    Of a part with damaged lines a copy is set aside, and the whole lines stay.
    """
    try:
        _compacted(folder)
    except DamagedFile as e:
        yield f"metrics.parquet: {e.found}", set_aside(e.file).name
    for path in _parts(folder, ROWS):
        try:
            lines, damaged = _lines(path)
        except DamagedFile as e:
            yield f"parts/{path.name}: {e.found}", set_aside(path, folder).name
            continue
        if damaged:
            aside = free_aside(path, folder)
            shutil.copyfile(path, aside)
            durable_write(path, *(line.content for line in lines))
            yield f"parts/{path.name}: line {', '.join(map(str, damaged[:5]))} has a wrong checksum", aside.name


def lost_rows(folder: Path) -> tuple[int, dict[int, str]]:
    """Return (the last round up to which all rows are there, evaluated round -> what is wrong with its client rows)."""
    rows, clients = _compacted(folder)
    for path in _parts(folder, ROWS):
        for line in _lines(path)[0]:
            rows[line.row["round"]] = line.row
            clients |= {line.row["round"]: line.clients} if line.clients else {}
    whole = 0
    while whole + 1 in rows:
        whole += 1
    files = client_files(folder)
    found = {}
    for r, wanted in clients.items():
        if damage := wanted.damage(files[r]) if r in files else "it is missing":
            found[r] = damage
    return whole, found


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


class Rows:
    """The part file to which one writer appends its rows. It is held open, so that what this process appends after another one has
    taken the run over, and replaced the file, goes nowhere."""

    def __init__(self, folder: Path, fence: int):
        """folder: of the run; the file appears with the first row."""
        self.path = folder / "parts" / f"rows-{fence}.jsonl"
        self._fd: int | None = None
        self._torn = False  # whether an append may have left a line without its end

    def append(self, round: int, row: Mapping[str, Any], clients: Sum | None = None) -> None:
        """Append a row, for this process's death but not for the machine's. clients: what `write_clients` returned for the round.

        After an OSError the row is not there.
        """
        line = _line({"round": round, **{k: number(k, v) for k, v in row.items() if k != "round"}}, clients)
        fd = self._open() if self._fd is None else self._fd
        if self._torn:
            _cut_torn_line(fd)
        end, self._torn = os.lseek(fd, 0, os.SEEK_END), True
        try:
            write_all(fd, line)
        except OSError:
            os.ftruncate(fd, end)
            raise
        self._torn = False

    def begin(self) -> None:
        """Open the file, if it is not open: before another writer may take over, while what comes before a row is written."""
        if self._fd is None:
            self._open()

    def _open(self) -> int:
        make_folder(self.path.parent)
        fresh = not self.path.exists()
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._fd, self._closing, self._torn = fd, weakref.finalize(self, os.close, fd), True
        if fresh:
            sync_dir(self.path.parent)
        return fd

    def sync(self) -> None:
        """Wait until the rows are on the disk, so that they survive the machine."""
        if self._fd is not None:
            os.fsync(self._fd)

    def close(self) -> None:
        """Close the file; the next row opens it again."""
        if self._fd is not None:
            self._fd = None
            self._closing()


def _cut_torn_line(fd: int) -> None:
    """Cut off what an interrupted append left after the last complete line."""
    size = end = os.lseek(fd, 0, os.SEEK_END)
    if not size or os.pread(fd, 1, size - 1) == b"\n":
        return
    while end:
        start = max(0, end - 65536)
        at = os.pread(fd, end - start, start).rfind(b"\n")
        if at >= 0:
            end = start + at + 1
            break
        end = start
    os.ftruncate(fd, end)


# -- clients -----------------------------------------------------------------------------------------------------------


def write_clients(folder: Path, fence: int, round: int, clients: Sequence[Mapping[str, Any]]) -> tuple[Path, Sum]:
    """Write a Parquet part with a row per client, column `round` first; return the file and its sum. It counts once the round's own
    row is there, and is not synced."""
    import pyarrow as pa

    names = list(dict.fromkeys(name for row in clients for name in row if name != "round"))
    columns: dict[str, Any] = {"round": pa.array([round] * len(clients), pa.int64())}
    for name in names:
        columns[name] = pa.array(_column([row.get(name) for row in clients]), from_pandas=False)
    make_folder(folder / "parts")
    content = _parquet(pa.table(columns))
    path = folder / "parts" / f"clients-{round:06d}-{fence}.parquet"
    durable_write(path, content, sync=False)
    return path, Sum.of(content)


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
    return dict(sorted(dict(_client_files(folder)).items()))


def _client_files(folder: Path) -> list[tuple[int, Path]]:
    where = folder / "clients"
    done = [(ROUND.fullmatch(n), n) for n in (os.listdir(where) if where.is_dir() else ())]
    found = [(int(m[1]), where / n) for m, n in done if m]
    return found + [(int(p.stem.split("-")[1]), p) for p in _parts(folder, CLIENTS)]


def read_clients(folder: Path, round: int | None = None) -> list[Row]:
    """Return client rows of a committed evaluated round, by default the newest that has any; empty if there are none.

    DamagedFile if they are not as they were written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    committed = read_log(folder).clients
    round = max(committed, default=0) if round is None else round
    if round not in committed:
        return []
    path = client_files(folder).get(round, folder / "clients" / f"round-{round:06d}.parquet")
    if damage := committed[round].damage(path):
        raise DamagedFile(folder, path, damage)
    return pq.read_table(pa.BufferReader(path.read_bytes())).to_pylist()


# -- rounds with their clients -----------------------------------------------------------------------------------------


def drop_after(folder: Path, last: int) -> int:
    """Drop every round after `last`, in all forms; returns the number of rows. Each file changes atomically; may be repeated."""
    dropped: set[int] = set()
    for path in _parts(folder, ROWS):
        lines, _ = _lines(path)
        kept = [line.content for line in lines if line.row["round"] <= last]
        dropped |= {line.row["round"] for line in lines if line.row["round"] > last}
        if kept:
            durable_write(
                path, *kept
            )  # always: a writer that has lost the run may still append to the file that was there
        else:
            os.unlink(path)
    done = _compacted(folder)
    if later := [r for r in done.rows if r > last]:
        dropped |= set(later)
        if last:
            rows = {r: row for r, row in done.rows.items() if r <= last}
            durable_write(
                folder / "metrics.parquet",
                _compacted_bytes(Log(rows, {r: s for r, s in done.clients.items() if r <= last})),
            )
        else:
            os.unlink(folder / "metrics.parquet")
    for round, path in _client_files(folder):
        if round > last:
            os.unlink(path)
    return len(dropped)


def compact(folder: Path) -> dict[int, Row]:
    """Turn parts into `metrics.parquet` and `clients/*.parquet`; returns the rows."""
    log = read_log(folder)
    durable_write(folder / "metrics.parquet", _compacted_bytes(log))
    clients = folder / "clients"
    make_folder(clients)
    for round, path in client_files(folder).items():
        if round in log.clients and path.parent != clients:
            os.replace(path, clients / f"round-{round:06d}.parquet")
    sync_dir(clients)
    # Only now are the parts not needed any more.
    for path in [*_parts(folder, ROWS), *_parts(folder, CLIENTS)]:
        os.unlink(path)
    if (folder / "parts").is_dir() and not os.listdir(folder / "parts"):
        os.rmdir(folder / "parts")
    return log.rows
