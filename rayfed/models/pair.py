"""Two towers as one module: pictures and texts to features of one space, and pictures to logits of classes that are known by name.

Any of transformers' CLIP, SigLIP and vision-text dual encoders; how their texts are masked and pooled is written here, so that prompts pass
through and `torch.func` has nothing to ask of the data.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayfed.adapters import inside
from rayfed.adapters.prompt import inserted
from rayfed.models import pixels, pretrained
from rayfed.models.wrapped import ready_mask

if TYPE_CHECKING:
    from pathlib import Path

    from rayfed.config.schema import Config

SPREAD = 0.02  # deviation of a context's first tokens


class Context(nn.Module):
    """Tokens (tokens, width) that stand before each class's name. words: ids that they start from, or None."""

    def __init__(self, width: int, tokens: int, words: list[int] | None):
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(tokens, width))
        self.words = words

    def redraw(self, table: Tensor) -> None:
        """Draw the tokens anew, N(0, SPREAD^2), or take those of the words from a table of embeddings (V, width)."""
        with torch.no_grad():
            if self.words is None:
                nn.init.normal_(self.tokens, std=SPREAD)
            else:
                self.tokens.copy_(table[self.words])


class Pair(nn.Module):
    """An image tower and a text tower. Called with pixels (B, C, H, W) in [0, 1] it gives logits (B, classes), scale times cosines.

    Within `during["tower"]` it gives features of length 1, (n, d), of something else: "image", of pixels; "classes", of classes by their
    numbers (n,); "text", of token ids (n, L), -1 on padding. Names of classes are read once a call, those that are asked for.

    network: transformers' own; texts: (1 + T, C, L) token ids, see `rayfed.partition.Federation.texts`; scale: what cosines are multiplied
    by in the place of the network's own. `anchors` (C, d) are the frozen features of the classes: of length 1, the mean over T sentences.
    """

    head_names = ()
    vectorize = True

    def __init__(
        self, network: Any, about: Any, images: nn.Module, texts: Tensor, config: Config, words: list[int] | None
    ):
        super().__init__()
        self.network, self.kind, self.pixels, self.adapter = network, about.model_type, images, config.adapter
        self.source, self.pooling = str(about._name_or_path), getattr(about, "pooling", "own")
        self.during: dict[str, Any] = {}  # a task puts its own in this place
        temperature = config.task.kind.options.get("temperature")
        self.factor = None if temperature is None else 1.0 / temperature
        self.context: Context | None = None
        text = about.text_config
        self.pad, self.places = int(getattr(text, "pad_token_id", None) or 0), int(text.max_position_embeddings)
        with torch.no_grad():
            each = torch.stack([self._text(self._whole(t)) for t in texts[1:]])
        self.register_buffer("anchors", F.normalize(each.mean(0), dim=-1), persistent=False)
        self.anchors: Tensor
        if config.adapter.kind == "prompts":
            if config.adapter.text:
                self.context = Context(text.hidden_size, config.adapter.text, words)
            if config.adapter.image:
                tower = network.vision_model
                inside.attach_prompts(tower, config.adapter.counts(len(inside.blocks(tower))))
        self.at = int(
            (texts[..., 0] == texts[0, 0, 0]).all()
        )  # behind the token that begins every text, if there is one
        self.register_buffer("ids", self._prompted(texts[0]), persistent=False)
        self.ids: Tensor
        self.trained = [n for n, p in self.named_parameters() if p.requires_grad]
        self.redraw()

    def _whole(self, ids: Tensor) -> Tensor:
        """Return token ids as the network was trained on: SigLIP's texts are all of one length, whose padding counts."""
        if self.kind != "siglip":
            return ids
        ids = F.pad(ids, (0, self.places - ids.shape[-1]), value=-1)
        return torch.where(ids < 0, self.pad, ids)

    def _prompted(self, ids: Tensor) -> Tensor:
        """Return the ids (C, L) with places for the context before each name."""
        tokens = 0 if self.context is None else len(self.context.tokens)
        filler = ids.new_full((len(ids), tokens), int(ids[0, 0]))
        ids = torch.cat([ids[:, : self.at], filler, ids[:, self.at :]], 1)
        return self._whole(ids[:, : self.places])

    @property
    def words(self) -> nn.Module:
        """Return the layer of word embeddings."""
        found: nn.Module = self.network.text_model.get_input_embeddings()
        return found

    def forward(self, x: Tensor) -> Tensor:
        tower = self.during.get("tower")
        if tower == "image":
            return self._image(x)
        if tower == "classes":
            return self._classes(x)
        if tower == "text":
            return self._text(self._whole(x))
        logits = self.scale * (self._image(x) @ self._classes(None).T)
        bias = getattr(self.network, "logit_bias", None)
        return logits if bias is None or self.factor is not None else logits + bias

    @property
    def scale(self) -> Any:
        """Return what cosines are multiplied by."""
        return self.network.logit_scale.exp() if self.factor is None else self.factor

    def _image(self, x: Tensor) -> Tensor:
        out = self.network.vision_model(pixel_values=self.pixels(x))
        h = out.last_hidden_state.mean(1) if self.pooling == "mean" else out.pooler_output
        return F.normalize(h if self.kind == "siglip" else self.network.visual_projection(h), dim=-1)

    def _classes(self, numbers: Tensor | None) -> Tensor:
        """Return features (n, d) of classes by their numbers, None for all; the frozen ones where nothing of the text tower is trained."""
        if self.context is None and self.adapter.kind == "prompts":
            return self.anchors if numbers is None else self.anchors[numbers]
        ids = self.ids if numbers is None else self.ids[numbers]
        return self._text(ids, None if self.context is None else self.context.tokens)

    def _text(self, ids: Tensor, context: Tensor | None = None) -> Tensor:
        """Return features (n, d) of token ids (n, L); context: (tokens, width), what stands in their place from `at` on."""
        keep, tower = ids >= 0, self.network.text_model
        put = nullcontext() if context is None else inserted(self.words, context, self.at)
        given = torch.where(keep, ids, self.pad)
        with put:
            if self.kind == "siglip":
                return F.normalize(tower(input_ids=given).pooler_output, dim=-1)
            dtype = next(p.dtype for p in tower.parameters() if p.is_floating_point())
            out = tower(input_ids=given, attention_mask=ready_mask(keep, self.kind == "clip", dtype))
        h = out.last_hidden_state
        if self.kind == "clip":  # at the token that ends every text
            last = (keep.sum(1) - 1)[:, None, None].expand(-1, 1, h.shape[2])
            h = h.gather(1, last)[:, 0]
        elif self.pooling == "mean":
            w = keep.to(h.dtype)[..., None]
            h = (h * w).sum(1) / w.sum(1)
        else:
            h = out.pooler_output
        return F.normalize(self.network.text_projection(h), dim=-1)

    def redraw(self, everything: bool = False) -> None:
        """Draw the prompts anew from torch's global generator."""
        if self.context is not None:
            self.context.redraw(next(self.words.parameters()))
        inside.redraw(self.network)

    def publish(self, params: Any, where: Path, rank: int | None = None) -> None:
        """Write prompts as a tree with their settings into `where`/adapter, towers that were trained whole in transformers' format into
        `where`/hf; of what a method has beside one model's parameters nothing."""
        if not params.keys() <= set(self.trained):
            return
        if self.adapter.kind == "prompts":
            inside.save(self.adapter, self.source, params, where / "adapter")
            return
        made = copy.deepcopy(self)
        made.load_state_dict(dict(params), strict=False)
        made.network.save_pretrained(where / "hf")


def build(config: Config, base: dict[str, Any], input_shape: tuple[int, ...], texts: Tensor) -> Pair:
    """Return the pair around the base's arrays (`rayfed.models.pretrained.base`), with the config's prompts in it.

    input_shape: of one picture; texts: see `Pair`. ConfigError where the towers cannot be what the config asks for.
    """
    network, about = pretrained.towers(config, base, texts.shape[1])
    images = pixels.build(about.vision_config, base.get("images", {}), input_shape, config.task.model.name)
    return Pair(network, about, images, texts, config, base.get("words"))
