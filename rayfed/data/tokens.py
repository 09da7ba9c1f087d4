"""Texts to token ids: once per data set, tokenizer and length, kept as an Arrow file in the user's cache.

    python -m rayfed.data.tokens text|instruct|chat FOLDER LENGTH TEXTS.arrow IDS.arrow

is what the process that reads configs starts: tokenizers load torch, which that process never does.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed.errors import ConfigError, refusing
from rayfed.models import folder
from rayfed.storage.cache import cache_folder

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.data import Dataset

TOKENIZERS = (
    "tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model",
)  # fmt: skip
# What ids depend on.
READS = (
    "*token*",
    "chat_template*",
    "vocab*",
    "merges*",
    "dict*",
    "*.model",
    "*.codes",
    "*.bpe",
    "*.spm",
    "config.json",
)


def tokenizer_folder(dataset: Dataset, config: Config, length: int) -> tuple[Path, int]:
    """Return (the model's folder, tokens of a sequence: `task.data.length`, else `length`).

    ConfigError where the model has no tokenizer, or sequences would be longer than it can take.
    """
    spec = config.task.model
    holds = "instructions" if dataset.kind == "instruct" else "texts"
    if not spec.name.startswith("hf:"):
        raise ConfigError(f"task.model: {spec.name!r} found, {dataset.name} holds {holds}; allowed: hf:NAME_OR_DIR")
    where = folder.locate(spec.name)
    asked = config.task.data.options.get("length")
    for most, of in folder.limits(config):
        if most < 1:
            assert config.adapter.kind in ("prompt", "prefix")
            ahead = config.adapter.tokens
            raise ConfigError(
                f"adapter.tokens: {ahead} found, {spec.name} takes {most + ahead} tokens; allowed: fewer than that"
            )
        if asked is not None and int(asked) > most:
            raise ConfigError(f"task.data.length: {asked} found, {spec.name} takes at most {most} tokens{of}")
        length = min(length, most)
    if not any((where / n).is_file() for n in TOKENIZERS):
        raise ConfigError(
            f"task.model: {where} holds no tokenizer ({', '.join(TOKENIZERS)}), and {dataset.name} holds {holds}"
        )
    return where, int(asked) if asked is not None else length


def cached(where: Path, texts: Mapping[str, list[str]], length: str, module: str) -> dict[str, list[Any]]:
    """Return what `encode(where, texts, length)` of `rayfed.data.MODULE` gives with the tokenizer in `where`, arrays by name.

    From the cache where it is there. ConfigError where the tokenizer does not load.
    """
    import pyarrow as pa

    kept = cache_folder() / "tokens" / f"{_digest(where, texts, length, module)[:32]}.arrow"
    if kept.is_file():
        with contextlib.suppress(pa.ArrowException, OSError):  # a damaged file is written anew
            return _read(kept)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as tmp:
        file = Path(tmp) / "ids.arrow"
        if "torch" in sys.modules:
            with refusing(f"task.model: the tokenizer of {where}"):
                _write(file, _encode(module, where, texts, length))
        else:
            _encode_elsewhere(module, where, texts, length, file)
        file.replace(kept)
    return _read(kept)


def _read(file: Path) -> dict[str, list[Any]]:
    """Return arrays by name. An Arrow error where the file is damaged."""
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        table = pa.ipc.open_file(source).read_all()
        table.validate(full=True)
        return {n: [np.asarray(i) for i in table[n].to_numpy(zero_copy_only=False)] for n in table.column_names}


def _digest(where: Path, texts: Mapping[str, list[str]], length: str, module: str) -> str:
    """Return a digest of all that ids depend on: versions, texts, and the tokenizer's files."""
    by = [version(n) for n in ("transformers", "tokenizers")]
    known = hashlib.sha256(f"3 {by} {module} {length} {sorted(texts)} {len(next(iter(texts.values())))}".encode())
    for _, column in sorted(texts.items()):
        for t in column:
            known.update(hashlib.sha256(t.encode()).digest())
    files = [f for pattern in READS for f in sorted(where.glob(pattern))]
    for file in dict.fromkeys(f for f in files if f.is_file()):
        known.update(file.name.encode() + file.read_bytes())
    return known.hexdigest()


def _encode(module: str, where: Path, texts: Mapping[str, list[str]], length: str) -> dict[str, Any]:
    found: dict[str, Any] = importlib.import_module(f"rayfed.data.{module}").encode(where, texts, length)
    return found


def _encode_elsewhere(module: str, where: Path, texts: Mapping[str, list[str]], length: str, file: Path) -> None:
    """Have another process write the ids into `file`."""
    given = file.with_name("texts.arrow")
    _write(given, texts)
    words = [module, str(where), length, str(given), str(file)]
    done = subprocess.run([sys.executable, "-m", "rayfed.data.tokens", *words], capture_output=True, encoding="utf-8")
    if not done.returncode:
        return
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    if not reason.startswith("task."):
        reason = f"task.model: the tokenizer of {where} does not load: {reason}"
    raise ConfigError(reason)


def _write(file: Path, columns: Mapping[str, Any]) -> None:
    import pyarrow as pa

    table = pa.table(dict(columns))
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def main(words: Sequence[str]) -> None:
    """Encode the texts of one file into another; words: as in the module's first lines."""
    import pyarrow as pa

    module, where, length, given, file = words
    with pa.memory_map(given) as source:
        table = pa.ipc.open_file(source).read_all()
        columns = {n: table[n].to_pylist() for n in table.column_names}
    _write(Path(file), _encode(module, Path(where), columns, length))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ConfigError as e:
        sys.exit(str(e))
