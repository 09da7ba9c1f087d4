"""Pairs of texts, a question and the passage that answers it, as numbers of words."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np

WORD = re.compile(r"\w+")


def encoded(texts: Sequence[str], length: int) -> np.ndarray:
    """Return the first `length` words of each text as 31-bit CRCs of their lower case, (n, length) int32, -1 where there are no more.

    A model that has a table of V words takes them modulo V (the hashing trick): no vocabulary is learned, so that none has to be shared.
    """
    out = np.full((len(texts), length), -1, np.int32)
    for row, text in zip(out, texts, strict=True):
        found = [zlib.crc32(w.encode()) & 0x7FFFFFFF for w in WORD.findall(text.lower())[:length]]
        row[: len(found)] = found
    return out


def paired(questions: Sequence[str], passages: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x (k, 2, length) of the k rows that have words on both sides, and which these are, (k,)."""
    x = np.stack([encoded(questions, length), encoded(passages, length)], 1)
    there = np.flatnonzero((x[:, :, 0] >= 0).all(1))
    return x[there], there
