"""`hf:NAME_OR_DIR`: pretrained transformers through the Auto classes, whole or with an adapter.

The frozen base travels as arrays, so that actors of one node share one copy of it; a module is built around these arrays
without copying them. What a client trains is a tree like any model's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed.errors import ConfigError, nearest
from rayfed.models import folder

if TYPE_CHECKING:
    from rayfed.config.schema import Config, Named
    from rayfed.tree import Tree

OPTIONS: dict[str, Any] = {
    "attention": "eager",
    "head": "auto",
    "checkpointing": False,
    "device_map": None,
    "base": "float",
    "dropout": True,  # whether the network's own dropout acts in training steps
}
CHOICES = {
    "attention": ("eager", "sdpa"),
    "head": ("auto", "mean"),
    "checkpointing": (False, True),
    "dropout": (True, False),
    "base": ("float", "nf4"),
}
PIXELS = "preprocessor_config.json"
SPARE = 10**8  # numbers that a network may hold in addition to those of its files: heads, masks


# -- before anything starts, without torch -----------------------------------------------------------------------------


def check(spec: Named) -> list[str]:
    """Return what is wrong with the options and with the folder of the model."""
    problems = []
    for n, v in spec.options.items():
        if n not in OPTIONS:
            problems.append(f"task.model.{n}: unknown option of hf:{nearest(n, OPTIONS)}; known: {', '.join(OPTIONS)}")
        elif n == "device_map":
            problems += _map_problems(v)
        elif v not in CHOICES[n] or isinstance(v, bool) != isinstance(CHOICES[n][0], bool):
            allowed = [str(c).lower() if isinstance(c, bool) else str(c) for c in CHOICES[n]]
            problems.append(f"task.model.{n}: {v!r} found{nearest(str(v), allowed)}, allowed: {', '.join(allowed)}")
    try:
        where = folder.locate(spec.name)
        problems += _layers_missing(where, folder.architecture(where), folder.shapes(where))
    except ConfigError as e:
        problems += e.problems
    return problems


def _layers_missing(where: Path, about: dict[str, Any], known: Iterable[str]) -> list[str]:
    """Return a sentence where the files of a text model have fewer layers than config.json; `build` sees what else they lack."""
    layers = about.get("num_hidden_layers") or about.get("n_layer") or about.get("n_layers")
    there = 1 + max((int(p) for n in known for p in n.split(".") if p.isdecimal() and len(p) < 9), default=-1)
    shared = "num_hidden_groups" in about  # ALBERT's layers share their weights
    if not ("vocab_size" in about or "text_config" in about):  # an image model may count parts of its layers
        there = max(there, len(list(known)))
    if not isinstance(layers, int) or shared or there >= layers:
        return []
    return [f"task.model: {where} is incomplete: config.json has {layers} layers, its safetensors {there}"]


def size_problems(config: Config, classes: int, kind: str) -> list[str]:
    """Return a sentence where config.json describes a network that the weights next to it cannot be of; loads torch.

    It is built without memory, and compared before anything is allocated. classes, kind: as in `build`.
    """
    import torch

    spec = config.task.model
    where = folder.locate(spec.name)
    auto = _auto(kind, "mean" if folder.is_pair(spec.name) else {**OPTIONS, **spec.options}["head"])
    about = _about(spec.name, folder.architecture(where), classes, auto)
    with _quiet(), torch.device("meta"):
        network = auto._model_mapping[type(about)]._from_config(about)
    asked = sum(x.numel() for x in (*network.parameters(), *network.buffers()))
    held = sum(math.prod(s) for s in folder.shapes(where).values())
    if asked <= 2 * held + SPARE:
        return []
    return [
        f"task.model: {where / 'config.json'} describes a network of {asked:,} numbers ({asked * 4 / 1e9:,.1f} GB), the safetensors "
        f"there hold {held:,}; they do not belong together"
    ]


def _map_problems(v: Any) -> list[str]:
    if v in (None, "auto") or (
        isinstance(v, dict)
        and v
        and all(isinstance(n, str) and isinstance(d, int | str) and not isinstance(d, bool) for n, d in v.items())
    ):
        return []
    return [f"task.model.device_map: {v!r} found, allowed: auto, or a mapping of layers to devices, e.g. {{'': cpu}}"]


def check_config(config: Config) -> list[str]:
    """Return what in the model's options does not go with the rest of the config."""
    from rayfed import adapters

    options = config.task.model.options
    kept = (*adapters.IN_PEFT, *adapters.INSIDE)
    if options.get("base") == "nf4" and config.adapter.kind not in kept:
        return [
            f"task.model.base: nf4 found, of adapter.kind: {config.adapter.kind} whole networks are kept; allowed: float, or one of "
            f"{', '.join(kept)}"
        ]
    if options.get("base") == "nf4" and options.get("device_map") is not None:
        return [f"task.model.base: nf4 found, allowed with task.model.device_map: {options['device_map']}: float"]
    if options.get("base") == "nf4" and config.task.split is not None:
        return ["task.model.base: nf4 found, allowed with task.split: float"]
    if config.adapter.kind == "prefix" and config.task.model.options.get("checkpointing"):
        # A layer appends to the past keys and values: computed again, it would append twice.
        return ["task.model.checkpointing: true found, allowed with adapter.kind: prefix: false"]
    if config.task.model.options.get("device_map") is None or config.resources.executor in ("loop", "debug"):
        return []
    return [
        f"resources.executor: {config.resources.executor} found, task.model.device_map spreads one model over devices, on which "
        "clients take turns; allowed: loop, debug"
    ]


