"""Trees: nested dicts with string keys and tensor leaves. States, payloads and parameters are all trees.

On the wire and on disk the leaves are NumPy arrays (`to_numpy`, `from_numpy`); bfloat16, which NumPy lacks, travels as
its bits in a `BF16`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Tree = Mapping[str, Any]  # names -> trees or leaves
Leaf = Any  # a tensor, or an array where it travels
T = TypeVar("T", bound="Tree | Tensor")  # a tree, or a leaf alone


class BF16(NamedTuple):
    """Hold the bits of a bfloat16 array."""

    bits: np.ndarray


def map(f: Callable[..., Any], *trees: Any) -> Any:
    """Return the tree of `f` of each leaf, of trees of one structure. ValueError where they differ."""
    first = trees[0]
    if not _nested(first):
        return f(*trees)
    if len(trees) == 1:
        return {k: map(f, v) if _nested(v) else f(v) for k, v in first.items()}
    for other in trees[1:]:
        if not _nested(other) or other.keys() != first.keys():
            raise ValueError(f"trees differ: {_keys(first)} against {_keys(other)}")
    return {k: map(f, *[t[k] for t in trees]) for k in first}


def _nested(tree: Tree | Leaf) -> bool:
    kind: Any = type(tree)
    return _mapping(kind)


@cache
def _mapping(kind: type) -> bool:
    """Return whether a type is a mapping; kept per type, since an abstract class is slow to say no."""
    return issubclass(kind, Mapping)


def _keys(tree: Tree | Leaf) -> str:
    return str(sorted(tree)) if _nested(tree) else type(tree).__name__


def leaves(tree: Tree | Leaf, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (path, leaf) in the order of the keys as written."""
    if _nested(tree):
        for k, v in tree.items():
            yield from leaves(v, (*prefix, k))
    else:
        yield prefix, tree


def values(tree: Tree | Leaf) -> list[Any]:
    """Return the leaves."""
    return [x for v in tree.values() for x in values(v)] if _nested(tree) else [tree]


def add(a: T, b: T, scale: Any = 1.0) -> T:
    """Return a + scale * b; `scale` a number or a 0-d tensor."""
    if isinstance(scale, float) and scale == 1.0:
        return map(lambda x, y: x + y, a, b)
    if isinstance(scale, torch.Tensor):
        return map(lambda x, y: torch.addcmul(x, y, scale.to(x.dtype)), a, b)  # one pass over memory
    return map(lambda x, y: torch.add(x, y, alpha=scale) if x.is_floating_point() else x + y * scale, a, b)


def sub(a: T, b: T) -> T:
    """Return a - b."""
    return map(lambda x, y: x - y, a, b)


def scale(a: T, s: Any) -> T:
    """Return s * a."""
    return map(lambda x: x * s, a)


def zeros(a: T) -> T:
    """Return zeros of the same shapes."""
    return map(lambda x: torch.zeros_like(x), a)


def where(mask: Tensor, a: T, b: T) -> T:
    """Return a where `mask` (0-d bool, or (k,) against leaves (k, ...)), else b."""
    return map(lambda x, y: torch.where(mask.reshape(mask.shape + (1,) * (x.dim() - mask.dim())), x, y), a, b)


def stack(trees: Sequence[T]) -> T:
    """Stack n trees into one with leaves (n, ...)."""
    return map(lambda *xs: torch.stack([torch.as_tensor(x) for x in xs]), *trees)


def pick(stacked: T, i: Any) -> T:
    """Return entry `i` (int or 0-d int64 tensor, also under vmap) of a stacked tree."""
    return map(lambda x: x[i], stacked)


def row(stacked: Tree | Leaf, i: int) -> Any:
    """Return entry `i` of a stacked tree of NumPy arrays, as stored: bfloat16 stays its bits."""
    return _walk(lambda x: BF16(x.bits[i]) if isinstance(x, BF16) else x[i], stacked)


def unstack(stacked: T) -> list[T]:
    """Split a tree with leaves (n, ...) into n trees."""
    n = next(iter(values(stacked))).shape[0]
    return [pick(stacked, i) for i in range(n)]


