"""What a run starts from: the parameters of `init.from`, and a pretrained model's frozen base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed.models import pretrained
from rayfed.storage.tree_files import load_tree

if TYPE_CHECKING:
    from rayfed.config.schema import Config


def start_from(config: Config) -> dict[str, Any] | None:
    """Read what a run starts from, as NumPy arrays; None where it starts from its seed alone.

    Returns `params`, those of `init.from` (a run folder, a folder with model.safetensors, a PEFT adapter, a client's of
    `Run.save_adapter`), and `base`, the frozen part of a pretrained model; each None where there is none.
    """
    base, params = pretrained.base(config), None
    if config.init.from_ is not None:
        path = Path(config.init.from_)
        folder = path / "model" if (path / "model").is_dir() else path
        whole = (folder / "model.safetensors").is_file()
        params = load_tree(folder, "model") if whole else pretrained.adapter_arrays(folder)
    return None if base is None and params is None else {"params": params, "base": base}
