"""Forward passes of a training step: what a network does in train mode, as functions of the step's key and its real rows.

PyTorch's own would draw dropout from a global generator and normalise over padding. A training forward pass runs inside a
`TorchFunctionMode` that intercepts every call of a torch function, in modules and in a user's own code alike, and replaces

- dropout of all kinds, randomised slopes, attention with dropout, `torch.rand` and the like: drawn from the step's key;
- batch and instance normalisation: statistics of the rows with weight 1, running statistics written to their buffers;
- other draws from global generators: `UnkeyedDraw`, which names the function.

The n-th draw of a forward pass has its own key, so `loop`, `vmap` and a resumed run draw the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rayfed import keys

PURPOSE = 0x64726F70  # apart from what a method draws from the same key
NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d
)  # fmt: skip
SELU_ALPHA = -1.7580993408473766  # what dropped activations become in alpha dropout (Klambauer et al. 2017)


class UnkeyedDraw(RuntimeError):
    """A network draws in a way that no key can decide; the text names it."""

    def __init__(self, name: str):
        super().__init__(
            f"the network calls {name} in training, which draws from a global generator; allowed: dropout layers and functions, "
            "attention with dropout, torch.rand, randn, rand_like, randn_like and bernoulli"
        )
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.name,))


class TrainingStep:
    """The key and the row weights of the step whose forward passes run.

    key: 0-d int64 tensor; w: (B,) 1 or 0 on padding, or None where every row is real; draws: how many there were so far.
    """

    def __init__(self, key: Tensor, w: Tensor | None = None, draws: int = 0):
        self.key, self.w, self.draws = key, w, draws

    def on(self, real: Tensor) -> TrainingStep:
        """Return the step for some of its rows, all of them real."""
        return TrainingStep(self.key, draws=self.draws)

    def next_key(self) -> Tensor:
        """Return the key of the next draw."""
        self.draws += 1
        return keys.fold(keys.fold(self.key, PURPOSE), self.draws - 1)

    def uniform(self, shape: Any) -> Tensor:
        """Return the next draw: uniform float32 numbers in [0, 1)."""
        return keys.uniform(self.next_key(), tuple(shape), torch.float32)

    def rows(self, x: Tensor) -> Tensor:
        """Return the weights of an input's rows, shaped to multiply it."""
        here = self.w is not None and self.w.shape[0] == x.shape[0]
        w = (
            self.w.to(x.dtype)
            if here and self.w is not None
            else torch.ones_like(x[:, 0].reshape(x.shape[0], -1)[:, 0])
        )
        return w.reshape(-1, *[1] * (x.dim() - 1))


class TrainingForward(TorchFunctionMode):
    """Answers the torch functions of `ANSWERS` by a step's key and rows."""

    def __init__(self, step: TrainingStep):
        super().__init__()
        self.step = step

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = ANSWERS.get(func)
        return func(*args, **(kwargs or {})) if answer is None else answer(self.step, func, *args, **(kwargs or {}))


# -- dropout -----------------------------------------------------------------------------------------------------------


