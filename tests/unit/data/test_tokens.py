"""Texts as token ids: those of the tokenizer, made once and kept by content."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayfed import partition
from rayfed.data import tokens
from rayfed.storage import cache
from tests import toy
from tests.tiny import changes

pytestmark = pytest.mark.usefixtures("fresh_cache")


def test_texts_are_the_tokenizers_ids_cut_and_padded(places: dict[str, Path]) -> None:
    from transformers import AutoTokenizer

    c = toy.config(**changes(places))
    fed = partition.build(c)
    texts = pq.read_table(places["data"] / "train.parquet")["text"].to_pylist()
    want = AutoTokenizer.from_pretrained(places["bert"])(texts, truncation=True, max_length=8)["input_ids"]
    assert max(map(len, want)) == 8 > min(map(len, want))
    x = fed.arrays["x"]
    assert x.dtype == np.int32 and fed.input_shape == (8,) and fed.kind == "text"
    assert [r[r >= 0].tolist() for r in x[:120]] == want
    assert all((r[len(w) :] == -1).all() for r, w in zip(x, want, strict=False))
    assert len(list((cache.cache_folder() / "tokens").iterdir())) == 1


def test_the_cache_is_by_content_and_another_process_does_the_work(places: dict[str, Path]) -> None:
    code = (
        "import sys, json; from rayfed.launch.preflight import load_request; from rayfed import partition;"
        f"c = load_request(json.loads({json.dumps(json.dumps(toy.config(**changes(places)).to_dict()))}));"
        "print(json.dumps([partition.build(c).arrays['x'].tolist(), 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    x, torch_came = json.loads(done.stdout)
    assert not torch_came
    (file,) = (cache.cache_folder() / "tokens").iterdir()
    before = file.stat().st_mtime_ns
    assert partition.build(toy.config(**changes(places))).arrays["x"].tolist() == x  # here, from its file
    assert file.stat().st_mtime_ns == before
    longer = toy.merge(changes(places), {"task": {"data": {"length": 5}}})
    assert partition.build(toy.config(**longer)).input_shape == (5,)
    assert len(list((cache.cache_folder() / "tokens").iterdir())) == 2


@pytest.mark.parametrize("name", ["spiece.model", "sentencepiece.bpe.model", "spm.model", "bpe.codes", "dict.txt"])
def test_another_vocabulary_is_another_key(places: dict[str, Path], tmp_path: Path, name: str) -> None:
    def keys() -> int:
        tokens.cached(tmp_path / "m", {"text": ["the w00"]}, "8", "text")
        return len(list((cache.cache_folder() / "tokens").iterdir()))

    shutil.copytree(places["bert"], tmp_path / "m")
    (tmp_path / "m" / name).write_bytes(b"1")
    assert keys() == keys() == 1
    (tmp_path / "m" / name).write_bytes(b"2")
    assert keys() == 2


@pytest.mark.parametrize("library", ["transformers", "tokenizers"])
def test_other_versions_of_the_libraries_are_another_key(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    known = tokens.version
    for there in ("1", "2"):
        monkeypatch.setattr(tokens, "version", lambda n, there=there: there if n == library else known(n))
        tokens.cached(places["bert"], {"text": ["the w00"]}, "8", "text")
    assert len(list((cache.cache_folder() / "tokens").iterdir())) == 2


def test_texts_of_two_tokenizers_are_two_splits(places: dict[str, Path]) -> None:
    """One split serves runs that agree in it, and texts are kept as ids: a second tokenizer must not get the first one's."""

    def key(**more: Any) -> str:
        return partition.split_key(toy.config(**changes(places, **more)).to_dict())

    assert key() == key(method={"name": "fedprox"}, adapter={"kind": "bias"}, local={"batch_size": 2})
    assert key() != key(kind="gpt2", adapter={"kind": "bias"})
    assert key() != key(adapter={"kind": "prompt", "tokens": 3})  # which leaves fewer places
    assert key() != key(federation={"clients": 5})
    one, other = (toy.config(task={"model": {"name": m}}).to_dict() for m in ("mlp", "linear"))
    assert partition.split_key(one) == partition.split_key(other)
