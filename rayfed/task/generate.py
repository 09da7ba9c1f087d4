"""Instruction tuning scored by what a model writes: greedy decoding, ROUGE-L and token F1 beside what `instruct` measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from rayfed.lazy import torch
from rayfed.metrics import MEASURES, Measure
from rayfed.task import TaskSettings
from rayfed.task.instruct import Instruct

if TYPE_CHECKING:
    from torch import Tensor

    from rayfed.tree import Tree

WRITTEN = ("rouge_l", "token_f1")


class Generate(Instruct):
    """Learn as `instruct` does, and let the model write an answer to each scored prompt: the most probable token after another, until the
    record's own last one, its end token, or `tokens` of them, and no further than the records' length.

    rouge_l: F1 of the longest common subsequence of the written and the true tokens (Lin 2004); token_f1: F1 of the tokens that they share,
    whatever their order (Rajpurkar et al. 2016); both of tokens, where the papers have words, without the end token, and averaged over
    records. perplexity: exp of the mean loss over records. Each scored record takes `tokens` forward passes more. Of mixtures of models
    (`@ensemble`) they are the means of the models' own.
    """

    class Settings(TaskSettings):
        tokens: int = Field(32, ge=1, description="Most tokens that a model writes.")

    measures: tuple[Measure, ...] = (
        *Instruct.measures,
        *(MEASURES[n] for n in WRITTEN),
        MEASURES["perplexity"],
    )
    mixture: ClassVar[str] = (
        "accuracy, exact, rouge_l and token_f1 in the scope global are means of the served models' own, loss/global that of their mixture"
    )

    def metrics(self, params: Tree, batch: Any) -> dict[str, Tensor]:
        """Return loss, accuracy, exact, rouge_l and token_f1 of each record, (B,)."""
        return {**super().metrics(params, batch), **self._of_written(params, batch["x"])}

    def predict(self, params: Tree, batch: Any) -> Tensor:
        """Return what `Instruct.predict` does, and rouge_l and token_f1 of the record at each of its places, (B, L - 1, 5)."""
        found = super().predict(params, batch)
        answer = (batch["x"][:, 1, 1:] >= 0).to(found.dtype)
        more = self._of_written(params, batch["x"])
        return torch.cat([found, torch.stack([more[n][:, None] * answer for n in WRITTEN], -1)], -1)

    def judge_mean(self, p: Tensor, batch: Any) -> dict[str, Tensor]:
        """Return loss, accuracy, exact, rouge_l and token_f1 (B,) of a weighted mean of `predict`s, (B, L - 1, 5)."""
        return {**super().judge_mean(p, batch), **{n: p[..., 3 + i].amax(-1) for i, n in enumerate(WRITTEN)}}

    def summary(self, rows: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, float]:
        """Return the perplexity of a set of records."""
        return {"perplexity": float(np.exp(min(np.mean(rows["loss"]), 700.0)))}

    def _of_written(self, params: Tree, x: Tensor) -> dict[str, Tensor]:
        made = self._in_pieces(
            lambda piece: torch.stack(written_scores(self.write(params, piece), *truth(piece)), -1), x
        )
        return dict(zip(WRITTEN, made.to(self.dtype).unbind(-1), strict=True))

    def write(self, params: Tree, x: Tensor) -> Tensor:
        """Return the tokens that a model writes after the prompts of records (B, 2, L), (B, tokens) int64; -1 from the end token on."""
        ids, at, last = prompts(x)
        count, length = self.settings.tokens, x.shape[-1]
        out, going = [], torch.ones_like(at, dtype=torch.bool)
        places = torch.arange(length, device=x.device)
        for _ in range(min(count, length)):
            logits = self.apply(params, torch.stack([ids, x[:, 1].to(ids.dtype)], 1))
            here = (at - 1).clamp(min=0)[:, None, None].expand(-1, 1, logits.shape[-1])
            found = logits.gather(1, here)[:, 0].argmax(-1)
            going = going & (at < length) & (found != last)
            out.append(torch.where(going, found, -1))
            ids = torch.where((places == at[:, None]) & going[:, None], found[:, None].to(ids.dtype), ids)
            at = at + going.to(at.dtype)
        made = torch.stack(out, -1)
        return torch.nn.functional.pad(made, (0, count - made.shape[-1]), value=-1)


def prompts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (ids of the prompts alone (B, L), their lengths (B,), the last token of each answer (B,)) of records (B, 2, L)."""
    of_answer = x[:, 1] >= 0
    ids = torch.where(of_answer, -1, x[:, 0])
    places = torch.arange(x.shape[-1], device=x.device)
    end = (places * of_answer).amax(-1)
    return ids, (ids >= 0).sum(-1), x[:, 1].gather(1, end[:, None])[:, 0].to(torch.int64)


def truth(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (true tokens at their places (B, L) int64, which of them count (B, L): those of the answer without its last)."""
    of_answer = x[:, 1] >= 0
    places = torch.arange(x.shape[-1], device=x.device)
    end = (places * of_answer).amax(-1)
    return x[:, 1].to(torch.int64), of_answer & (places != end[:, None])


def written_scores(written: Tensor, true: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return (ROUGE-L, token F1) of each record, (B,): of written tokens (B, T), -1 where there is none, and true ones
    (B, L), where `counts`. Both are 1 where neither has a token.
    """
    there = written >= 0
    same = (written[:, :, None] == true[:, None, :]) & there[:, :, None] & counts[:, None, :]  # (B, T, L)
    row = torch.zeros_like(true)
    for i in range(written.shape[-1]):
        # the longest common subsequence of the first i + 1 and the first j + 1 tokens
        before = torch.nn.functional.pad(row[:, :-1], (1, 0))
        row = torch.maximum(row, before + same[:, i].to(row.dtype)).cummax(-1).values
    earlier = torch.tril(torch.ones(written.shape[-1], written.shape[-1], dtype=torch.bool, device=written.device), -1)
    nth = ((written[:, :, None] == written[:, None, :]) & there[:, :, None] & earlier).sum(-1)
    shared = (there & (nth < same.sum(-1))).sum(-1)
    sizes = there.sum(-1) + counts.sum(-1)
    return _f1(row[:, -1], sizes), _f1(shared, sizes)


def _f1(common: Tensor, sizes: Tensor) -> Tensor:
    """Return 2 common / sizes, (B,) float64, and 1 where there is nothing."""
    return torch.where(sizes > 0, 2 * common.double() / sizes.clamp(min=1).double(), 1.0)
