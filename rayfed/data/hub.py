"""Labelled sets through the `datasets` library: `hf:NAME` from the hub or its cache, `hf:FOLDER` and `hf:FILE` from disk.

A folder was made with `save_to_disk`, or holds files that `load_dataset` understands (Parquet, CSV, image folders); a file is one of
READERS. Rows are read as `rayfed.data.table` and `rayfed.data.rows` say.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed.data import Dataset, rows, table, unknown_options
from rayfed.data.columns import fraction_problems
from rayfed.errors import ConfigError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

    from rayfed.config.schema import Named

OPTIONS = (*table.OPTIONS, "train", "config", "delimiter", "decimal")
READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".arrow": "arrow"}
FILES = (".csv", ".tsv", ".json", ".jsonl", ".txt")


def _path(spec: Named) -> Path:
    return Path(spec.name.partition(":")[2]).expanduser()


def check(spec: Named) -> list[str]:
    """Return what is wrong with options and, where a folder is meant, with its splits and columns; the hub is asked by `load`."""
    where, o = spec.name.partition(":")[2], spec.options
    problems = unknown_options(spec, OPTIONS)
    problems += [
        f"task.data.{n}: {o[n]!r} found, allowed: a name"
        for n in ("train", "config")
        if n in o and not isinstance(o[n], str)
    ]
    problems += table.option_problems(o) + _csv_problems(o)
    if "test" in o and not isinstance(o["test"], str):
        problems += fraction_problems(o["test"])
    path = _path(spec)
    if (where.startswith((".", "/", "~")) or where.count("/") > 1) and not path.exists():
        return [*problems, f"task.data: {where!r} does not exist, neither a folder nor a file"]
    if path.is_file() and (wrong := _file_problem(path, o)):
        return [*problems, wrong]
    if path.is_dir() and not any(path.iterdir()):
        return [*problems, f"task.data: folder {where!r} is empty"]
    if not path.exists() and (given := next((n for n in ("delimiter", "decimal") if n in o), None)):
        problems.append(
            f"task.data.{given}: {o[given]!r} found, allowed for CSV files on this machine, hf:FILE or hf:FOLDER"
        )
    if problems or not path.exists():
        return problems
    splits = _splits(spec)
    return table.columns_of(_options(spec), [(t.features.arrow_schema, name) for name, t in splits.items()])[1]


def load(spec: Named, seed: int) -> Dataset:
    """Return splits `train` and `test`; without a test split, a stratified share (0.2) of train, the same for every seed."""
    splits, o = _splits(spec), _options(spec)
    use, problems = table.columns_of(o, [(t.features.arrow_schema, name) for name, t in splits.items()])
    if problems:
        raise ConfigError(problems)
    words = bool(use.text or use.response or use.messages)
    files = [rows.File(_arrow(t, use.label, words), name) for name, t in splits.items()]
    plain = spec.model_copy(update={"options": o})
    return rows.dataset_of(files, plain, spec.name, "parquet test rows" if words else "hf test rows")


def _options(spec: Named) -> dict[str, Any]:
    """Return the options that are the tables', a share of the training rows among them."""
    o = {k: v for k, v in spec.options.items() if k not in ("train", "test", "config")}
    share = spec.options.get("test")
    return o if share is None or isinstance(share, str) else {**o, "test": share}


def _arrow(split: Any, label: str | None, words: bool) -> pa.Table:
    """Return the rows; classes keep the names that the set gives them, and a column `split` says something of words only."""
    found = split.with_format("arrow")[:]
    names = getattr(split.features.get(label), "names", None)
    found = found.replace_schema_metadata({"shelf": json.dumps({"label_names": names})} if names else None)
    return found if words or "split" not in found.column_names else found.drop_columns(["split"])


def _splits(spec: Named) -> dict[str, Any]:
    """Return the training split and, where there is one, the test split, by what sentences call them."""
    found, o = _open(spec), spec.options
    first, second = o.get("train", "train"), o.get("test", "test")
    known = ", ".join(found)
    if first not in found:
        raise ConfigError(
            f"task.data.train: {spec.name} has no split {first!r}{nearest(first, found)}; splits: {known} (train: NAME)"
        )
    if isinstance(second, str) and second not in found and "test" in o:
        raise ConfigError(
            f"task.data.test: {spec.name} has no split {second!r}{nearest(second, found)}; splits: {known}"
        )
    chosen = [first, *([second] if isinstance(second, str) and second in found else [])]
    return {f"{spec.name}, split {name!r}": found[name] for name in dict.fromkeys(chosen)}


