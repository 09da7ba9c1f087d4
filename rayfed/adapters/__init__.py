"""Adapters: which parameters of a pretrained network are trained. PEFT defines those it has, and their files (`IN_PEFT`);
`rayfed.adapters.inside` has the others; visits train them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rayfed.errors import ConfigError, nearest

if TYPE_CHECKING:
    from rayfed.config.schema import Adapter

IN_PEFT = ("lora", "ia3", "prompt", "prefix")  # saved in PEFT's format
INSIDE = ("bottleneck", "ssf", "vpt", "prompts")  # saved in our own, see rayfed.adapters.inside
TABLES = ("embed_tokens", "embed_positions", "embed_in", "wte", "wpe", "shared")  # and whatever ends in `embeddings`


def peft_config(adapter: Adapter, task_type: str | None, modules: list[str] | None = None) -> Any:
    """Return PEFT's config of an adapter that PEFT knows, None for the others.

    modules: those that are trained whole, where PEFT does not know them from the task type.
    """
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
    """Return the network with the adapter in it; what is trained requires gradients, the head among it.

    task_type: PEFT's word for what the network gives, SEQ_CLS | FEATURE_EXTRACTION | CAUSAL_LM; causal: tokens see only what came before;
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
    """Draw a fresh adapter, as PEFT initialises it, from torch's global generator."""
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
    """Return problems seen in the checkpoint's names and shapes and its config.json: targets that match nothing, ranks above
    the layers', prompts that the model's inputs have no place for."""
    texts = "vocab_size" in about or "text_config" in about
    if adapter.kind in ("prompt", "prefix") and not texts:
        return [f"adapter.kind: {adapter.kind} found, a {about['model_type']} takes no texts; allowed for images: vpt"]
    if adapter.kind == "vpt" and texts:
        return [f"adapter.kind: vpt found, a {about['model_type']} takes no images; allowed for texts: prompt, prefix"]
    # Image models have other names in memory than in files: `attach` sees them.
    return _targets(adapter, shapes) if texts else []


def _targets(adapter: Adapter, shapes: Mapping[str, Sequence[int]], tables: Container[str] = ()) -> list[str]:
    """Return what is wrong with targets and rank. tables: names of embedding layers, besides those that end in a usual name."""
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