# -- the base, and a module around it ----------------------------------------------------------------------------------


def base(config: Config) -> dict[str, Any] | None:
    """Return the frozen base: `arrays` (NumPy, by the checkpoint's names) and `about` (its config.json); None for other models.

    Under `task.dtype: bf16` the arrays are bfloat16 already, so that they are half as many bytes wherever they are kept.
    """
    if not config.task.model.name.startswith("hf:"):
        return None
    from safetensors.torch import load_file

    from rayfed import tree

    out: dict[str, Any] = {}
    where = folder.locate(config.task.model.name)
    for file in folder.weights(where):
        out |= {n: x.to(_dtype(config)) if x.is_floating_point() else x for n, x in load_file(file).items()}
    found: dict[str, Any] = {"arrays": tree.to_numpy(out), "about": folder.architecture(where)}
    if (where / PIXELS).is_file():
        found["images"] = folder.read_object(where / PIXELS, "task.model")
    if config.adapter.kind == "prompt" and config.adapter.text is not None:
        found["words"] = _words(where, config.adapter.text, config.adapter.tokens)
    if config.adapter.kind == "prompts" and config.adapter.init is not None:
        found["words"] = _words(where, config.adapter.init, config.adapter.text, "init", add_special_tokens=False)
    return found


def _words(where: Path, text: str, tokens: int, setting: str = "text", **more: Any) -> list[int]:
    """Return a prompt's text as token ids, repeated or cut to so many, as PEFT does. ConfigError if it has none."""
    ids = [int(i) for i in folder.tokenizer(where)(text, **more)["input_ids"]]
    if not ids:
        raise ConfigError(f"adapter.{setting}: {text!r} has no tokens")
    return (ids * -(-tokens // len(ids)))[:tokens]


def _dtype(config: Config) -> Any:
    """Return the base's type: bfloat16 where that is asked for and something of it is frozen."""
    import torch

    return torch.bfloat16 if config.task.dtype == "bf16" and has_frozen_base(config) else torch.float32


def has_frozen_base(config: Config) -> bool:
    """Return whether the model is a pretrained one of which something is not trained."""
    return config.task.model.name.startswith("hf:") and config.adapter.kind not in ("none", "full")


def adapter_arrays(where: Path) -> Tree:
    """Return the tensors of a PEFT adapter in a folder as NumPy arrays, by the names that a trained tree has.

    With them those of head.safetensors, the classifier under `head: mean`; either may be missing.
    """
    from safetensors.torch import load_file

    from rayfed import tree
    from rayfed.storage import tree_files

    file, made = where / "adapter_model.safetensors", {}
    if file.is_file():
        made = tree.to_numpy({f"network.{_ours(n)}": x for n, x in load_file(file).items()})
    return {**made, **(tree_files.load_tree(where, "head") if (where / "head.safetensors").is_file() else {})}


def _ours(name: str) -> str:
    """Return a trained tree's name of a tensor in PEFT's files, which leave out `default` and the wrapper of whole modules."""
    if name == "prompt_embeddings":
        return "prompt_encoder.default.embedding.weight"
    *above, last = name.split(".")
    if any(p in ("lora_A", "lora_B", "ia3_l") for p in above):
        return ".".join([*above, "default", last])
    if last == "ia3_l":
        return f"{name}.default"
    return ".".join([*above, "modules_to_save.default", last])


def build(config: Config, classes: int, kind: str, base: dict[str, Any], input_shape: tuple[int, ...] = ()) -> Any:
    """Return a module from inputs to logits around the base's arrays; its trainable parameters require gradients.

    kind: of the data, text | image | instruct (logits of tokens). `redraw()` draws what is not pretrained anew from torch's
    global generator; `head_names` are the classifier's parameters; `vectorize`: True, or why only one client at a time can be run.
    ConfigError where the model or its adapter cannot be what the config asks for.
    """
    from rayfed.models import checkpoint, pixels
    from rayfed.models.wrapped import Wrapped, without_padding

    spec = config.task.model
    options = {**OPTIONS, **spec.options}
    auto = _auto(kind, options["head"])
    about = _about(spec.name, base["about"], classes, auto)
    with _quiet():
        network, loaded = _network(auto, about, base["arrays"], options["attention"], config)
        pad, causal, alone = 0, False, ""
        if kind != "image":
            pad = without_padding(network)
            causal, alone = _attention(network, pad, about.model_type, config)
        if kind == "instruct":
            _check_causal(spec.name, about.model_type, causal, loaded["missing_keys"])
        network = _with_adapter(network, config, kind, options["head"], causal, base.get("words"))
    _in_four_bits(network, config)
    drawn = {str(n) for n in loaded["missing_keys"]} | {str(k[0]) for k in loaded["mismatched_keys"]}
    made = Wrapped(network, about, classes, kind, options["head"], config.adapter, causal, pad, drawn, alone)
    if kind == "image":
        made.pixels = pixels.build(about, base.get("images", {}), input_shape, spec.name)
    if not made.trained:
        raise ConfigError(
            f"adapter.kind: {config.adapter.kind} found, {spec.name} has no such parameters; allowed: lora, ia3"
        )
    if options["checkpointing"] and not checkpoint.install(made, made.trained):
        raise ConfigError(
            f"task.model.checkpointing: true found, {spec.name} has no layers that are known; allowed: false"
        )
    return made


def _in_four_bits(network: Any, config: Config) -> None:
    """Put what is frozen in linear layers into NF4 where the config says so. ConfigError where there is no such layer."""
    if config.task.model.options.get("base") != "nf4":
        return
    from rayfed.models import nf4
    from rayfed.models.wrapped import is_head

    if not nf4.install(network, is_head):
        raise ConfigError(
            f"task.model.base: nf4 found, {config.task.model.name} has no frozen torch.nn.Linear; allowed: float"
        )


def towers(config: Config, base: dict[str, Any], classes: int) -> tuple[Any, Any]:
    """Return (transformers' network of two towers around the base's arrays, its config). ConfigError where it is none."""
    spec = config.task.model
    about = _about(spec.name, base["about"], classes, _auto("image", "mean"))
    attention = {**OPTIONS, **spec.options}["attention"]
    with _quiet():
        network, _ = _network(_auto("image", "mean"), about, base["arrays"], attention, config)
    network.requires_grad_(config.adapter.kind in ("none", "full"))
    _in_four_bits(network, config)
    return network.eval(), about


def _auto(kind: str, head: str) -> Any:
    """Return transformers' Auto class for data of a kind; head: mean for a network without one."""
    import transformers

    if head == "mean":
        return transformers.AutoModel
    return {
        "instruct": transformers.AutoModelForCausalLM,
        "text": transformers.AutoModelForSequenceClassification,
        "image": transformers.AutoModelForImageClassification,
    }[kind]


def _about(name: str, found: dict[str, Any], classes: int, auto: Any) -> Any:
    """Return transformers' config for a config.json and so many classes. ConfigError where transformers has no such model."""
    from transformers import CONFIG_MAPPING

    if found["model_type"] not in CONFIG_MAPPING:
        raise ConfigError(f"task.model: {name} is a {found['model_type']!r}, which transformers does not know")
    known = {
        k: v for k, v in found.items() if k not in ("id2label", "label2id")
    }  # names of the checkpoint's own classes
    about = CONFIG_MAPPING[found["model_type"]].from_dict({**known, "num_labels": classes})
    if type(about) not in auto._model_mapping:
        raise ConfigError(
            f"task.model: {name} ({about.model_type}) has no {auto.__name__.removeprefix('Auto')} in transformers"
        )
    path = Path(name.removeprefix("hf:")).expanduser()
    about._name_or_path = str(
        path.resolve() if path.is_dir() else path
    )  # files that name it are opened from any folder
    return about


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing and warning; what was set before is set again."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _network(auto: Any, about: Any, arrays: Any, attention: str, config: Config) -> tuple[Any, dict[str, Any]]:
    """Return (transformers' network around the arrays, what it says of loading them). ConfigError where arrays lack or misfit."""
    from rayfed import tree
    from rayfed.models.wrapped import is_head

    network, loaded = auto._model_mapping[type(about)].from_pretrained(
        None,
        config=about,
        state_dict=tree.from_numpy(arrays),
        attn_implementation=attention,
        dtype=_dtype(config),
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # a classifier of other classes is drawn anew anyway
    )
    name = config.task.model.name
    if wrong := sorted(str(k[0]) for k in loaded["mismatched_keys"] if not is_head(str(k[0]))):
        raise ConfigError(f"task.model: {wrong[0]} of {name} has not the shape that its config.json says")
    if lacks := sorted(n for n in map(str, loaded["missing_keys"]) if _pretrained(n) and not is_head(n)):
        raise ConfigError(f"task.model: {name} is incomplete: it lacks {lacks[0]} ({len(lacks)} in all)")
    return network, loaded


def _pretrained(name: str) -> bool:
    """Return whether a parameter is of a block or a table, which no task adds to a network."""
    return "embed" in name or any(p.isdigit() for p in name.split("."))


def _attention(network: Any, pad: int, model_type: str, config: Config) -> tuple[bool, str]:
    """Return (whether tokens see only what came before them, "" or why only one client at a time can be run).

    ConfigError where that does not go with the executor.
    """
    from rayfed.models.wrapped import is_causal, sees_ahead

    causal = is_causal(network, pad)
    if causal is not None:
        return causal, ""
    alone = (
        f"{config.task.model.name} ({model_type}) does not take a ready 4-D attention mask, as models of the BERT, GPT-2 and "
        "Llama families do"
    )
    if config.resources.vectorised:
        raise ConfigError(
            f"resources.executor: {config.resources.executor} found, task.model: {alone}, which it needs; allowed: auto, loop, debug"
        )
    return not sees_ahead(network, pad), alone


def _check_causal(name: str, model_type: str, causal: bool, missing: Iterable[str]) -> None:
    """Raise ConfigError unless it is a causal language model with its head; missing: names that its file lacks."""
    lacks = sorted(missing)
    if causal and not lacks:
        return
    why = f"lacks {lacks[0]} in its file" if causal else "lets a token see what comes after it"
    raise ConfigError(
        f"task.model: {name} ({model_type}) {why}; instructions need a causal language model with its head"
    )


def _with_adapter(network: Any, config: Config, kind: str, head: str, causal: bool, words: Any) -> Any:
    """Return the network with the config's adapter in it; words: token ids of a prompt's text."""
    from rayfed import adapters

    task_type = "SEQ_CLS" if head == "auto" else "FEATURE_EXTRACTION"
    if kind == "instruct":
        task_type = "CAUSAL_LM"
    try:
        return adapters.attach(network, config.adapter, task_type, causal, words)
    except ValueError as e:  # PEFT's sentences: no default targets for this model, nothing matched
        raise ConfigError(f"adapter.targets: {e}") from None


def placed(module: Any, how: Any, device: str) -> tuple[Any, dict[str, Any]]:
    """Return (the module spread over devices by accelerate, the device of each of its parameters). ConfigError if it does not fit.

    how: `auto`, or {a layer's name in transformers: device}. A process without GPUs (the server's) has all of it on the CPU.
    """
    import torch
    from accelerate import dispatch_model, infer_auto_device_map

    network = module.network
    inner = network.get_base_model() if hasattr(network, "get_base_model") else network
    if torch.device(device).type == "cpu":
        where: dict[str, Any] = {"": "cpu"}
    elif how == "auto":
        where = infer_auto_device_map(module, no_split_module_classes=list(inner._no_split_modules or ()))
    else:
        above = next(f"{n}." for n, m in module.named_modules() if m is inner)
        where = {(above + n if n else ""): d for n, d in how.items()}
        if hasattr(module, "head") and "" not in where:
            where["head"] = list(where.values())[-1]
    out = sorted(n for n, d in where.items() if str(d) in ("cpu", "disk", "meta"))
    if torch.device(device).type != "cpu" and out:
        raise ConfigError(
            f"task.model.device_map: {len(out)} parts (first: {out[0]}) do not fit on this actor's GPUs; allowed: more "
            "resources.gpus_per_actor, task.dtype: bf16, or a smaller model"
        )
    try:
        made = dispatch_model(module, where, main_device=None, force_hooks=True)
    except ValueError as e:
        raise ConfigError(f"task.model.device_map: {e}") from None
    return made, {n: p.device for n, p in made.named_parameters()}