def _open(spec: Named) -> Mapping[str, Any]:
    """Return split -> table. A local folder is opened once, as long as it stays as it is."""
    path, o = _path(spec), spec.options
    if path.exists():
        files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
        stamp = tuple((str(f), (s := f.stat()).st_size, s.st_mtime_ns) for f in files)
        return _local(path, o.get("config"), spec.name, stamp, o.get("delimiter"), o.get("decimal"))
    import datasets

    name = spec.name.partition(":")[2]
    try:
        return _by_split(datasets.load_dataset(name, o.get("config")))
    except Exception as e:
        text = _failure(spec.name, e)
        if isinstance(e, OSError):
            text += (
                "\n  Neither a local folder nor reachable on the Hugging Face hub from here. Without a network: put the set into a "
                "folder (Dataset.save_to_disk, or train.parquet and test.parquet) and use hf:FOLDER."
            )
        raise ConfigError(text) from None


def _by_split(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {"train": found}


@functools.lru_cache(maxsize=1)
def _local(
    path: Path, config: str | None, name: str, stamp: object, delimiter: str | None, decimal: str | None
) -> Mapping[str, Any]:
    import datasets

    for file in sorted(path.rglob("*.arrow")) if path.is_dir() else [path] if path.suffix == ".arrow" else ():
        _check_arrow(file)
    try:
        with _quiet():
            if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
                return _by_split(datasets.load_from_disk(str(path)))
            kind, how = _reading(path, delimiter, decimal)
            return _by_split(datasets.load_dataset(kind, config, **how))
    except Exception as e:
        raise ConfigError(_not_utf8(path) or _failure(name, e)) from None


def _reading(path: Path, delimiter: str | None, decimal: str | None) -> tuple[str, dict[str, Any]]:
    """Return what `load_dataset` reads a folder or a file by, and its arguments."""
    csv = {n: v for n, v in (("sep", delimiter), ("decimal", decimal)) if v is not None}
    if path.is_file():
        if path.suffix.lower() == ".tsv":
            csv = {"sep": "\t", **csv}
        return READERS[path.suffix.lower()], {"data_files": str(path), **csv}
    return ("csv", {"data_dir": str(path), **csv}) if csv else (str(path), {})


def _csv_problems(o: dict[str, Any]) -> list[str]:
    """Return what is wrong with how the values of CSV files are divided and written."""
    out = []
    if "delimiter" in o and not (isinstance(o["delimiter"], str) and len(o["delimiter"]) == 1):
        out.append(f"task.data.delimiter: {o['delimiter']!r} found, allowed: one character, such as ';' or \"\\t\"")
    if "decimal" in o and o["decimal"] not in (".", ","):
        out.append(f"task.data.decimal: {o['decimal']!r} found, allowed: '.', ','")
    if o.get("decimal") == "," and o.get("delimiter", ",") == ",":
        out.append("task.data.decimal: ',' found, allowed with another delimiter than the comma (delimiter: ';')")
    return out


def _file_problem(path: Path, o: dict[str, Any]) -> str | None:
    """Return why a file is not one that can be read, or not as the options say."""
    kind = READERS.get(path.suffix.lower())
    if kind is None:
        return f"task.data: '{path}' is no file that hf: reads; allowed: {', '.join(READERS)}, or a folder"
    given = next((n for n in ("delimiter", "decimal") if n in o), None)
    return (
        f"task.data.{given}: {o[given]!r} found, which belongs to CSV files; {path} is none"
        if given and kind != "csv"
        else None
    )


def _check_arrow(file: Path) -> None:
    """Raise ConfigError for an Arrow file whose values are not as it says: it is mapped into memory, where whoever reads beyond its
    end takes the process along."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(file)) as source:
            try:
                reader = pa.ipc.open_stream(source)
            except pa.ArrowInvalid:  # the other of Arrow's two formats
                opened = pa.ipc.open_file(source)
                reader = map(opened.get_batch, range(opened.num_record_batches))
            for batch in reader:
                batch.validate(full=True)
    except (pa.ArrowException, OSError) as e:
        raise ConfigError(f"task.data: {file} is damaged: {type(e).__name__}: {e}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's bars and logged errors off the terminal: we report once what went wrong."""
    import datasets
    from datasets.utils.logging import CRITICAL

    level, bars = datasets.logging.get_verbosity(), not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


def _failure(name: str, e: BaseException) -> str:
    """Return a sentence about the root cause of an error."""
    while e.__cause__ is not None:
        e = e.__cause__
    return f"task.data: {name} cannot be loaded: {type(e).__name__}: {e}"


def _not_utf8(path: Path) -> str | None:
    """Return a sentence about the first text file that is not UTF-8, if there is one."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    for file in (f for f in files if f.suffix in FILES):
        at, decoder = 0, codecs.getincrementaldecoder("utf-8")()
        with open(file, "rb") as f:
            while block := f.read(1 << 20):
                try:
                    decoder.decode(block)
                except UnicodeDecodeError as e:
                    return (
                        f"task.data: {file} is not UTF-8 (UnicodeDecodeError: byte {e.object[e.start]:#04x} near byte {at + e.start}); "
                        f"save it as UTF-8, e.g. iconv -f latin1 -t utf-8 where it is Latin-1"
                    )
                at += len(block)
    return None
