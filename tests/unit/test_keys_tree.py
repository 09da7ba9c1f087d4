"""Keys (pinned streams, independence, vmap) and trees (arithmetic, NumPy and back)."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from rayfed import keys, tree
from rayfed.tree import BF16

K = keys.key(0, 0, -1, "init")

# A change of any of these numbers changes every run of every seed: it belongs into the changelog.
PINNED = {
    (0, 0, -1, "init"): 8615587775157477981,
    (0, 0, 0, "init"): 8330636805672804738,
    (1, 1 << 20, 3, "order 0"): 893374014297855027,
    (1, (1 << 20) + 1, 3, "order 0"): 4055750396924987633,
    (7, 5, 2, ""): 523383973569995723,
}

GOLDEN, MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


def mix(x: int) -> int:
    """SplitMix64's finaliser in Python's integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def tensor_key(k: int = K) -> torch.Tensor:
    return torch.tensor(k, dtype=torch.int64)


@pytest.mark.parametrize("address", PINNED)
def test_keys_are_what_they_were(address: tuple[int, int, int, str]) -> None:
    assert keys.key(*address) == PINNED[address]


def test_streams_are_what_they_were() -> None:
    assert [int(keys.fold(tensor_key(), n)) for n in (0, 1, -1, 2**40)] == [
        3329876670890328025,
        -6805523632224508341,
        1086138068066194899,
        965334188353587626,
    ]
    got = keys.uniform(tensor_key(), (4,), torch.float64) * 2**24
    assert got.tolist() == [14294214.0, 6608573.0, 12855841.0, 13346283.0]
    assert keys.numpy(12345).integers(0, 1000, 6).tolist() == [57, 646, 544, 774, 961, 786]
    drawn = torch.randint(0, 1000, (6,), generator=keys.torch_generator(12345))
    assert drawn.tolist() == [690, 381, 685, 553, 284, 737]


def test_every_piece_of_an_address_counts() -> None:
    made = {
        keys.key(s, d, c, p)
        for s in range(4)
        for d in (0, 1, 1 << 20, (1 << 20) + 1)
        for c in range(-1, 20)
        for p in ("order 0", "order 1", "init")
    }
    assert len(made) == 4 * 4 * 21 * 3
    assert all(0 <= k < 1 << 63 for k in made)
    # digits must not run over from one field into the next
    assert len({keys.key(1, 11, 1, "x"), keys.key(11, 1, 1, "x"), keys.key(1, 1, 11, "x")}) == 3


def test_fold_and_uniform_follow_the_formula() -> None:
    for n in (0, 1, 7, -3, 1 << 62, (1 << 63) - 1):
        want = signed(mix((mix((K + GOLDEN) & MASK) + n * GOLDEN) & MASK))
        assert int(keys.fold(tensor_key(), n)) == want
        assert int(keys.fold(tensor_key(), torch.tensor(n))) == want
    want = [(mix((mix(K) + i * GOLDEN) & MASK) >> 40) / 2**24 for i in range(1, 7)]
    assert keys.uniform(tensor_key(), (2, 3), torch.float64).reshape(-1).tolist() == want
    assert keys.uniform(tensor_key(), (2, 3)).reshape(-1).tolist() == want  # 24 bits fit into a float32


def test_normal_is_box_muller() -> None:
    u = keys.uniform(tensor_key(), (2, 50), torch.float64).numpy()
    want = np.sqrt(-2 * np.log1p(-u[0])) * np.cos(2 * math.pi * u[1])
    assert np.abs(keys.normal(tensor_key(), (50,), torch.float64).numpy() - want).max() < 1e-14


def test_under_vmap_as_in_a_loop() -> None:
    ks = torch.tensor([keys.key(3, 1, c, "noise") for c in range(5)])

    def draw(k: torch.Tensor) -> dict[str, torch.Tensor]:
        inner = keys.fold(k, 4)
        return {"f": inner, "u": keys.uniform(inner, (3, 2), torch.float64), "n": keys.normal(k, (7,), torch.float64)}

    batched = torch.vmap(draw)(ks)
    for i, k in enumerate(ks):
        alone = draw(k)
        assert torch.equal(batched["f"][i], alone["f"]) and torch.equal(batched["u"][i], alone["u"])
        assert (batched["n"][i] - alone["n"]).abs().max() < 1e-13
    numbers = torch.arange(5)
    assert torch.equal(
        torch.vmap(keys.fold)(ks, numbers), torch.stack([keys.fold(k, int(n)) for n, k in enumerate(ks)])
    )


def test_shape_and_dtype() -> None:
    assert keys.uniform(tensor_key(), ()).shape == () and keys.normal(tensor_key(), (0, 3)).shape == (0, 3)
    assert keys.uniform(tensor_key(), (2,)).dtype == torch.float32
    assert keys.normal(tensor_key(), (2,), torch.float64).dtype == torch.float64


def test_moments() -> None:
    n = 200_000
    u = keys.uniform(tensor_key(), (n,), torch.float64)
    assert float(u.min()) >= 0 and float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 5 / math.sqrt(12 * n)
    assert abs(float(u.var()) - 1 / 12) < 2e-3
    z = keys.normal(tensor_key(keys.key(5, 0, 0, "z")), (n,), torch.float64)
    assert abs(float(z.mean())) < 5 / math.sqrt(n) and abs(float(z.var()) - 1) < 0.02
    assert abs(float((z**3).mean())) < 0.05 and abs(float((z**4).mean()) - 3) < 0.15
    counts = torch.histc(u, 16, 0, 1)
    assert float(((counts - n / 16) ** 2 / (n / 16)).sum()) < 45  # chi squared, 15 degrees: far tail


def test_keys_of_neighbours_are_uncorrelated() -> None:
    ks = [tensor_key(keys.key(1, 1 << 20, c, "noise")) for c in range(3)]
    ks += [keys.fold(ks[0], 0), keys.fold(ks[0], 1), keys.fold(ks[1], 0)]
    z = torch.stack([keys.normal(k, (20_000,), torch.float64) for k in ks])
    assert max(abs(float(torch.corrcoef(z)[i, j])) for i, j in combinations(range(len(ks)), 2)) < 0.04


def test_generators_repeat_and_leave_the_global_ones_alone() -> None:
    before = torch.get_rng_state()
    assert keys.numpy(K).random(5).tolist() == keys.numpy(K).random(5).tolist()
    a, b = (torch.randn(5, generator=keys.torch_generator(K)) for _ in range(2))
    assert torch.equal(a, b) and not torch.equal(a, torch.randn(5, generator=keys.torch_generator(K + 1)))
    assert torch.equal(torch.get_rng_state(), before)
    largest = (1 << 63) - 1
    assert keys.numpy(largest).random() != keys.numpy(largest - 1).random()
    torch.rand(1, generator=keys.torch_generator(largest))


# -- trees -------------------------------------------------------------------------------------------------------------


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
