"""The names of classes as token ids: what a text tower reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rayfed.data import tokens
from rayfed.errors import ConfigError
from rayfed.models import folder

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.data import Dataset

PLAIN = "{}."  # what learned tokens stand before
TEMPLATES = ("a picture of a {}.",)


def templates(config: Config) -> list[str]:
    """Return the sentences of `task.kind`'s `templates`, a name's place being {}."""
    return list(config.task.kind.options.get("templates", TEMPLATES))


def ids(dataset: Dataset, config: Config) -> np.ndarray:
    """Return (1 + T, C, L) int64 token ids with the tokenizer's own special tokens, -1 on padding: of each class's name with a full stop,
    and of T sentences with it.

    ConfigError where the model has no tokenizer or no place for them, names give no tokens, or two classes the same ones.
    """
    where = folder.locate(config.task.model.name)
    if not any((where / n).is_file() for n in tokens.TOKENIZERS):
        raise ConfigError(
            f"task.model: {where} holds no tokenizer ({', '.join(tokens.TOKENIZERS)}), which reads the names of classes"
        )
    sentences, names = [PLAIN, *templates(config)], dataset.label_names
    if lacking := [t for t in sentences if t.count("{}") != 1]:
        raise ConfigError(
            f"task.kind.templates: {lacking[0]!r} found, allowed: sentences with one {{}}, a name's place"
        )
    given = [*names, "", *(t.replace("{}", n) for t in sentences for n in names)]
    known = tokens.cached(where, {"text": given}, "512", "text")["ids"]
    alone, empty, rest = known[: len(names)], known[len(names)], known[len(names) + 1 :]
    if problems := _problems(names, alone, len(empty)):
        raise ConfigError(problems)
    width = max(map(len, rest))
    most = folder.architecture(where).get("text_config", {}).get("max_position_embeddings")
    ahead = config.adapter.text if config.adapter.kind == "prompts" else 0
    if most and max(width, ahead + max(map(len, rest[: len(names)]))) > most:
        raise ConfigError(
            f"task.model: {config.task.model.name} takes {most} tokens, the names of classes have {width} with their sentence and "
            f"{ahead} learned ones; allowed: shorter task.kind.templates, or fewer of adapter.text"
        )
    out = np.full((len(rest), width), -1, np.int64)
    for row, i in zip(out, rest, strict=True):
        row[: len(i)] = i
    return out.reshape(len(sentences), len(names), width)


def _problems(names: Sequence[str], alone: Sequence[np.ndarray], special: int) -> list[str]:
    """Return which names say nothing, and which classes cannot be told apart; special: tokens of an empty text."""
    found: dict[bytes, str] = {}
    empty = [n for n, i in zip(names, alone, strict=True) if len(i) <= special]
    out = [f"task.data: class {n!r} tokenises to nothing, and is known by its name alone" for n in empty[:3]]
    for n, i in zip(names, alone, strict=True):
        other = found.setdefault(np.asarray(i).tobytes(), n)
        if other != n and n not in empty:
            out.append(
                f"task.data: classes {other!r} and {n!r} are the same tokens, and are known by their names alone"
            )
    return out[:5]
