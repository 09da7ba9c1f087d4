"""Parquet folders, train.parquet and optionally test.parquet, or single files, read as `rayfed.data.table` and `rayfed.data.rows` say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed.data import Dataset, rows, table, unknown_options
from rayfed.data.columns import fraction_problems
from rayfed.errors import ConfigError

if TYPE_CHECKING:
    from rayfed.config.schema import Named

OPTIONS = (*table.OPTIONS, "split", "shape")
ELSEWHERE = ("csv", "json", "jsonl", "arrow")  # what `hf:` reads


def _folder(spec: Named) -> Path:
    return Path(spec.name.partition(":")[2]).expanduser()


def check(spec: Named) -> list[str]:
    """Return what is wrong with options and schemas; no row is read."""
    o, folder = spec.options, _folder(spec)
    problems = unknown_options(spec, OPTIONS) + table.option_problems(o)
    problems += fraction_problems(o["test"]) if "test" in o else []
    train = folder / "train.parquet"
    if folder.is_file() and folder.suffix != ".parquet":
        other = f"; hf:{folder} reads it" if folder.suffix.lstrip(".") in ELSEWHERE else ""
        return [*problems, f"task.data: {str(folder)!r} is no Parquet file{other}"]
    if folder.is_file():
        return problems or table.columns_of(o, [(_opened(folder).schema_arrow, str(folder))])[1]
    if not folder.is_dir():
        return [
            *problems,
            f"task.data: folder {str(folder)!r} does not exist (parquet:DIR needs DIR/train.parquet, parquet:FILE one file)",
        ]
    if not train.is_file():
        return [*problems, f"task.data: {train} does not exist; found: {_found(folder)}"]
    if problems:
        return problems
    return table.columns_of(o, [(_opened(f).schema_arrow, str(f)) for f in _files(folder)])[1]


def _files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    return [f for f in (folder / "train.parquet", folder / "test.parquet") if f.is_file()]


def _found(folder: Path) -> str:
    """Return what a folder holds in place of train.parquet, in words."""
    if found := ", ".join(sorted(p.name for p in folder.glob("*.parquet"))):
        return found
    if other := sorted(p.name for p in folder.iterdir() if p.suffix.lstrip(".") in ELSEWHERE):
        return f"{other[0]}, which hf:{folder} reads"
    return "no Parquet file"


def _opened(file: Path) -> Any:
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except Exception as e:  # with a broken header the reader raises errors of any kind
        raise ConfigError(f"task.data: {file} is not readable as Parquet: {e}") from None


def load(spec: Named, seed: int) -> Dataset:
    """Return the set. Without test.parquet, and of a single file, a stratified share `test` (0.2) of the rows, the same for every seed,
    is its test part."""
    folder = _folder(spec)
    read = []
    for file in _files(folder):
        opened = _opened(file)
        try:
            read.append(rows.File(opened.read(), str(file)))
        except Exception as e:
            raise ConfigError(f"task.data: {file} cannot be read: {e}") from None
    return rows.dataset_of(read, spec, str(folder))
