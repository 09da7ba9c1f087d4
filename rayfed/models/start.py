"""What a run starts from: the parameters of `init.from`, and a pretrained model's frozen base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed.errors import ConfigError, RunFailed, refusing
from rayfed.models import pretrained
from rayfed.models.folder import header
from rayfed.storage.tree_files import load_tree
from rayfed.tree import BF16

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.tree import Tree


def start_from(config: Config) -> dict[str, Any] | None:
    """Read what a run starts from, as NumPy arrays; None where it starts from its seed alone.

    Returns `params`, those of `init.from` (a run folder, a folder with model.safetensors, a PEFT adapter, a client's of
    `Run.save_adapter`), and `base`, the frozen part of a pretrained model; each None where there is none. ConfigError where a file
    is damaged.
    """
    base, params = pretrained.base(config), None
    if config.init.from_ is not None:
        path = Path(config.init.from_)
        try:
            params = _params(path / "model" if (path / "model").is_dir() else path)
        except RunFailed as e:  # of a file that is not whole
            raise ConfigError(f"init.from: {e}") from None
    return None if base is None and params is None else {"params": params, "base": base}


def _params(folder: Path) -> Tree:
    """Return the tensors of a folder by the names of a trained tree. ConfigError or RunFailed where a file is damaged."""
    with refusing(f"init.from: {folder}"):
        for name in ("model", "adapter_model", "head"):
            if (file := folder / f"{name}.safetensors").is_file():
                header(file, "init.from")
        whole = (folder / "model.safetensors").is_file()
        found = load_tree(folder, "model") if whole else pretrained.adapter_arrays(folder)
    found = {n: _widened(x) if isinstance(x, BF16) else x for n, x in found.items()}
    if nested := [n for n, x in found.items() if isinstance(x, Mapping)]:
        raise ConfigError(
            f"init.from: {folder} holds a tree of tensors under {nested[0]!r}, needed: the parameters of one model"
        )
    if wrong := [n for n, x in found.items() if isinstance(x, np.ndarray) and not np.isfinite(x).all()]:
        raise ConfigError(f"init.from: {folder} holds values that are not finite, the first in {wrong[0]}")
    return found


def _widened(x: BF16) -> np.ndarray:
    """Return a bfloat16 array as float32, of which it is the first half of the bits."""
    return (x.bits.astype(np.uint32) << 16).view(np.float32)
