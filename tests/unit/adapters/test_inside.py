"""Adapters that PEFT has no format of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from rayfed import tree
from rayfed.errors import ConfigError
from tests.unit.adapters.kinds import IMAGE, refused, resident, run


def test_deep_prompts_take_the_place_of_those_before(places: dict[str, Path]) -> None:
    """Held against the same blocks called one after the other by hand."""
    deep, shallow = (resident(places, "vit", IMAGE[k], "mean") for k in ("vpt", "shallow"))
    params, x = deep.task.fresh_params(1), deep.data["x"][:3]
    net = deep.task._module.network
    names = [n for n in params if n.endswith("vpt.tokens")]
    assert len(names) == 2 and all(params[n].shape == (2, 16) for n in names)
    for how, task in (("deep", deep.task), ("shallow", shallow.task)):
        given = {n: params[n] for n in task.params_like}
        with torch.no_grad():
            plain = resident(places, "vit", {"kind": "head"}, "mean").task._module
            h = plain.network.embeddings(plain.pixels(x))
            for i, block in enumerate(plain.network.layers):
                if i == 0 or how == "deep":
                    h = torch.cat([h[:, :1], params[names[i]].expand(3, -1, -1), h[:, 1 if i == 0 else 3 :]], 1)
                h = block(h)
            h = plain.network.layernorm(torch.cat([h[:, :1], h[:, 3:]], 1)).mean(1)
            want = torch.nn.functional.linear(h, params["head.weight"], params["head.bias"])
        torch.testing.assert_close(task.apply(given, x), want, rtol=1e-5, atol=1e-6)
    assert len(net.layers) == 2


@pytest.mark.parametrize("adapter", ["vpt", "bottleneck", "ssf"])
def test_an_adapter_without_a_peft_format_is_saved_with_its_settings(
    places: dict[str, Path], tmp_path: Path, adapter: str
) -> None:
    done = run(places, tmp_path, "vit", IMAGE[adapter])
    where = done.folder.path / "model" / "adapter"
    about = json.loads((where / "adapter.json").read_text())
    assert about["base"] == str(places["vit"]) and IMAGE[adapter].items() <= about.items()
    shutil.copytree(where, tmp_path / "copy")
    task = resident(
        places, "vit", {k: v for k, v in about.items() if k != "base"}, init={"from": str(tmp_path / "copy")}
    ).task
    assert tree.same(task.init_params(0), done.state["model"])
    with pytest.raises(ConfigError, match="of another model or adapter"):
        resident(places, "vit", {"kind": "bias"}, init={"from": str(where)}).task.init_params(0)


def test_another_number_of_prompts_in_each_block(places: dict[str, Path]) -> None:
    """Equal numbers are VPT-deep to the bit, none anywhere is the frozen network, and any numbers are told by the tree's shapes."""
    even, uneven = (resident(places, "vit", {"kind": "vpt", "tokens": n}, "mean").task for n in (2, [1, 0]))
    names = [n for n in uneven.params_like if n.endswith("vpt.tokens")]
    assert [tuple(uneven.params_like[n].shape) for n in names] == [(1, 16), (0, 16)]
    x = torch.rand(3, *even.input_shape, generator=torch.Generator().manual_seed(0))
    model = even.initial
    assert torch.equal(uneven.apply(model, x), even.apply(model, x))
    for counts in ((0, 0), (2, 1), (1, 2)):
        moved = {**model, **{n: model[n][:k] for n, k in zip(names, counts, strict=True)}}
        assert torch.equal(even.apply(moved, x), uneven.apply(moved, x))
    without = {**model, **{n: model[n][:0] for n in names}}
    plain = resident(places, "vit", {"kind": "head"}, "mean").task
    assert torch.equal(even.apply(without, x), plain.apply({n: p for n, p in model.items() if n not in names}, x))
    said = refused(places, "vit", {"kind": "vpt", "tokens": [1, 1, 1]})
    assert "adapter.tokens: 3 numbers found, allowed: one for each of the 2 blocks of ViTForImageClassification" in said
    assert "allowed: a whole number >= 0 for each block, not all of them 0" in refused(
        places, "vit", {"kind": "vpt", "tokens": [0, 0]}
    )
