"""Trees on disk: bits, order of keys, other programs, damage."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from rayfed.errors import RunFailed
from rayfed.storage.tree_files import load_meta, load_tree, save_tree
from rayfed.tree import BF16


def equal(a, b):
    if isinstance(a, dict) or isinstance(b, dict):
        return isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, BF16) or isinstance(b, BF16):
        return isinstance(a, BF16) and isinstance(b, BF16) and equal(a.bits, b.bits)
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


TREE = {
    "z": {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "empty": {}},
    "a/b~c": {"x~1y": np.array([1.5, np.nan, -np.inf]), "__metadata__": np.int64(7)},
    "bf": BF16(np.array([[1, 2], [3, 65535]], dtype=np.uint16)),
    "mask": np.array([True, False]),
    "none": np.zeros((0, 4), dtype=np.int32),
    "turned": np.arange(6, dtype=np.int16).reshape(2, 3).T,
    "": {"": np.float64(3.0)},
    "number": 3,
}


@pytest.mark.parametrize("tree", [TREE, {}, {"a": {}}, np.arange(3.0)])
def test_tree_round_trip_keeps_bits_and_the_order_of_keys(tmp_path, tree):
    save_tree(tmp_path, "t", tree, meta={"round": 3, "lr": 0.1})
    assert equal(load_tree(tmp_path, "t"), tree)
    assert load_meta(tmp_path, "t") == {"round": 3, "lr": 0.1}
    assert os.listdir(tmp_path) == ["t.safetensors"]


def test_the_library_reads_our_files_and_we_read_its(tmp_path):
    from safetensors.numpy import load_file, save_file

    tree = {"head": {"w": np.ones((2, 3), np.float32)}, "n": np.arange(4), "m": np.array([True])}
    flat = load_file(save_tree(tmp_path, "ours", tree))
    assert set(flat) == {"head/w", "n", "m"}
    assert equal(dict(flat), {k: {"head/w": tree["head"]["w"], **tree}[k] for k in flat})
    save_file({"head/w": np.ones(2), "body.b": np.zeros(3)}, tmp_path / "theirs.safetensors")
    assert equal(load_tree(tmp_path, "theirs")["head"], {"w": np.ones(2)})


def test_bfloat16_is_bfloat16_for_other_readers(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    x = torch.tensor([1.0, -2.5, 3e38], dtype=torch.bfloat16)
    path = save_tree(tmp_path, "t", {"x": BF16(x.view(torch.uint16).numpy())})
    assert torch.equal(load_file(path)["x"], x)


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(TypeError, match="leaf 'a/s'"):
        save_tree(tmp_path, "t", {"a": {"s": "text"}})
    with pytest.raises(TypeError, match="keys are strings"):
        save_tree(tmp_path, "t", {1: np.zeros(1)})


def test_a_damaged_tree_is_a_sentence(tmp_path):
    path = save_tree(tmp_path, "t", TREE)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RunFailed, match="is damaged"):
        load_tree(tmp_path, "t")
    path.write_bytes(b"nonsense")
    with pytest.raises(RunFailed, match="is damaged"):
        load_tree(tmp_path, "t")


def test_a_failed_save_keeps_the_old_tree(tmp_path, monkeypatch):
    save_tree(tmp_path, "t", {"x": np.zeros(3)})

    def full(fd, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m, pytest.raises(OSError):
        m.setattr(os, "write", full)
        save_tree(tmp_path, "t", {"x": np.ones(3)})
    assert equal(load_tree(tmp_path, "t"), {"x": np.zeros(3)})
    assert os.listdir(tmp_path) == ["t.safetensors"]
