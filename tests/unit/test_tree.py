"""Trees: arithmetic by hand, structure, bits, and how they travel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rayfed import tree
from rayfed.tree import BF16


def small(*numbers: float) -> tree.Tree:
    a, b, c = numbers
    return {"z": {"w": torch.tensor([[a, b]])}, "a": torch.tensor(c)}


def flat(t: tree.Tree) -> list[float]:
    return [x for leaf in tree.values(t) for x in leaf.reshape(-1).tolist()]


def test_arithmetic_by_hand() -> None:
    a, b = small(1.0, 2.0, 3.0), small(10.0, 20.0, -30.0)
    assert flat(tree.add(a, b)) == [11.0, 22.0, -27.0]
    assert flat(tree.add(a, b, 0.5)) == [6.0, 12.0, -12.0]
    assert flat(tree.add(a, b, torch.tensor(2.0))) == [21.0, 42.0, -57.0]
    assert flat(tree.sub(a, b)) == [-9.0, -18.0, 33.0]
    assert flat(tree.scale(a, 3)) == [3.0, 6.0, 9.0]
    assert flat(tree.zeros(a)) == [0.0, 0.0, 0.0]
    assert float(tree.dot(a, b)) == 10 + 40 - 90
    assert float(tree.norm(small(2.0, 3.0, 6.0))) == 7.0
    assert tree.flatten(a).tolist() == [1.0, 2.0, 3.0]
    assert flat(a) == [1.0, 2.0, 3.0]  # the operands stay as they were


def test_leaves_keep_the_order_and_the_nesting_of_names() -> None:
    t = small(1.0, 2.0, 3.0)
    assert [p for p, _ in tree.leaves(t)] == [("z", "w"), ("a",)]
    assert [p for p, _ in tree.leaves({"x": {}, "y.z": {"": {"/": torch.zeros(1)}}})] == [("y.z", "", "/")]
    assert [p for p, _ in tree.leaves(torch.zeros(2))] == [()]
    assert tree.values({}) == []


def test_map_refuses_other_structures() -> None:
    a = {"x": torch.zeros(1), "y": torch.zeros(1)}
    for other in ({"x": torch.zeros(1)}, {"x": torch.zeros(1), "z": torch.zeros(1)}, torch.zeros(1)):
        with pytest.raises(ValueError, match=r"trees differ: \['x', 'y'\]"):
            tree.add(a, other)
    turned = tree.sub(a, {"y": torch.ones(1), "x": torch.full((1,), 2.0)})  # by name, not by place
    assert list(turned) == ["x", "y"] and flat(turned) == [-2.0, -1.0]


def test_stack_pick_unstack() -> None:
    rows = [small(float(i), 2.0 * i, -float(i)) for i in range(4)]
    stacked = tree.stack(rows)
    assert stacked["z"]["w"].shape == (4, 1, 2) and stacked["a"].shape == (4,)
    assert all(tree.same(a, b) for a, b in zip(tree.unstack(stacked), rows, strict=True))
    assert tree.same(tree.pick(stacked, torch.tensor(2)), rows[2])
    picked = torch.vmap(lambda i: tree.pick(stacked, i))(torch.tensor([3, 0]))
    assert tree.same(picked, tree.stack([rows[3], rows[0]]))
    assert tree.stack([{"n": 3}, {"n": 5}])["n"].tolist() == [3, 5]


def test_combine_is_a_matrix_product_per_leaf() -> None:
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(5, 2, 3)), rng.normal(size=(5,)), rng.normal(size=(4, 5))
    got = tree.combine(torch.as_tensor(w), {"x": torch.as_tensor(x), "y": torch.as_tensor(y)})
    assert np.allclose(got["x"].numpy(), np.einsum("kn,nab->kab", w, x), atol=1e-13)
    assert np.allclose(got["y"].numpy(), w @ y, atol=1e-13)


def test_where_takes_whole_trees_or_rows() -> None:
    a, b = {"x": torch.ones(3, 2), "n": torch.arange(3)}, {"x": torch.zeros(3, 2), "n": -torch.arange(3)}
    assert tree.same(tree.where(torch.tensor(True), a, b), a) and tree.same(tree.where(torch.tensor(False), a, b), b)
    mixed = tree.where(torch.tensor([True, False, True]), a, b)
    assert mixed["x"].tolist() == [[1, 1], [0, 0], [1, 1]] and mixed["n"].tolist() == [0, -1, 2]


def test_nbytes_counts_every_leaf() -> None:
    t = {
        "f": torch.zeros(3, 2),  # 24
        "d": {"x": torch.zeros(2, dtype=torch.float64), "b": torch.zeros(5, dtype=torch.bool)},  # 16 + 5
        "h": torch.zeros(3, dtype=torch.bfloat16),  # 6
        "a": np.zeros((2, 2), np.int16),  # 8
        "bits": BF16(np.zeros(7, np.uint16)),  # 14
        "n": 3,  # 8
    }
    assert tree.nbytes(t) == 24 + 21 + 6 + 8 + 14 + 8
    assert tree.nbytes({}) == 0
    assert tree.nbytes({"view": torch.zeros(1).expand(10)}) == 40  # what would be sent, not what is held


def test_finite_looks_at_every_floating_leaf() -> None:
    assert tree.finite({"x": torch.ones(2), "n": torch.tensor([1]), "b": torch.tensor(True)})
    for bad in (math.nan, math.inf, -math.inf):
        assert not tree.finite({"x": torch.ones(2), "deep": {"y": torch.tensor([0.0, bad])}})


def test_detach_forgets_history() -> None:
    p = torch.ones(2, requires_grad=True)
    assert not tree.detach({"a": {"b": p * 2}})["a"]["b"].requires_grad


def test_same_is_about_structure_dtype_shape_and_values() -> None:
    a = {"x": torch.tensor([1.0, 2.0]), "n": {"i": torch.tensor(3)}}
    assert tree.same(a, {"n": {"i": torch.tensor(3)}, "x": torch.tensor([1.0, 2.0])})
    for other in (
        {"x": torch.tensor([1.0, 2.0])},
        {**a, "more": torch.zeros(1)},
        {**a, "x": a["x"].double()},
        {**a, "x": a["x"].reshape(1, 2)},
        {**a, "x": torch.tensor([1.0, math.nextafter(2.0, 3.0) + 1e-6])},
        {**a, "n": torch.tensor(3)},
        {**a, "x": {}},
    ):
        assert not tree.same(a, other) and not tree.same(other, a)


def test_same_compares_bits() -> None:
    nan = {"x": torch.tensor([math.nan, 1.0])}
    assert tree.same(nan, {"x": nan["x"].clone()})
    assert not tree.same({"x": torch.tensor([0.0])}, {"x": torch.tensor([-0.0])})


DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 2)], ids=str)
def test_to_numpy_and_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    n = math.prod(shape)
    x = torch.arange(1, n + 1).to(dtype).reshape(shape)
    t = {"a": {"": x, "b.c/d": x.clone()}, "empty": {}}
    there = tree.to_numpy(t)
    assert isinstance(there["a"][""], BF16 if dtype == torch.bfloat16 else np.ndarray)
    back = tree.from_numpy(there)
    assert list(back) == ["a", "empty"] and list(back["a"]) == ["", "b.c/d"]
    assert tree.same(back, t)


def test_bfloat16_travels_as_its_bits() -> None:
    x = torch.tensor([1.0, -2.5, 3e38, math.inf], dtype=torch.bfloat16)
    bits = tree.to_numpy({"x": x})["x"].bits
    assert bits.dtype == np.uint16 and bits.tolist() == [0x3F80, 0xC020, 0x7F62, 0x7F80]
    assert tree.to_numpy({"x": BF16(bits)})["x"].bits is bits
    assert tree.same(tree.from_numpy({"x": BF16(bits)}), {"x": x})


def test_odd_arrays_become_tensors() -> None:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    read_only = a.copy()
    read_only.flags.writeable = False
    got = tree.from_numpy({"turned": a.T, "backwards": a[::-1], "read": read_only, "n": 3, "s": np.float32(0.5)})
    assert got["turned"].tolist() == a.T.tolist() and got["backwards"].tolist() == a[::-1].tolist()
    assert got["read"].tolist() == a.tolist()
    assert got["n"].tolist() == 3 and got["s"].dtype == torch.float32
    there = tree.to_numpy({"turned": torch.as_tensor(a).T, "history": torch.ones(2, requires_grad=True) * 2, "n": 3})
    assert there["turned"].tolist() == a.T.tolist() and there["turned"].flags.c_contiguous
    assert there["history"].tolist() == [2.0, 2.0] and there["n"] == 3
