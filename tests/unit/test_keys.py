"""Keys: pinned numbers, their formula, under vmap, and that neighbours are uncorrelated."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch

from rayfed import keys

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


@pytest.mark.parametrize(
    ("weights", "n", "by_hand"),
    [([1, 1], 4, [2, 2]), ([3, 1], 10, [8, 2]), ([5, 3, 2], 10, [5, 3, 2]), ([1, 1, 1], 4, [2, 1, 1]), ([2, 0], 3, [3, 0])],
)  # fmt: skip
def test_sharing_out_by_largest_remainders(weights: list[int], n: int, by_hand: list[int]) -> None:
    got = keys.proportional(np.array(weights, float), n, np.random.default_rng(0))
    assert np.bincount(got, minlength=len(weights)).tolist() == by_hand


def test_bits_are_those_that_uniform_numbers_are_made_of() -> None:
    k = torch.tensor(K)
    bits = keys.bits(k, (1000,))
    assert [int(x) & MASK for x in bits[:5]] == [mix((mix(K) + i * GOLDEN) & MASK) for i in range(1, 6)]
    top = ((bits >> 40) & ((1 << 24) - 1)).double() / (1 << 24)
    assert torch.equal(top, keys.uniform(k, (1000,), torch.float64))
    share = torch.stack([(bits >> i) & 1 for i in range(64)]).double().mean(1)
    assert float((share - 0.5).abs().max()) < 0.08
