"""Shapes of parts: what they check, their zeros, what they choose and how they are printed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rayfed import tree
from rayfed.errors import RunFailed
from rayfed.wire import ANY, CLASSES, PARAMS, SCALAR, Part, Shape, check_parts, params_of, stack, tensor
from tests import toy

C, K = 4, 5  # classes of the toy task; clients of a cohort


@pytest.fixture(scope="module")
def task() -> Any:
    return toy.make_fed(toy.config()).task


def cohort(params: tree.Tree) -> tree.Tree:
    return tree.map(lambda x: x[None].expand(K, *x.shape), params)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (PARAMS, "params"), (params_of("head"), "params of head"), (params_of("lora_A", "head"), "params of lora_A, head"),
        (SCALAR, "scalar"), (CLASSES, "(C,)"), (tensor("C", dtype="int64"), "(C,) int64"), (tensor(dtype="int64"), "() int64"),
        (tensor("F", 3), "(F, 3)"), (stack("K", PARAMS), "K x params"), (stack("K", stack("N", SCALAR)), "K x N x scalar"),
        (ANY, "any"),
    ],
)  # fmt: skip
def test_shapes_are_printed_as_they_are_read(shape: Shape, said: str) -> None:
    assert str(shape) == said


def test_shapes_are_values() -> None:
    assert tensor("N", dtype=torch.int64) == tensor("N", dtype="int64") != tensor("N")
    assert params_of("head") == params_of("head") != PARAMS and hash(stack("K", PARAMS)) == hash(stack("K", PARAMS))


def test_parameters(task: Any) -> None:
    params = cohort(task.params_like)
    assert PARAMS.check(params, task) is None and PARAMS.check(task.params_like, task, lead=0) is None
    wrong = "its names or shapes are not the model's"
    for other in ({**params, "more": torch.zeros(K)}, {**params, "head.bias": torch.zeros(K, 3)}, torch.zeros(K), {}):
        assert PARAMS.check(other, task) == wrong
    head = {n: p for n, p in params.items() if n.startswith("head.")}
    assert params_of("head").check(head, task) is None and params_of("head").check(params, task) == wrong
    assert params_of("weight").check({n: p for n, p in params.items() if n.endswith("weight")}, task) is None


def test_choosing_parameters(task: Any) -> None:
    params = task.initial
    assert PARAMS.select(params, task) is params
    chosen = params_of("head").select(params, task)
    assert set(chosen) == set(task.head) and all(chosen[n] is params[n] for n in chosen)
    assert set(params_of("bias", "head").select(params, task)) == {n for n in params if "bias" in n or "head" in n}
    assert params_of("nobody").select(params, task) == {}


@pytest.mark.parametrize(
    ("shape", "part", "problem"),
    [
        (SCALAR, torch.zeros(K), None),
        (SCALAR, torch.zeros(K, 1), "has 1 axes"),
        (SCALAR, {"x": torch.zeros(K)}, "is a tree"),
        (CLASSES, torch.zeros(K, C), None),
        (CLASSES, torch.zeros(K, 9), "has shape (9,)"),
        (tensor(3), torch.zeros(K, 9), "has shape (9,)"),
        (tensor("C", "d"), torch.zeros(K, C, 7), None),
        (tensor("C", "d"), torch.zeros(K, C), "has 1 axes"),
        (tensor("C", dtype="int64"), torch.zeros(K, C, dtype=torch.int64), None),
        (tensor("C", dtype="int64"), torch.zeros(K, C), "is torch.float32"),
        (stack("J", SCALAR), torch.zeros(K, 2), None),
        (stack("J", PARAMS), {"w": torch.zeros(K, 2)}, "its names or shapes are not the model's"),
        (ANY, {"what": {"ever": torch.zeros(1)}}, None),
    ],
)
def test_what_is_wrong_with_a_part(task: Any, shape: Shape, part: tree.Tree, problem: str | None) -> None:
    assert shape.check(part, task) == problem


def test_stacks_have_one_more_axis(task: Any) -> None:
    models = tree.map(lambda x: x[None, None].expand(K, 3, *x.shape), task.params_like)
    assert stack("J", PARAMS).check(models, task) is None and PARAMS.check(models, task)
    assert stack("J", PARAMS).check(cohort(task.params_like), task, lead=0) is None


def test_zeros(task: Any) -> None:
    assert tree.same(PARAMS.zeros(task), tree.zeros(task.params_like))
    assert set(params_of("head").zeros(task)) == set(task.head)
    for shape, size in ((SCALAR, ()), (CLASSES, (C,)), (tensor("C", 2, dtype="int64"), (C, 2))):
        zero = shape.zeros(task)
        assert zero.shape == size and zero.dtype == task.dtype and not zero.any()  # sums are of the task's type
    for shape in (ANY, stack("K", PARAMS), tensor("F")):
        with pytest.raises(RunFailed, match="has no zero"):
            shape.zeros(task)


def test_a_part_needs_a_shape() -> None:
    with pytest.raises(TypeError, match=r"Part: 'params' found; a shape of rayfed\.wire expected, such as PARAMS"):
        Part("params")  # type: ignore[arg-type]


def test_parts_are_checked_by_name(task: Any) -> None:
    declared = {"a": Part(ANY), "b": Part(CLASSES)}
    check_parts(declared, {"a": torch.zeros(1)}, task, "here")  # not every visit sends all
    with pytest.raises(TypeError, match=r"^here: parts \['a'\] against the wire's \['a', 'b'\]$"):
        check_parts(declared, {"a": torch.zeros(1)}, task, "here", complete=True)
    with pytest.raises(TypeError, match=r"^here: parts \['c'\] against"):
        check_parts(declared, {"c": torch.zeros(1)}, task, "here")
    with pytest.raises(TypeError, match=r"^here: part 'b' is declared '\(C,\)' but has shape \(9,\)$"):
        check_parts(declared, {"b": torch.zeros(K, 9)}, task, "here")
