"""Experts as one teacher: who counts for which class, which labels to draw, how their outputs mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from rayfed import tree
from rayfed.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree

Experts: TypeAlias = "list[Tree] | Callable[[Tensor], Tensor]"  # K parameter trees of one network, or inputs (B, ...) -> logits (K, B, C)


def answers(apply: Callable[[Tree, Tensor], Tensor], experts: Experts) -> Callable[[Tensor], Tensor]:
    """Return inputs (B, ...) -> logits (K, B, C) of K experts; apply: (parameters, inputs) -> logits (B, C)."""
    if callable(experts):
        return experts
    stacked = tree.stack(experts)
    return lambda x: torch.vmap(apply, in_dims=(0, None))(stacked, x)


def of_families(families: list[tuple[Callable[[Tree, Tensor], Tensor], list[Tree]]]) -> Callable[[Tensor], Tensor]:
    """Return inputs -> logits (K, B, C) of all experts of several networks, in the order given: (apply, its experts) of each."""
    each = [answers(apply, experts) for apply, experts in families if experts]
    return lambda x: torch.cat([one(x) for one in each])


def class_weights(counts: Tensor, gamma: float = 1.0) -> Tensor:
    """Return alpha (K, C) from class counts n_{k,c} (K, C): n^gamma over its column's sum, with 0^gamma := 0.

    Columns sum to 1 for every class that some expert has seen; columns of unseen classes are zero.
    """
    n = counts.double()
    power = torch.where(n > 0, n.clamp(min=1e-300) ** gamma, torch.zeros_like(n))
    total = power.sum(0, keepdim=True)
    return torch.where(total > 0, power / total.clamp(min=1e-300), torch.zeros_like(power))


def draw_labels(counts: Tensor, n: int, generator: torch.Generator, rho: float = 1.0, group: bool = False) -> Tensor:
    """Draw n labels (n,): p(c) ~ (sum_k n_{k,c})^rho over seen classes; `group`: an expert uniformly, then its own classes."""
    c = counts.double()
    if group:
        c = c[c.sum(1) > 0]
        p = (c / c.sum(1, keepdim=True)).mean(0)
    else:
        pooled = c.sum(0)
        p = torch.where(pooled > 0, pooled.clamp(min=1e-300) ** rho, torch.zeros_like(pooled))
    return torch.multinomial(p / p.sum(), n, replacement=True, generator=generator)


def teacher(logits: Tensor, alpha: Tensor, y: Tensor, mix: str, tau: float) -> Tensor:
    """Mix to qbar (B, C) the experts' logits (K, B, C) by alpha (K, C) at the labels y (B,).

    mix "prob": tau log sum_k alpha_{k,y} softmax(f_k / tau) (FedFTG's student step); "logit": sum_k alpha_{k,y} f_k.
    """
    w = alpha[:, y].to(logits.dtype)[..., None]
    if mix == "logit":
        return (w * logits).sum(0)
    log_p = torch.log_softmax(logits / tau, -1)
    # log sum_k w_k p_k, with w_k = 0 dropped exactly
    return tau * torch.logsumexp(
        torch.where(w > 0, torch.log(w.clamp(min=1e-38)), torch.full_like(w, -torch.inf)) + log_p, 0
    )


def by_class(logits: Tensor, alpha: Tensor, tau: float) -> Tensor:
    """Return qbar (n, C) = tau log sum_k alpha_{k,c} softmax(f_k / tau)_c from logits (K, n, C) and alpha (K, C), for inputs without
    labels: an expert speaks for the classes it owns (ours). Classes that nobody owns get -1e30."""
    p = torch.softmax(logits / tau, -1)
    mixed = (alpha.to(p.dtype)[:, None] * p).sum(0)
    return torch.where(mixed > 0, tau * torch.log(mixed.clamp(min=1e-30)), torch.full_like(mixed, -1e30))


def judged(logits: Tensor, alpha: Tensor, y: Tensor) -> Tensor:
    """Return mean_b sum_k alpha_{k,y_b} CE(f_k, y_b) for logits (K, B, C), alpha (K, C) and labels y (B,): what each expert
    makes of the labels, by its own weight; 0-d."""
    cross_entropy = torch.logsumexp(logits, -1) - logits[:, torch.arange(len(y)), y]
    return (alpha[:, y].to(logits.dtype) * cross_entropy).sum(0).mean()


def kl(target: Tensor, student: Tensor, tau: float) -> Tensor:
    """Return tau^2 KL(softmax(target / tau) || softmax(student / tau)) of each row, (B,)."""
    t = torch.log_softmax(target / tau, -1)
    return tau**2 * (t.exp() * (t - torch.log_softmax(student / tau, -1))).sum(-1)
