"""Texts to token ids: once per data set, tokenizer and length, kept as an Arrow file in the user's cache.

    python -m rayfed.data.text FOLDER LENGTH TEXTS.arrow IDS.arrow

is how the process that reads configs has it done: tokenizers load torch, and that process never does.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed.errors import ConfigError

if TYPE_CHECKING:
    from rayfed.config import Config
    from rayfed.data import Dataset

LENGTH = 64  # tokens of a text, where `task.data.length` does not say
CACHE = "RAYFED_CACHE"
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def cache() -> Path:
    """$RAYFED_CACHE, or ~/.cache/rayfed."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "rayfed")


def tokenised(dataset: Dataset, config: Config) -> Dataset:
    """The data set with x (n, L) int32 token ids, -1 on padding; L is the longest text's, at most `task.data.length`.

    ConfigError where the model has no tokenizer, or sequences would be longer than it can take.
    """
    from rayfed.models import pretrained

    spec = config.task.model
    if not spec.name.startswith("hf:"):
        raise ConfigError(f"task.model: {spec.name!r} found, {dataset.name} holds texts; allowed: hf:NAME_OR_DIR")
    where = pretrained.folder(spec.name)
    length = int(config.task.data.options.get("length", LENGTH))
    about = pretrained.architecture(where)
    window = about.get("sliding_window") if about.get("use_sliding_window", True) else None
    for most, of in ((about.get("max_position_embeddings"), ""), (window, " in its attention's window")):
        if most and length > int(most):
            raise ConfigError(f"task.data.length: {length} found, {spec.name} takes at most {most} tokens{of}")
    parts = (dataset.train, dataset.test)
    if not any((where / n).is_file() for n in TOKENIZERS):
        raise ConfigError(
            f"task.model: {where} holds no tokenizer ({', '.join(TOKENIZERS)}), and {dataset.name} holds texts"
        )
    ids = encode(where, [str(t) for p in parts for t in p.x], length)
    width = max((len(i) for i in ids), default=1)
    x = np.full((len(ids), max(width, 1)), -1, np.int32)
    for row, i in zip(x, ids, strict=True):
        row[: len(i)] = i
    n = len(dataset.train.y)
    return replace(dataset, train=replace(parts[0], x=x[:n]), test=replace(parts[1], x=x[n:]))


def encode(where: Path, texts: Sequence[str], length: int) -> list[Any]:
    """Token ids of each text with the tokenizer's own special tokens, cut at `length`; from the cache where they are there."""
    import pyarrow as pa

    known = hashlib.sha256(f"1 {length} {len(texts)}".encode())
    for t in texts:
        known.update(hashlib.sha256(t.encode()).digest())
    for file in sorted(where.glob("*token*")) + sorted(where.glob("vocab*")) + sorted(where.glob("merges*")):
        known.update(file.name.encode() + file.read_bytes())
    kept = cache() / "tokens" / f"{known.hexdigest()[:32]}.arrow"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as tmp:
            made = Path(tmp) / "ids.arrow"
            if "torch" in sys.modules:
                _write(made, "ids", _ids(where, texts, length))
            else:
                given = Path(tmp) / "texts.arrow"
                _write(given, "text", list(texts))
                command = [sys.executable, "-m", "rayfed.data.text", str(where), str(length), str(given), str(made)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                    raise ConfigError(f"task.model: the tokenizer of {where} does not load: {said}")
            made.replace(kept)
    with pa.memory_map(str(kept)) as source:
        return [np.asarray(i) for i in pa.ipc.open_file(source).read_all()["ids"].to_numpy(zero_copy_only=False)]


def _ids(where: Path, texts: Sequence[str], length: int) -> list[list[int]]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
    except Exception as e:
        raise ConfigError(f"task.model: the tokenizer of {where} does not load: {type(e).__name__}: {e}") from None
    found: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=length)["input_ids"]
    return found


def _write(file: Path, name: str, rows: Sequence[Any]) -> None:
    import pyarrow as pa

    table = pa.table({name: rows})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def main(words: Sequence[str]) -> None:
    """See the module's first lines."""
    import pyarrow as pa

    where, length, given, made = words
    with pa.memory_map(given) as source:
        texts = pa.ipc.open_file(source).read_all()["text"].to_pylist()
    _write(Path(made), "ids", _ids(Path(where), texts, int(length)))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ConfigError as e:
        sys.exit(str(e))