def _dropout(
    step: TrainingStep, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    return _dropped(step, input, p, input.shape) if training and p else input


def _feature_dropout(
    step: TrainingStep, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    return _dropped(step, input, p, _features(func, input)) if training and p else input


def _dropped(step: TrainingStep, x: Tensor, p: float, shape: Any) -> Tensor:
    """Return inverted dropout (Srivastava et al. 2014) by a mask of `shape`: zero with probability p, otherwise times 1 / (1 - p)."""
    if p >= 1:
        return torch.zeros_like(x)
    return x * (step.uniform(shape) >= p).to(x.dtype) / (1 - p)


def _features(func: Any, x: Tensor) -> tuple[int, ...]:
    """Return the shape of a mask over whole channels: (N, C, 1, ...), or (C, 1, ...) of an input without a batch axis."""
    alone = x.dim() == {F.dropout1d: 2, F.dropout3d: 4}.get(func, 0)
    kept = 1 if alone else 2
    return (*x.shape[:kept], *[1] * (x.dim() - kept))


def _alpha_dropout(
    step: TrainingStep, func: Any, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    if not training or not p:
        return input
    shape = input.shape if func is F.alpha_dropout else _features(func, input)
    keep = (step.uniform(shape) >= p).to(input.dtype)
    q = 1 - p
    a = (q + SELU_ALPHA**2 * q * p) ** -0.5
    return a * (input * keep + SELU_ALPHA * (1 - keep)) - a * SELU_ALPHA * p


def _rrelu(
    step: TrainingStep,
    func: Any,
    input: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    if not training:
        return torch.where(input >= 0, input, input * (lower + upper) / 2)
    slope = lower + (upper - lower) * step.uniform(input.shape).to(input.dtype)
    return torch.where(input >= 0, input, input * slope)


def _attention(
    step: TrainingStep,
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return scaled dot-product attention whose weights are dropped by key; without dropout torch's own."""
    if not dropout_p:
        return func(query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = query @ key.transpose(-2, -1) * (scale if scale is not None else 1 / math.sqrt(query.shape[-1]))
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -math.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = torch.softmax(scores, -1)
    return _dropped(step, weights, dropout_p, weights.shape) @ value


def _multi_head(step: TrainingStep, func: Any, *args: Any, **kwargs: Any) -> Any:
    """Call torch's own, which is written in Python: the functions that it calls by name are answered while it runs."""
    own = F.dropout, F.scaled_dot_product_attention
    F.dropout = lambda *a, **k: _dropout(step, own[0], *a, **k)
    F.scaled_dot_product_attention = lambda *a, **k: _attention(step, own[1], *a, **k)
    try:
        return func(*args, **kwargs)
    finally:
        F.dropout, F.scaled_dot_product_attention = own


# -- normalisation -----------------------------------------------------------------------------------------------------


def _batch_norm(
    step: TrainingStep,
    func: Any,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel by its mean and variance over the real rows; PyTorch's numbers on those rows alone.

    A batch with a single value per channel, which has no variance, is normalised by the running statistics and leaves them.
    """
    if not training:
        return func(input, running_mean, running_var, weight, bias, False, momentum, eps)
    axes = [0, *range(2, input.dim())]
    rows = step.rows(input)
    n = rows.sum() * input[0, 0].numel()
    shape = [1, -1] + [1] * (input.dim() - 2)
    mean = (input * rows).sum(axes) / n.clamp(min=1)
    var = ((input - mean.reshape(shape)) ** 2 * rows).sum(axes) / n.clamp(min=1)
    if running_mean is not None and running_var is not None:
        several = n > 1
        unbiased = var.detach() * n / (n - 1).clamp(min=1)
        before = running_mean.clone(), running_var.clone()
        for kept, now in ((running_mean, mean.detach()), (running_var, unbiased)):
            kept.copy_(torch.where(several, (1 - momentum) * kept + momentum * now.to(kept.dtype), kept))
        mean, var = (torch.where(several, x, kept.to(x.dtype)) for x, kept in zip((mean, var), before))
    return _scaled((input - mean.reshape(shape)) * torch.rsqrt(var.reshape(shape) + eps), weight, bias, shape)


def _instance_norm(
    step: TrainingStep,
    func: Any,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each row by its own statistics; the running ones are means over the real rows."""
    if running_mean is None or running_var is None or not use_input_stats:
        return func(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    axes, size = list(range(2, input.dim())), input[0, 0].numel()
    mean, var = input.mean(axes, keepdim=True), input.var(axes, keepdim=True, unbiased=False)
    rows = step.rows(input)
    for kept, each in ((running_mean, mean), (running_var, var * size / max(size - 1, 1))):
        now = (each.detach() * rows).sum(0).flatten() / rows.sum().clamp(min=1)
        kept.copy_((1 - momentum) * kept + momentum * now.to(kept.dtype))
    return _scaled((input - mean) * torch.rsqrt(var + eps), weight, bias, [1, -1] + [1] * (input.dim() - 2))


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: list[int]) -> Tensor:
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


# -- other draws -------------------------------------------------------------------------------------------------------


def _draw(like: bool, normal: bool) -> Callable[..., Tensor]:
    """Answer `torch.rand`, `randn` and their `_like` forms by key."""

    def answer(step: TrainingStep, func: Any, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs.get("generator") is not None:
            raise UnkeyedDraw(f"torch.{func.__name__} with a generator of its own")
        size = args[0].shape if like else args[0] if args and isinstance(args[0], tuple | list | torch.Size) else args
        dtype = kwargs.get("dtype") or (args[0].dtype if like else torch.get_default_dtype())
        if "size" in kwargs:
            size = kwargs["size"]
        return (keys.normal if normal else keys.uniform)(step.next_key(), tuple(size), torch.float32).to(dtype)

    return answer


def _bernoulli(step: TrainingStep, func: Any, input: Tensor, p: float | None = None, **kwargs: Any) -> Tensor:
    chance = input if p is None else p
    return (step.uniform(input.shape) < chance).to(input.dtype)


def _refused(step: TrainingStep, func: Any, *args: Any, **kwargs: Any) -> Any:
    raise UnkeyedDraw(f"torch.{func.__name__}")


def _recurrent(step: TrainingStep, func: Any, *args: Any, **kwargs: Any) -> Any:
    """Call torch's own kernel, unless it would drop between layers."""
    dropout, training = (args[5], args[6]) if isinstance(args[4], int) else (args[6], args[7])
    if dropout and training:
        raise UnkeyedDraw(f"torch.nn's {func.__name__} with dropout between layers")
    return func(*args, **kwargs)


ANSWERS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((F.dropout, torch.dropout), _dropout),
    **dict.fromkeys((F.dropout1d, F.dropout2d, F.dropout3d, torch.feature_dropout), _feature_dropout),
    **dict.fromkeys((F.alpha_dropout, F.feature_alpha_dropout), _alpha_dropout),
    F.rrelu: _rrelu,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    torch.rand: _draw(False, False),
    torch.randn: _draw(False, True),
    torch.rand_like: _draw(True, False),
    torch.randn_like: _draw(True, True),
    torch.bernoulli: _bernoulli,
    Tensor.bernoulli: _bernoulli,
    **dict.fromkeys((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu), _recurrent),
    **dict.fromkeys(
        (
            torch.normal, torch.randint, torch.randint_like, torch.randperm, torch.multinomial, torch.poisson, torch.binomial,
            Tensor.multinomial, Tensor.bernoulli_, Tensor.uniform_, Tensor.normal_, Tensor.random_, Tensor.exponential_,
            Tensor.geometric_, Tensor.cauchy_, Tensor.log_normal_, F.gumbel_softmax, F.fractional_max_pool2d,
            F.fractional_max_pool3d,
        ),
        _refused,
    ),
}  # fmt: skip


# -- buffers -----------------------------------------------------------------------------------------------------------


@contextmanager
def standing_in(module: nn.Module, buffers: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Let these tensors be the module's buffers; afterwards the mapping holds what the forward pass left in their places."""
    places = [(n, module.get_submodule(n.rpartition(".")[0])._buffers, n.rpartition(".")[2]) for n in buffers]
    before = [owner[last] for _, owner, last in places]
    try:
        for name, owner, last in places:
            owner[last] = buffers[name]
        yield buffers
        for name, owner, last in places:  # written in place, or another tensor put in its place
            buffers[name] = owner[last]  # type: ignore[assignment]
    finally:
        for (_, owner, last), old in zip(places, before):
            owner[last] = old
