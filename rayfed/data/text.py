"""Labelled texts as token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed.data import tokens
from rayfed.errors import ConfigError
from rayfed.models import families, folder

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.data import Dataset

LENGTH = 64  # tokens of a text, where `task.data.length` does not say


def tokenised(dataset: Dataset, config: Config) -> Dataset:
    """Return the data set with x (n, L) int32 token ids, -1 on padding; L is the longest text's, at most `task.data.length`.

    ConfigError where the model has no tokenizer, or sequences would be longer than it can take.
    """
    where, length = tokens.tokenizer_folder(dataset, config, LENGTH)
    parts = (dataset.train, dataset.test)
    texts = [str(t) for p in parts for t in p.x]
    ids = tokens.cached(where, {"text": texts}, str(length), "text")["ids"]
    width = max((len(i) for i in ids), default=1)
    x = np.full((len(ids), max(width, 1)), -1, np.int32)
    for row, i in zip(x, ids, strict=True):
        row[: len(i)] = i
    n = len(dataset.train.y)
    empty = sum(not t.strip() or not len(i) for t, i in zip(texts, ids, strict=True))
    notes = (f"{empty:,} of {len(ids):,} texts of {dataset.name} are empty",) if empty else ()
    made = replace(dataset, train=replace(parts[0], x=x[:n]), test=replace(parts[1], x=x[n:]))
    return replace(made, notes=(*dataset.notes, *notes))


def check_ids(dataset: Dataset, config: Config) -> None:
    """Refuse token ids of a user's own that the model does not know, or has no place for. x: (n, L), -1 on padding."""
    spec, x = config.task.model, [p.x for p in (dataset.train, dataset.test) if p.x.size]
    if not spec.name.startswith("hf:"):
        if any(".py:" not in m.name for m in families.models(spec).values()):
            raise ConfigError(
                f"task.model: {spec.name!r} found, {dataset.name} holds token ids; allowed: hf:NAME_OR_DIR, or a network of your own"
            )
        return
    size = int(folder.architecture(folder.locate(spec.name)).get("vocab_size") or 0)
    most = max((int(a.max()) for a in x), default=-1)
    if size and most >= size:
        raise ConfigError(f"task.data: {dataset.name} holds token {most}, {spec.name} knows 0 to {size - 1}")
    for places, of in folder.limits(config):
        if dataset.input_shape[0] > places:
            raise ConfigError(
                f"task.data: {dataset.name} holds {dataset.input_shape[0]} tokens a text, {spec.name} takes at most {places} "
                f"tokens{of}"
            )


def encode(where: Path, texts: Mapping[str, list[str]], length: str) -> dict[str, Any]:
    """Return `ids` of each text with the tokenizer's own special tokens, cut at `length`."""
    return {"ids": folder.tokenizer(where)(texts["text"], truncation=True, max_length=int(length))["input_ids"]}