def combine(weights: Tensor, stacked: T) -> T:
    """Return weights (K, n) times leaves (n, ...), a tree with leaves (K, ...)."""
    return map(
        lambda x: (weights.to(x.dtype) @ x.reshape(x.shape[0], -1)).reshape(weights.shape[0], *x.shape[1:]), stacked
    )


def without(a: T, names: Collection[str]) -> T:
    """Return a tree without the entries of these names at its top; a leaf as it is."""
    if not names or not _nested(a):
        return a
    return {n: x for n, x in a.items() if n not in names}  # type: ignore[return-value, union-attr]


def flatten(tree: Tree | Leaf) -> Tensor:
    """Return all leaves as one vector, in the order of the keys."""
    return torch.cat([x.reshape(-1) for x in values(tree)])


def dot(a: Tree | Leaf, b: Tree | Leaf) -> Tensor:
    """Return the inner product over all leaves, 0-d."""
    return sum((x * y).sum() for x, y in zip(values(a), values(b), strict=True))


def norm(a: Tree | Leaf) -> Tensor:
    """Return the Euclidean norm over all leaves, 0-d."""
    return torch.sqrt(dot(a, a))


def detach(a: T) -> T:
    """Return the tree without gradient history."""
    return map(lambda x: x.detach(), a)


def nbytes(tree: Tree | Leaf) -> int:
    """Return the bytes of all leaves (tensors, arrays, numbers count 8)."""
    total = 0
    for x in values(tree):
        if isinstance(x, BF16):
            total += x.bits.nbytes
        elif hasattr(x, "element_size"):
            total += x.numel() * x.element_size()
        else:
            total += getattr(x, "nbytes", 8)
    return total


def finite(tree: Tree | Leaf) -> bool:
    """Return whether no floating leaf has a NaN or an infinity."""
    return all(bool(torch.isfinite(x).all()) for x in values(tree) if x.is_floating_point())


def to_numpy(tree: Tree | Leaf) -> Any:
    """Turn tensor leaves into NumPy arrays, without a copy where the memory allows (CPU, contiguous)."""

    def leaf(x: Any) -> Any:
        if not hasattr(x, "detach"):
            return x if isinstance(x, BF16) else np.asarray(x)
        x = x.detach().contiguous().cpu()
        return BF16(x.view(torch.uint16).numpy()) if x.dtype == torch.bfloat16 else x.numpy()

    return _walk(leaf, tree)


def from_numpy(tree: Tree | Leaf, device: str = "cpu") -> Any:
    """Turn NumPy leaves into tensors. Memory may be shared with a read-only store: results must never be written in place."""

    def leaf(x: Any) -> Any:
        if isinstance(x, BF16):
            return _shared(x.bits).view(torch.bfloat16).to(device)
        return _shared(x).to(device) if isinstance(x, np.ndarray) else torch.as_tensor(x).to(device)

    return _walk(leaf, tree)


def _shared(x: np.ndarray) -> Tensor:
    _warn_once()
    return torch.from_numpy(np.ascontiguousarray(x)) if x.ndim else torch.as_tensor(x[()])


@cache
def _warn_once() -> None:
    """Let torch give its warning of read-only arrays here, once a process: fetched payloads are read-only views of shared memory,
    and visits are pure, so nothing writes to them."""
    x = np.zeros(1)
    x.flags.writeable = False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        torch.from_numpy(x)


def _walk(f: Callable[[Any], Any], tree: Tree | Leaf) -> Any:
    if _nested(tree):
        return {k: _walk(f, v) for k, v in tree.items()}
    return f(tree)


def same(a: Tree | Leaf, b: Tree | Leaf) -> bool:
    """Return whether two trees have equal structure, dtypes and bits."""
    if isinstance(a, Mapping) or isinstance(b, Mapping):
        return (
            isinstance(a, Mapping)
            and isinstance(b, Mapping)
            and a.keys() == b.keys()
            and all(same(a[k], b[k]) for k in a)
        )
    return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(_bits(a), _bits(b)))


def _bits(x: Tensor) -> Tensor:
    return x.detach().contiguous().reshape(-1).view(torch.uint8)
