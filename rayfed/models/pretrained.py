"""`hf:NAME_OR_DIR`: pretrained transformers through the Auto classes, whole or with an adapter.

The frozen base travels as arrays, so that actors of one node share one copy of it; a module is built around these arrays
without copying them. What a client trains is a tree like any model's.
"""

from __future__ import annotations

import json
import os
import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed.errors import ConfigError, nearest

if TYPE_CHECKING:
    from rayfed.config import Config, Named
    from rayfed.tree import Tree

OPTIONS: dict[str, Any] = {"attention": "eager", "head": "auto"}
CHOICES = {"attention": ("eager", "sdpa"), "head": ("auto", "mean")}
INDEX = "model.safetensors.index.json"


# -- before anything starts, without torch -----------------------------------------------------------------------------


def folder(name: str) -> Path:
    """The model's folder: a path, or a name that the hub's cache on this machine knows. ConfigError if it is neither."""
    where = name.removeprefix("hf:")
    path = Path(where).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    offline = bool(os.environ.get("HF_HUB_OFFLINE"))
    for local in (True,) if offline else (True, False):
        try:
            return Path(
                snapshot_download(
                    where, local_files_only=local, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]
                )
            )
        except (LocalEntryNotFoundError, HFValidationError):
            continue
        except Exception as e:  # no network, no such model, no permission: the hub says which
            raise ConfigError(f"task.model: {name!r} is no folder here, and the hub does not give it: {e}") from None
    raise ConfigError(f"task.model: {name!r} is no folder here, and not in the hub's cache on this machine")


def check(spec: Named) -> list[str]:
    """Options, and that the folder is a complete model."""
    problems = []
    for n, v in spec.options.items():
        if n not in OPTIONS:
            problems.append(f"task.model.{n}: unknown option of hf:{nearest(n, OPTIONS)}; known: {', '.join(OPTIONS)}")
        elif v not in CHOICES[n]:
            problems.append(
                f"task.model.{n}: {v!r} found{nearest(str(v), CHOICES[n])}, allowed: {', '.join(CHOICES[n])}"
            )
    try:
        where = folder(spec.name)
        architecture(where)
        shapes(where)
    except ConfigError as e:
        problems += e.problems
    return problems


def architecture(where: Path) -> dict[str, Any]:
    """config.json. ConfigError if it is missing or no model's."""
    file = where / "config.json"
    if not file.is_file():
        raise ConfigError(f"task.model: {where} holds no config.json; it is no model's folder")
    try:
        found = json.loads(file.read_text())
    except ValueError as e:
        raise ConfigError(f"task.model: {file} is not readable: {e}") from None
    if "model_type" not in found:
        raise ConfigError(f"task.model: {file} names no model_type")
    return dict(found)


def weights(where: Path) -> list[Path]:
    """The safetensors files of a folder. ConfigError naming what is missing."""
    if (where / INDEX).is_file():
        names = sorted(set(json.loads((where / INDEX).read_text())["weight_map"].values()))
        missing = [n for n in names if not (where / n).is_file()]
        if missing:
            raise ConfigError(f"task.model: {where} is incomplete: {', '.join(missing)} of {INDEX} missing")
        return [where / n for n in names]
    if not (where / "model.safetensors").is_file():
        others = ", ".join(p.name for p in where.glob("*.bin")) or "no weights"
        raise ConfigError(f"task.model: {where} holds no model.safetensors (found: {others})")
    return [where / "model.safetensors"]


