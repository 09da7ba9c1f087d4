"""The folder of a pretrained model: where it is, its config.json, its files of weights and their shapes; without torch."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed.errors import ConfigError, refusing

if TYPE_CHECKING:
    from rayfed.config.schema import Config

FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.codes", "*.bpe", "*.spm"]  # what is asked of the hub
INDEX = "model.safetensors.index.json"
LARGEST = 50_000_000  # bytes of a folder's JSON files
PAIRS = ("clip", "siglip", "vision-text-dual-encoder")  # model types that are an image tower and a text tower
AFTER_PADDING = (  # model types whose positions begin behind the padding token's id
    "camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta",
    "xlm-roberta-xl", "xmod",
)  # fmt: skip


def locate(name: str) -> Path:
    """Return the folder of `hf:NAME_OR_DIR`: a path, or a name that the hub or its cache on this machine knows.

    ConfigError if it is neither.
    """
    where = name.removeprefix("hf:")
    path = Path(where).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    found = None
    for local in (True,) if constants.HF_HUB_OFFLINE else (True, False):
        try:
            found = Path(snapshot_download(where, local_files_only=local, allow_patterns=FILES))
            weights(found)
            return found
        except (LocalEntryNotFoundError, HFValidationError):
            continue
        except ConfigError:  # without its weights, which the hub may have
            continue
        except Exception as e:  # no network, no such model, no permission: the hub says which
            if found is None:
                raise ConfigError(
                    f"task.model: {name!r} is no folder here, and the hub does not give it: {e}"
                ) from None
    if found is not None:
        return found
    raise ConfigError(f"task.model: {name!r} is no folder here, and not in the hub's cache on this machine")


def architecture(where: Path) -> dict[str, Any]:
    """Return config.json. ConfigError if it is missing or no model's."""
    file = where / "config.json"
    if not file.is_file():
        raise ConfigError(f"task.model: {where} holds no config.json; it is no model's folder")
    found = read_object(file, "task.model")
    if not isinstance(found.get("model_type"), str):
        raise ConfigError(f"task.model: {file} names no model_type")
    return found


def is_pair(name: str) -> bool:
    """Return whether `hf:NAME_OR_DIR` is an image tower and a text tower that share a space; False for what is no folder of a model."""
    if not name.startswith("hf:"):
        return False
    with contextlib.suppress(ConfigError):  # the model's own check reports it
        return architecture(locate(name))["model_type"] in PAIRS
    return False


def read_object(file: Path, setting: str) -> dict[str, Any]:
    """Return the JSON object of a file. ConfigError, which begins with the setting, if it holds anything else."""
    try:
        if (size := file.stat().st_size) > LARGEST:
            raise ConfigError(f"{setting}: {file} has {size:,} bytes, more than a description of a model")
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise ConfigError(f"{setting}: {file} is not readable: {e}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{setting}: {file} holds a {type(found).__name__}, needed: an object of names and values")
    return found


def weights(where: Path) -> list[Path]:
    """Return the safetensors files of a folder. ConfigError names what is missing."""
    if (where / INDEX).is_file():
        files = read_object(where / INDEX, "task.model").get("weight_map")
        if not isinstance(files, dict) or not files:
            raise ConfigError(f"task.model: {where / INDEX} has no weight_map")
        names = sorted(set(map(str, files.values())))
        missing = [n for n in names if not (where / n).is_file()]
        if missing:
            raise ConfigError(f"task.model: {where} is incomplete: {', '.join(missing)} of {INDEX} missing")
        return [where / n for n in names]
    if not (where / "model.safetensors").is_file():
        others = ", ".join(p.name for p in where.glob("*.bin")) or "no weights"
        raise ConfigError(f"task.model: {where} holds no model.safetensors (found: {others})")
    return [where / "model.safetensors"]


def shapes(where: Path) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every tensor, from the files' headers alone. ConfigError for a file that is damaged or cut off."""
    return {n: shape for file in weights(where) for n, shape in header(file, "task.model").items()}


def header(file: Path, setting: str) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the tensors of a safetensors file. ConfigError, which begins with the setting, if it is not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as f:
            return {n: tuple(f.get_slice(n).get_shape()) for n in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        size = f"{file.stat().st_size:,} bytes"
        raise ConfigError(f"{setting}: {file} ({size}) is no safetensors file, damaged or incomplete: {e}") from None


def limits(config: Config) -> list[tuple[int, str]]:
    """Return (tokens of a text that the config's model can take at most, "" or of what) by each of its limits.

    The virtual tokens that an adapter puts before the text are taken off already.
    """
    where = locate(config.task.model.name)
    about = architecture(where)
    with refusing(f"task.model: {where / 'config.json'}"):
        return _limits(config, about)


def _limits(config: Config, about: dict[str, Any]) -> list[tuple[int, str]]:
    window = about.get("sliding_window") if about.get("use_sliding_window", True) else None
    positions = about.get("max_position_embeddings") or about.get("n_positions")
    if positions and about.get("model_type") in AFTER_PADDING:
        pad = about.get("pad_token_id")
        positions = int(positions) - (1 if pad is None else int(pad)) - 1
    ahead = config.adapter.tokens if config.adapter.kind in ("prompt", "prefix") else 0
    shared = f" next to {ahead} of the adapter" if ahead else ""
    known = ((positions, shared), (window, f" in its attention's window{shared}"))
    return [(int(most) - ahead, of) for most, of in known if most]


def tokenizer(where: Path) -> Any:
    """Return the tokenizer of a folder; loads torch. ConfigError if it does not load."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(where)
    except Exception as e:
        raise ConfigError(f"task.model: the tokenizer of {where} does not load: {type(e).__name__}: {e}") from None
