"""Adapters: which parameters of a pretrained network are trained. PEFT defines them and their files; visits train them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayfed.errors import nearest

if TYPE_CHECKING:
    from rayfed.config import Adapter


def peft_config(adapter: Adapter, task_type: str | None) -> Any:
    """PEFT's config of an adapter that PEFT knows, None for the others (bias, full, none)."""
    import peft

    if adapter.kind == "lora":
        return peft.LoraConfig(
            task_type=task_type,
            r=adapter.rank,
            lora_alpha=adapter.alpha if adapter.alpha is not None else 2 * adapter.rank,
            target_modules=list(adapter.targets) if adapter.targets else None,
            lora_dropout=adapter.dropout,
        )
    if adapter.kind == "ia3":
        return peft.IA3Config(
            task_type=task_type,
            target_modules=list(adapter.targets) if adapter.targets else None,
            feedforward_modules=list(adapter.feedforward) if adapter.feedforward is not None else None,
        )
    return None


def attach(network: Any, adapter: Adapter, with_head: bool) -> Any:
    """The network with the adapter in it; what is trained requires gradients, the head among it.

    with_head: the network has a classifier of its own.
    """
    import peft

    if adapter.kind in ("none", "full"):
        return network.requires_grad_(True)
    if adapter.kind == "bias":
        for name, p in network.named_parameters():
            p.requires_grad_(name.endswith(".bias") or bool({"classifier", "score"} & set(name.split("."))))
        return network
    made = peft_config(adapter, "SEQ_CLS" if with_head else "FEATURE_EXTRACTION")
    return peft.get_peft_model(network, made)


def redraw(network: Any, adapter: Adapter) -> None:
    """A fresh adapter, as PEFT initialises it, from torch's global generator."""
    if adapter.kind not in ("lora", "ia3"):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in network.modules():
        if isinstance(module, BaseTunerLayer):
            if adapter.kind == "lora":
                module.reset_lora_parameters("default", True)
            else:
                module.reset_ia3_parameters("default")


def check(adapter: Adapter, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Targets that match nothing, and ranks above the layers', from the checkpoint's names and shapes."""
    targets = getattr(adapter, "targets", None)
    if not targets:
        return []
    layers = {n.removesuffix(".weight"): s for n, s in shapes.items() if n.endswith(".weight") and len(s) == 2}
    problems = []
    for t in targets:
        hit = {n: s for n, s in layers.items() if n == t or n.endswith(f".{t}")}
        if not hit:
            known = sorted({n.rpartition(".")[2] for n in layers})
            problems.append(f"adapter.targets: {t!r} matches no layer{nearest(t, known)}; layers: {', '.join(known)}")
        elif adapter.kind == "lora" and adapter.rank > min(min(s) for s in hit.values()):
            least = min(min(s) for s in hit.values())
            problems.append(f"adapter.rank: {adapter.rank} found, the smallest layer {t!r} allows at most {least}")
    return problems