def shapes(where: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor, from the files' headers alone. ConfigError for a file that is cut off."""
    found: dict[str, tuple[int, ...]] = {}
    for file in weights(where):
        with file.open("rb") as f:
            try:
                (size,) = struct.unpack("<Q", f.read(8))
                header = json.loads(f.read(size))
            except (struct.error, ValueError, MemoryError):
                raise ConfigError(f"task.model: {file} is no safetensors file") from None
        header.pop("__metadata__", None)
        end = max((t["data_offsets"][1] for t in header.values()), default=0)
        if file.stat().st_size < 8 + size + end:
            raise ConfigError(f"task.model: {file} is incomplete: {file.stat().st_size} bytes of {8 + size + end}")
        found |= {n: tuple(t["shape"]) for n, t in header.items()}
    return found


# -- the base, and a module around it ----------------------------------------------------------------------------------


def base(config: Config) -> dict[str, Any] | None:
    """The frozen base: `arrays` (NumPy, by the checkpoint's names) and `about` (its config.json); None for other models."""
    if not config.task.model.name.startswith("hf:"):
        return None
    from safetensors.torch import load_file

    from rayfed import tree

    out: dict[str, Any] = {}
    where = folder(config.task.model.name)
    for file in weights(where):
        out |= load_file(file)
    return {"arrays": tree.to_numpy(out), "about": architecture(where)}


def adapter_arrays(where: Path) -> Tree:
    """A PEFT adapter's tensors as NumPy arrays, by the names a trained tree has."""
    from safetensors.torch import load_file

    from rayfed import tree

    return tree.to_numpy({f"network.{_ours(n)}": x for n, x in load_file(where / "adapter_model.safetensors").items()})


def _ours(name: str) -> str:
    """PEFT leaves the adapter's name, `default`, and the wrapper of whole modules out of its files."""
    *above, last = name.split(".")
    if any(p in ("lora_A", "lora_B", "ia3_l") for p in above):
        return ".".join([*above, "default", last])
    if last == "ia3_l":
        return f"{name}.default"
    return ".".join([*above, "modules_to_save.default", last])


def build(config: Config, classes: int, kind: str, base: dict[str, Any]) -> Any:
    """A module from inputs to logits around the base's arrays; its trainable parameters require gradients.

    kind: of the data, text | image. `redraw()` draws what is not pretrained anew from torch's global generator; `head_names`
    are the classifier's parameters.
    """
    import torch
    from transformers import CONFIG_MAPPING
    from transformers.utils import logging

    from rayfed import adapters, tree
    from rayfed.models.wrapped import Wrapped, looks_back

    spec = config.task.model
    o = {**OPTIONS, **spec.options}
    if base["about"]["model_type"] not in CONFIG_MAPPING:
        raise ConfigError(
            f"task.model: {spec.name} is a {base['about']['model_type']!r}, which transformers does not know"
        )
    about = CONFIG_MAPPING[base["about"]["model_type"]].from_dict({**base["about"], "num_labels": classes})
    auto = _auto(kind, o["head"])
    if type(about) not in auto._model_mapping:
        raise ConfigError(
            f"task.model: {spec.name} ({about.model_type}) has no {auto.__name__.removeprefix('Auto')} in transformers"
        )
    if getattr(about, "pad_token_id", None) is None:
        about.pad_token_id = 0  # padding is masked, whatever the token
    about._name_or_path = str(Path(spec.name.removeprefix("hf:")).expanduser())
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = auto._model_mapping[type(about)].from_pretrained(
                None,
                config=about,
                state_dict=tree.from_numpy(base["arrays"]),
                attn_implementation=o["attention"],
                dtype=torch.float32,
            )
            causal = looks_back(network, about.pad_token_id) if kind == "text" else False
            if causal is None:
                raise ConfigError(
                    f"task.model: {spec.name} ({about.model_type}) does not take a ready 4-D attention mask, which training "
                    "needs; models of the BERT, GPT-2 and Llama families do"
                )
            try:
                network = adapters.attach(network, config.adapter, o["head"] == "auto")
            except ValueError as e:  # PEFT's sentences: no default targets for this model, nothing matched
                raise ConfigError(f"adapter.targets: {e}") from None
    finally:
        logging.set_verbosity(before)
    return Wrapped(network, about, classes, kind, o["head"], config.adapter, causal)


def _auto(kind: str, head: str) -> Any:
    import transformers

    if head == "mean":
        return transformers.AutoModel
    return {
        "text": transformers.AutoModelForSequenceClassification,
        "image": transformers.AutoModelForImageClassification,
    }[kind]
