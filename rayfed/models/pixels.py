"""From images in [0, 1] of any size to what a pretrained image model was trained on, as its preprocessor_config.json says.

It is part of the forward pass: examples stay as small as they are, and gradients with respect to them exist.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayfed.errors import ConfigError

FILTERS = {2: "bilinear", 3: "bicubic"}  # numbers of Pillow's
FILE = "preprocessor_config.json"


class Pixels(nn.Module):
    """(B, C, H, W) in [0, 1] -> (B, channels, h, w), resized and normalised.

    Resizing is linear in each direction, so it is a matrix (h, H) from the left and one (W, w) from the right. transformers'
    processors round resized pixels to whole grey levels (1/255); here they are not rounded.
    """

    def __init__(self, rows: Tensor, columns: Tensor, mean: Tensor, std: Tensor, factor: float):
        super().__init__()
        for name, x in {"rows": rows, "columns": columns, "mean": mean, "std": std}.items():
            self.register_buffer(name, x, persistent=False)
        self.rows: Tensor
        self.columns: Tensor
        self.mean: Tensor
        self.std: Tensor
        self.factor = factor
        self.resizes = not all(torch.equal(m, torch.eye(len(m), dtype=m.dtype)) for m in (rows, columns))

    def forward(self, x: Tensor) -> Tensor:
        if self.resizes:
            x = (x @ self.columns.to(x.dtype)).clamp(0, 1)  # in Pillow's order: bicubic filters overshoot
            x = (self.rows.to(x.dtype) @ x).clamp(0, 1)
        x = x.expand(-1, len(self.mean), -1, -1) * self.factor
        return (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)


def build(about: Any, says: dict[str, Any], shape: tuple[int, ...], name: str) -> Pixels:
    """Return the module for images (C, H, W) and a model with config `about`, whose preprocessor_config.json `says`.

    Without one: the model's own size, mean and deviation 0.5. Of one channel where the model takes more, it is repeated.
    ConfigError if channels or sizes cannot be reconciled.
    """
    if len(shape) != 3:
        raise ConfigError(f"task.model: {name} needs images, task.data has examples of shape {tuple(shape)}")
    channels = int(getattr(about, "num_channels", 3))
    if shape[0] not in (1, channels):
        raise ConfigError(
            f"task.model: {name} takes images of {channels} channel{'s' * (channels > 1)}, those of task.data have {shape[0]}; "
            f"allowed: {' or '.join(map(str, sorted({1, channels})))}"
        )
    size = getattr(about, "image_size", None)
    own = None if size is None else (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    rows, columns = _matrices(says, (shape[1], shape[2]), own)
    made = (len(rows), len(columns))
    if own is not None and made != own:
        raise ConfigError(
            f"task.model: {FILE} of {name} makes images of {_of(made)}, its config.json takes {_of(own)}; allowed: the same"
        )
    normal = says.get("do_normalize", True)
    mean, std = ([0.5], [0.5]) if normal else ([0.0], [1.0])
    mean, std = (says.get(k) or v if normal else v for k, v in (("image_mean", mean), ("image_std", std)))
    for key, v in (("image_mean", mean), ("image_std", std)):
        if len(v) not in (1, channels):
            raise ConfigError(f"task.model: {FILE} of {name}: {key} has {len(v)} values, the model {channels} channels")
    m, s = (torch.tensor(v, dtype=torch.float64).expand(channels).reshape(-1, 1, 1) for v in (mean, std))
    factor = 255 * float(says.get("rescale_factor", 1 / 255)) if says.get("do_rescale", True) else 255.0
    return Pixels(rows, columns.T.contiguous(), m, s, factor)


def _matrices(says: dict[str, Any], have: tuple[int, int], own: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    """Return (h, H) and (w, W) of resizing and then cropping at the centre."""
    rule = says.get("size") if says.get("do_resize", True) else None
    if isinstance(rule, int):
        rule = {"height": rule, "width": rule}
    to = own or have
    if rule and "shortest_edge" in rule:
        edge, short = int(rule["shortest_edge"]), min(have)
        to = tuple(edge if n == short else int(edge * n / short) for n in have)  # type: ignore[assignment]
    elif rule and {"height", "width"} <= rule.keys():
        to = int(rule["height"]), int(rule["width"])
    elif rule:
        raise ConfigError(f"task.model: {FILE}: size {rule} found, allowed: height and width, or shortest_edge")
    elif says and not says.get("do_resize", True):
        to = have
    resample = says.get("resample", 2)
    if to != have and resample not in FILTERS:
        allowed = ", ".join(f"{k} ({v})" for k, v in FILTERS.items())
        raise ConfigError(f"task.model: {FILE}: resample {resample} found, allowed: {allowed}")
    made = [_resize(n, m, FILTERS.get(resample, "bilinear")) for n, m in zip(have, to, strict=True)]
    crop = says.get("crop_size") if says.get("do_center_crop") else None
    if crop is None:
        return made[0], made[1]
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    out = []
    for x, k in zip(made, ("height", "width"), strict=True):
        n = int(crop[k])
        if n > len(x):
            raise ConfigError(f"task.model: {FILE}: crop_size {n} found, the resized images have {len(x)}")
        out.append(x[(len(x) - n) // 2 :][:n])
    return out[0], out[1]


def _resize(n: int, m: int, how: str) -> Tensor:
    """Return (m, n) matrix of an antialiased resize from n to m, as Pillow's filters weigh pixels."""
    if n == m:
        return torch.eye(n, dtype=torch.float64)
    eye = torch.eye(n, dtype=torch.float64)[None, None]
    return F.interpolate(eye, (m, n), mode=how, antialias=True, align_corners=False)[0, 0]


def _of(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
