"""Model folders with anything wrong in them: each model is built, or refused in sentences before anything starts; never a traceback."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rayfed.errors import ConfigError
from rayfed.launch.federations import Federations
from rayfed.launch.preflight import load_request
from rayfed.storage.cache import CACHE
from tests.fresh import many
from tests.tiny import make_places, make_vit

QUICK = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
LONG = many(QUICK, 1000)
Draw = Callable[..., Any]

ODD: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [
            None,
            True,
            0,
            -1,
            1,
            2,
            3,
            7,
            0.5,
            10**5,
            2**31,
            2**40,
            10**400,
            1e308,
            float("nan"),
            "",
            "x",
            "gelu",
            [],
            [1],
            {},
        ]
    ),
    st.integers(-3, 40),
    st.text(max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.lists(st.integers(), max_size=3),
)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Model folders `bert`, `gpt2` and `vit`, texts in `data`, and what a small network and a LoRA ended as."""
    import peft
    from transformers import AutoModel

    with pytest.MonkeyPatch.context() as m:
        m.setenv(CACHE, str(tmp_path_factory.mktemp("cache")))
        made = make_places(tmp_path_factory.mktemp("pretrained"), layers=1)
        root = made["data"].parent
        make_vit(root / "vit", layers=1)
        adapted = peft.get_peft_model(
            AutoModel.from_pretrained(made["bert"]),
            peft.LoraConfig(r=2, lora_alpha=4, target_modules=["query", "value"], task_type="SEQ_CLS"),
        )
        adapted.save_pretrained(root / "lora")
        linear = {"head.weight": torch.zeros(10, 64), "head.bias": torch.zeros(10)}
        (root / "own").mkdir()
        save_file(linear, root / "own" / "model.safetensors")
        yield {**made, **{n: root / n for n in ("vit", "lora", "own")}}


def harm_json(draw: Draw, file: Path) -> None:
    """Change some values of a JSON file, or its bytes."""
    how = draw(st.sampled_from(["value", "value", "value", "key", "bytes", "other", "deep", "gone"]))
    content = json.loads(file.read_text(encoding="utf-8"))
    if how == "gone":
        file.unlink()
    elif how == "bytes":
        text = file.read_bytes()
        at = draw(st.integers(0, len(text)))
        file.write_bytes(text[:at] + draw(st.binary(max_size=3)) + text[at + draw(st.integers(0, 3)) :])
    elif how in ("other", "deep"):
        file.write_text("[" * 100_000 if how == "deep" else json.dumps(draw(ODD)), encoding="utf-8")
    else:
        for key in draw(st.lists(st.sampled_from(sorted(content)), min_size=1, max_size=3)):
            if how == "key":
                content.pop(key, None)
            else:
                content[key] = draw(ODD)
        file.write_text(json.dumps(content), encoding="utf-8")


def harm_weights(draw: Draw, file: Path) -> None:
    """Change bytes of a safetensors file, its header, or its tensors."""
    how = draw(st.sampled_from(["bytes", "cut", "size", "header", "tensors", "tensors", "gone"]))
    content = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    elif how == "size":
        file.write_bytes(draw(st.sampled_from([0, 1, 2**20, 2**62, 2**64 - 1])).to_bytes(8, "little") + content[8:])
    elif how == "cut":
        file.write_bytes(content[: draw(st.integers(0, max(len(content) - 1, 0)))])
    elif how == "bytes":
        for place in draw(st.lists(st.integers(0, max(min(len(content), 3000) - 1, 0)), min_size=1, max_size=4)):
            content[place] = draw(st.integers(0, 255))
        file.write_bytes(content)
    elif how == "header":
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        name = draw(st.sampled_from(sorted(n for n in header if n != "__metadata__")))
        header[name][draw(st.sampled_from(["dtype", "shape", "data_offsets"]))] = draw(
            ODD | st.sampled_from(["F64", "BF16", "I64", [2**40, 2**40], [0, 2**50]])
        )
        text = json.dumps(header).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    else:
        tensors = load_file(file)
        name = draw(st.sampled_from(sorted(tensors)))
        x = tensors.pop(name)
        changed = draw(
            st.sampled_from(
                [
                    None,
                    x.double(),
                    x.bfloat16(),
                    x.long(),
                    x.bool(),
                    x[:1],
                    x[None],
                    x.flatten(),
                    x * float("nan"),
                    x[:0],
                ]
            )
        )
        if changed is not None:
            tensors[name] = changed.contiguous()
        if draw(st.booleans()):
            tensors[draw(st.sampled_from(["x", "head/x", "fc/weight", "~2", "encoder.layer.7.x"]))] = torch.zeros(2)
        save_file(tensors, file, {"format": "pt"})


def check_folder(draw: Draw, places: dict[str, Path]) -> None:
    kind = draw(st.sampled_from(["bert", "bert", "gpt2", "vit", "lora", "own"]))
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where) / kind
        shutil.copytree(places[kind], folder)
        for _ in range(draw(st.integers(1, 2))):
            files = sorted(f for f in folder.iterdir() if f.suffix in (".json", ".safetensors"))
            file = draw(st.sampled_from(files or [folder]))
            with contextlib.suppress(Exception):  # what was harmed before
                (harm_json if file.suffix == ".json" else harm_weights)(draw, file)
        asked: dict[str, Any] = {
            "task": {"data": "digits", "model": f"hf:{folder}"},
            "federation": {"clients": 2},
            "resources": {"executor": "loop"},
            "method": "fedavg",
        }
        if kind in ("bert", "gpt2", "lora"):
            asked["task"]["data"] = {"name": f"parquet:{places['data']}", "length": 8}
            asked["adapter"] = {"kind": "lora", "rank": 2}
        if kind == "lora":
            asked["task"]["model"] = f"hf:{places['bert']}"
            asked["adapter"] |= {"targets": ["query", "value"]}
            asked["init"] = {"from": str(folder)}
        if kind == "own":
            asked["task"]["model"] = "linear"
            asked["init"] = {"from": str(folder)}
        try:
            Federations().checked(load_request(asked))  # type: ignore[arg-type]
        except ConfigError as e:
            event("refused")
            assert e.problems and all(p.startswith(("task.", "init.from", "adapter.")) for p in e.problems), e.problems
        else:
            event("built")


@QUICK
@given(data=st.data())
def test_folders(data: Any, places: dict[str, Path]) -> None:
    check_folder(data.draw, places)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@LONG
@given(data=st.data())
def test_many_folders(data: Any, places: dict[str, Path]) -> None:
    check_folder(data.draw, places)
