"""Adapters: which parameters of a pretrained network are trained. PEFT defines those it has, and their files (`IN_PEFT`);
`rayfed.adapters.inside` has the others; visits train them."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed.errors import ConfigError, nearest

if TYPE_CHECKING:
    from rayfed.config.schema import Adapter, Config

IN_PEFT = ("lora", "ia3", "prompt", "prefix")  # saved in PEFT's format
PEFT_TYPES = {"LORA": "lora", "IA3": "ia3", "PROMPT_TUNING": "prompt", "PREFIX_TUNING": "prefix"}  # its word -> ours
NOT_OURS = ("use_dora", "rank_pattern", "alpha_pattern")  # what a LoRA of PEFT can have besides
PEFTS = {"r": 8, "lora_alpha": 8, "use_rslora": False}  # a LoRA's scale by PEFT's defaults
INSIDE = ("bottleneck", "ssf", "vpt")  # saved in our own, see rayfed.adapters.inside
TABLES = ("embed_tokens", "embed_positions", "embed_in", "wte", "wpe", "shared")  # and whatever ends in `embeddings`


def peft_config(adapter: Adapter, task_type: str | None, modules: list[str] | None = None) -> Any:
    """PEFT's config of an adapter that PEFT knows, None for the others. modules: those that are trained whole, if PEFT does not
    know from the task type."""
    import peft

    if adapter.kind == "lora":
        return peft.LoraConfig(
            task_type=task_type,
            modules_to_save=modules,
            r=adapter.largest,
            lora_alpha=adapter.strength(adapter.largest),
            use_rslora=adapter.rslora,
            target_modules=list(adapter.targets) if adapter.targets else None,
            lora_dropout=adapter.dropout,
        )
    if adapter.kind == "ia3":
        return peft.IA3Config(
            task_type=task_type,
            modules_to_save=modules,
            target_modules=list(adapter.targets) if adapter.targets else None,
            feedforward_modules=list(adapter.feedforward) if adapter.feedforward is not None else None,
        )
    if adapter.kind == "prompt":
        return peft.PromptTuningConfig(task_type=task_type, num_virtual_tokens=adapter.tokens)
    if adapter.kind == "prefix":
        return peft.PrefixTuningConfig(task_type=task_type, num_virtual_tokens=adapter.tokens)
    return None


def attach(
    network: Any, adapter: Adapter, task_type: str, causal: bool = False, words: Sequence[int] | None = None
) -> Any:
    """The network with the adapter in it; what is trained requires gradients, the head among it.

    task_type: PEFT's word for what the network gives, SEQ_CLS | FEATURE_EXTRACTION | CAUSAL_LM; causal: tokens look back only;
    words: token ids of a prompt's `text`. ConfigError if the network cannot have this adapter.
    """
    import peft
    import torch

    from rayfed.adapters import inside

    if adapter.kind in ("none", "full"):
        return network.requires_grad_(True)
    if adapter.kind == "bias":
        for name, p in network.named_parameters():
            p.requires_grad_(name.endswith(".bias") or bool(inside.HEADS & set(name.split("."))))
        return network
    tables = {n for n, m in network.named_modules() if isinstance(m, torch.nn.Embedding)}
    if problems := _targets(adapter, {n: p.shape for n, p in network.named_parameters()}, tables):
        raise ConfigError(problems)
    if adapter.kind == "head" or adapter.kind in INSIDE:
        inside.attach(network, adapter)
        return network
    images = network.main_input_name == "pixel_values"  # PEFT's task types are of texts
    whole = ["classifier"] if images and task_type == "SEQ_CLS" else None
    config = peft_config(adapter, None if images else task_type, whole)
    if adapter.kind in ("prompt", "prefix"):
        from rayfed.adapters import prompt

        return prompt.attach(network, config, adapter, causal, words)
    made = peft.get_peft_model(network, config)
    if adapter.kind == "lora":
        weights = {n: getattr(m.base_layer, "weight", None) for n, m in made.named_modules() if hasattr(m, "lora_A")}
        sides = [(min(w.shape), n) for n, w in weights.items() if w is not None and w.dim() == 2]
        if sides and adapter.largest > min(sides)[0]:
            least, name = min(sides)
            raise ConfigError(_too_high(adapter, name.rpartition(".")[2], least))
    return made


def redraw(network: Any, adapter: Adapter) -> None:
    """A fresh adapter, as PEFT initialises it, from torch's global generator."""
    if adapter.kind in ("prompt", "prefix"):
        from rayfed.adapters import prompt

        prompt.redraw(network, adapter)
    if adapter.kind in INSIDE:
        from rayfed.adapters import inside

        inside.redraw(network)
    if adapter.kind not in ("lora", "ia3"):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in network.modules():
        if isinstance(module, BaseTunerLayer):
            if adapter.kind == "lora":
                module.reset_lora_parameters("default", True)
            else:
                module.reset_ia3_parameters("default")


def check(adapter: Adapter, shapes: dict[str, tuple[int, ...]], about: Mapping[str, Any]) -> list[str]:
    """Targets that match nothing, ranks above the layers', prompts that the model's inputs have no place for; from the checkpoint's
    names and shapes and its config.json."""
    texts = "vocab_size" in about or "text_config" in about
    if adapter.kind in ("prompt", "prefix") and not texts:
        return [f"adapter.kind: {adapter.kind} found, a {about['model_type']} takes no texts; allowed for images: vpt"]
    if adapter.kind == "vpt" and texts:
        return [f"adapter.kind: vpt found, a {about['model_type']} takes no images; allowed for texts: prompt, prefix"]
    # Image models have other names in memory than in files: `attach` looks.
    return _targets(adapter, shapes) if texts else []


