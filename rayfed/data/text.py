"""Texts to token ids: once per data set, tokenizer and length, kept as an Arrow file in the user's cache.

    python -m rayfed.data.text text|instruct FOLDER LENGTH TEXTS.arrow IDS.arrow

is how the process that reads configs has it done: tokenizers load torch, and that process never does.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed.errors import ConfigError

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.data import Dataset

LENGTH = 64  # tokens of a text, where `task.data.length` does not say
CACHE = "RAYFED_CACHE"
AFTER_PADDING = (  # model types whose positions begin behind the padding token's id
    "camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta",
    "xlm-roberta-xl", "xmod",
)  # fmt: skip
TOKENIZERS = (
    "tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model",
)  # fmt: skip
# What ids depend on.
READS = ("*token*", "vocab*", "merges*", "dict*", "*.model", "*.codes", "*.bpe", "*.spm", "config.json")


def cache() -> Path:
    """$RAYFED_CACHE, or ~/.cache/rayfed."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "rayfed")


def tokenised(dataset: Dataset, config: Config) -> Dataset:
    """The data set with x (n, L) int32 token ids, -1 on padding; L is the longest text's, at most `task.data.length`.

    ConfigError where the model has no tokenizer, or sequences would be longer than it can take.
    """
    where, length = tokenizer_folder(dataset, config, LENGTH)
    parts = (dataset.train, dataset.test)
    ids = cached(where, {"text": [str(t) for p in parts for t in p.x]}, str(length), "text")["ids"]
    width = max((len(i) for i in ids), default=1)
    x = np.full((len(ids), max(width, 1)), -1, np.int32)
    for row, i in zip(x, ids, strict=True):
        row[: len(i)] = i
    n = len(dataset.train.y)
    return replace(dataset, train=replace(parts[0], x=x[:n]), test=replace(parts[1], x=x[n:]))


def tokenizer_folder(dataset: Dataset, config: Config, length: int) -> tuple[Path, int]:
    """(the model's folder, tokens of a sequence: `task.data.length`, else `length`).

    ConfigError where the model has no tokenizer, or sequences would be longer than it can take.
    """
    from rayfed.models import pretrained

    spec = config.task.model
    holds = "instructions" if dataset.kind == "instruct" else "texts"
    if not spec.name.startswith("hf:"):
        raise ConfigError(f"task.model: {spec.name!r} found, {dataset.name} holds {holds}; allowed: hf:NAME_OR_DIR")
    where = pretrained.folder(spec.name)
    said = config.task.data.options.get("length")
    for most, of in limits(config):
        if most < 1:
            assert config.adapter.kind in ("prompt", "prefix")
            ahead = config.adapter.tokens
            raise ConfigError(
                f"adapter.tokens: {ahead} found, {spec.name} takes {most + ahead} tokens{of.partition(' beside')[0]}; "
                "allowed: fewer than that"
            )
        if said is not None and int(said) > most:
            raise ConfigError(f"task.data.length: {said} found, {spec.name} takes at most {most} tokens{of}")
        length = min(length, most)
    if not any((where / n).is_file() for n in TOKENIZERS):
        raise ConfigError(
            f"task.model: {where} holds no tokenizer ({', '.join(TOKENIZERS)}), and {dataset.name} holds {holds}"
        )
    return where, int(said) if said is not None else length


def limits(config: Config) -> list[tuple[int, str]]:
    """(tokens of a text that the model can take at most, "" or of what) by each of its limits; the adapter's own are off already."""
    from rayfed.models import pretrained

    about = pretrained.architecture(pretrained.folder(config.task.model.name))
    window = about.get("sliding_window") if about.get("use_sliding_window", True) else None
    positions = about.get("max_position_embeddings") or about.get("n_positions")
    if positions and about.get("model_type") in AFTER_PADDING:
        pad = about.get("pad_token_id")
        positions = int(positions) - (1 if pad is None else int(pad)) - 1
    ahead = config.adapter.tokens if config.adapter.kind in ("prompt", "prefix") else 0
    beside = f" beside {ahead} of the adapter" if ahead else ""
    known = ((positions, beside), (window, f" in its attention's window{beside}"))
    return [(int(most) - ahead, of) for most, of in known if most]


def architecture_of(where: Path) -> dict[str, Any]:
    """The config.json of a model's folder."""
    from rayfed.models import pretrained

    return pretrained.architecture(where)


def cached(where: Path, given: dict[str, list[str]], said: str, module: str) -> dict[str, list[Any]]:
    """What `made(where, given, said)` of `rayfed.data.MODULE` gives with the tokenizer in `where`, a list of arrays each; from the
    cache where it is there."""
    import pyarrow as pa

    by = [version(n) for n in ("transformers", "tokenizers")]
    known = hashlib.sha256(f"3 {by} {module} {said} {sorted(given)} {len(next(iter(given.values())))}".encode())
    for _, texts in sorted(given.items()):
        for t in texts:
            known.update(hashlib.sha256(t.encode()).digest())
    files = [f for pattern in READS for f in sorted(where.glob(pattern))]
    for file in dict.fromkeys(f for f in files if f.is_file()):
        known.update(file.name.encode() + file.read_bytes())
    kept = cache() / "tokens" / f"{known.hexdigest()[:32]}.arrow"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as tmp:
            done_file = Path(tmp) / "ids.arrow"
            if "torch" in sys.modules:
                _write(done_file, _made(module, where, given, said))
            else:
                before = Path(tmp) / "texts.arrow"
                _write(before, given)
                words = [module, str(where), said, str(before), str(done_file)]
                done = subprocess.run(
                    [sys.executable, "-m", "rayfed.data.text", *words], capture_output=True, text=True
                )
                if done.returncode:
                    told = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                    raise ConfigError(
                        told
                        if told.startswith("task.")
                        else f"task.model: the tokenizer of {where} does not load: {told}"
                    )
            done_file.replace(kept)
    with pa.memory_map(str(kept)) as source:
        table = pa.ipc.open_file(source).read_all()
        return {n: [np.asarray(i) for i in table[n].to_numpy(zero_copy_only=False)] for n in table.column_names}


def tokenizer(where: Path) -> Any:
    """The tokenizer of a model's folder. ConfigError if it does not load."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(where)
    except Exception as e:
        raise ConfigError(f"task.model: the tokenizer of {where} does not load: {type(e).__name__}: {e}") from None


def made(where: Path, given: dict[str, list[str]], said: str) -> dict[str, Any]:
    """`ids` of each text with the tokenizer's own special tokens, cut at `said`."""
    return {"ids": tokenizer(where)(given["text"], truncation=True, max_length=int(said))["input_ids"]}


def _made(module: str, where: Path, given: dict[str, list[str]], said: str) -> dict[str, Any]:
    found: dict[str, Any] = importlib.import_module(f"rayfed.data.{module}").made(where, given, said)
    return found


def _write(file: Path, columns: dict[str, Any]) -> None:
    import pyarrow as pa

    table = pa.table(columns)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def main(words: Sequence[str]) -> None:
    """See the module's first lines."""
    import pyarrow as pa

    module, where, said, given, made_file = words
    with pa.memory_map(given) as source:
        table = pa.ipc.open_file(source).read_all()
        columns = {n: table[n].to_pylist() for n in table.column_names}
    _write(Path(made_file), _made(module, Path(where), columns, said))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ConfigError as e:
        sys.exit(str(e))