def start_problems(config: Config) -> list[str]:
    """What sets the adapter that `init.from` names apart from the run's own, besides names and shapes of tensors: its kind, rank
    and scale, from PEFT's adapter_config.json, or the config.yaml of a run that has none."""
    from rayfed.config.schema import LoRA
    from rayfed.storage.text_files import read_yaml

    where, mine = Path(str(config.init.from_)), config.adapter
    folder = where / "model" if (where / "model").is_dir() else where
    peft, run = folder / "adapter_config.json", (where if folder != where else where.parent) / "config.yaml"
    if peft.is_file():
        try:
            said = dict(json.loads(peft.read_text()))
        except (ValueError, TypeError) as e:
            return [f"init.from: {peft} is not readable: {e}"]
        kind = PEFT_TYPES.get(found := str(said.get("peft_type")))
        if kind != mine.kind:
            allowed = f"--set adapter.kind={kind}" if kind else f"adapters of {', '.join(PEFT_TYPES)}"
            near = "" if kind else nearest(found, PEFT_TYPES)
            return [
                f"adapter.kind: {mine.kind} found, init.from: {folder} holds one of PEFT's type {found}{near}; allowed: {allowed}"
            ]
        rank, alpha, root = (said.get(n, default) for n, default in PEFTS.items())
        if other := [f"{n}: {json.dumps(said[n])}" for n in NOT_OURS if said.get(n)]:
            return [f"init.from: {folder} holds a LoRA with {other[0]} found; allowed: none of {', '.join(NOT_OURS)}"]
    elif run.is_file() and (folder != where or where.name == "model"):
        try:
            theirs = LoRA.model_validate(read_yaml(run).get("adapter"))
        except ValueError:  # another kind
            return []
        rank, alpha, root = theirs.largest, theirs.strength(theirs.largest), theirs.rslora
    else:
        return []
    if not isinstance(mine, LoRA):
        return []
    if not all(isinstance(x, int | float) and not isinstance(x, bool) and x > 0 for x in (rank, alpha)):
        return [f"init.from: {peft} says r: {rank!r} and lora_alpha: {alpha!r}, allowed: numbers above 0"]
    scale, ours, strength = alpha / (rank**0.5 if root else rank), mine.scale(mine.largest), mine.strength(mine.largest)
    if rank == mine.largest and math.isclose(scale, ours):
        return []
    key, here = ("rank", mine.largest) if rank != mine.largest else ("alpha", strength)
    sets = [f"--set adapter.rank={rank}"] if key == "rank" else []
    sets += [f"--set adapter.rslora={str(bool(root)).lower()}"] if root != mine.rslora else []
    return [
        f"adapter.{key}: {here:g} found, init.from: {folder} holds a LoRA of rank {rank} and alpha {alpha:g}: B A counts "
        f"{scale:g} times there, {ours:g} times here; allowed: " + " ".join([*sets, f"--set adapter.alpha={alpha:g}"])
    ]


def _targets(adapter: Adapter, shapes: Mapping[str, Sequence[int]], tables: Container[str] = ()) -> list[str]:
    """tables: names of embedding layers, beside those that are told by how they end."""
    targets = getattr(adapter, "targets", None)
    layers = {n.removesuffix(".weight"): s for n, s in shapes.items() if n.endswith(".weight") and len(s) == 2}
    linear = {n: s for n, s in layers.items() if not (_is_table(n) or n in tables)}
    if not targets and adapter.kind == "lora":  # which layers PEFT will choose is seen in `attach`; none can be larger
        most = max((min(s) for s in linear.values()), default=adapter.largest)
        return [_too_high(adapter, "", most)] if adapter.largest > most else []
    if not targets:
        return []
    if adapter.kind in INSIDE:  # any module, a block too
        modules = {".".join(p[:i]) for p in (n.split(".") for n in shapes) for i in range(1, len(p))}
        last = sorted({n.rpartition(".")[2] for n in modules})
        return [
            f"adapter.targets: {t!r} matches no module{nearest(t, last)}; modules: {', '.join(last)}"
            for t in targets if not any(n == t or n.endswith(f".{t}") for n in modules)
        ]  # fmt: skip
    problems, known = [], sorted({n.rpartition(".")[2] for n in linear})
    for t in targets:
        hit = {n: s for n, s in layers.items() if n == t or n.endswith(f".{t}")}
        if not hit.keys() <= linear.keys():
            # PEFT starts a table's factors the other way round, A at zero and B at random, under other names: methods that
            # freeze, share or cut one of them would do something else.
            problems.append(
                f"adapter.targets: {t!r} found, an embedding layer; {adapter.kind} allows linear layers: {', '.join(known)}"
            )
        elif not hit:
            problems.append(f"adapter.targets: {t!r} matches no layer{nearest(t, known)}; layers: {', '.join(known)}")
        elif adapter.kind == "lora" and adapter.largest > min(min(s) for s in hit.values()):
            problems.append(_too_high(adapter, t, min(min(s) for s in hit.values())))
    return problems


def _too_high(adapter: Any, layer: str, most: int) -> str:
    which = f"the smallest layer {layer!r} allows" if layer else "the model's layers allow"
    return f"adapter.rank: {adapter.largest} found, {which} at most {most}"


def _is_table(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last.endswith("embeddings") or last in TABLES
