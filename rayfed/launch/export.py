"""`rayfed export`: a run's model in a folder of its own, for use without rayfed."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayfed import tree
from rayfed.config.load import load_config
from rayfed.config.schema import Config
from rayfed.data import modalities
from rayfed.engine import exports
from rayfed.errors import ConfigError, nearest, refusing
from rayfed.models import folder
from rayfed.report.model_card import write_card
from rayfed.served import best_models, list_models
from rayfed.storage import atomic, tree_files
from rayfed.storage.run_folder import model_damage
from rayfed.storage.temporary import temporary

if TYPE_CHECKING:
    from torch import nn

ONNX = ("onnx", "onnxscript")  # what torch needs to write ONNX
WHOLE = ("none", "full", "head", "bias")  # kinds of adapters whose model is a whole one anyway


def export(
    run: Path, out: Path, *, name: str = "model", best: bool = False, merge: bool = False, onnx: bool = False
) -> Path:
    """Write a model of a run into a new folder and return the folder.

    Arguments:
        run: the run folder; the data are not needed.
        out: the folder, made in one step.
        name: model, expert-0 ...; best: of the best round, which `storage.best` keeps.
        merge: an adapter goes into its base's weights: a whole model in transformers' own format, in float32.
        onnx: also `model.onnx`.

    A pretrained model has its tokenizer and the names of its classes with it, a network of rayfed's or of one's own is
    `model.safetensors` by the names of its `state_dict`; each has a model card. ConfigError with all that is wrong.
    """
    config = _config(run)
    where = best_models(run) if best else "model"
    _check(run, config, out, name, where, merge, onnx)
    about = tree_files.load_meta(run / where, name)
    hf = config.task.model.name.startswith("hf:")
    labels, kind = about.get("labels") or (), about.get("kind") or ("text" if hf else "tabular")
    parameters = tree.from_numpy(tree_files.load_tree(run / where, name))
    made = temporary(out.absolute().parent, "new")
    made.mkdir(parents=True)
    try:
        write = partial(_pretrained, kind=kind, merge=merge) if hf else _plain
        module = write(config, about, parameters, made)
        exports.complete(made, config, labels)
        write_card(run, made, kind, labels)
        if onnx:
            write_onnx(module, kind, tuple(about["input_shape"]), made / "model.onnx")
        if out.exists():
            out.rmdir()
        made.rename(out)
    finally:
        atomic.remove(made)
    return out


def _config(run: Path) -> Config:
    if not (run / "config.yaml").is_file():
        raise ConfigError(
            f"export: {run} is not a run folder (config.yaml); of a study, name the run: STUDY/ARM/seed-0"
        )
    found = load_config(run / "config.yaml")
    assert isinstance(found, Config)
    return found


def _check(run: Path, config: Config, out: Path, name: str, where: str, merge: bool, onnx: bool) -> None:
    problems, known = [], list_models(run, where)
    if name not in known:
        there = ", ".join(known) or "none (the run has not ended)"
        problems.append(f"--model: {name!r} found{nearest(name, known)}, there is: {there}")
    elif where == "model" and (damage := model_damage(run, f"{name}.")):
        problems.append(f"export: {damage}; rayfed resume {run} writes it again")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        problems.append(f"--out: {out} exists already and is no empty folder")
    pretrained, kind = config.task.model.name.startswith("hf:"), config.adapter.kind
    if folder.is_pair(config.task.model.name) and config.task.kind.name in ("auto", "towers"):
        problems.append(f"export: {run} is of two towers; what it trained is in {run / 'model'}, adapter or hf")
    if merge and config.task.model.options.get("base") == "nf4":
        problems.append("--merge: task.model.base: nf4 found, into which nothing is merged; leave it out")
    if merge and not pretrained:
        problems.append(f"--merge: task.model: {config.task.model.name} found, which has no adapter; leave it out")
    elif (merge or onnx) and kind not in (*WHOLE, "lora", "ia3"):
        problems.append(f"--merge: adapter.kind: {kind} found, which is no change of weights; allowed: lora, ia3")
    if onnx and (missing := [n for n in ONNX if importlib.util.find_spec(n) is None]):
        problems.append(f"--onnx: {' and '.join(missing)} not installed: pip install 'rayfed-engine[onnx]'")
    if onnx and pretrained and not merge and kind not in WHOLE:
        problems.append("--onnx: of a pretrained model, allowed with --merge")
    if problems:
        raise ConfigError(problems)


def _pretrained(
    config: Config, about: Mapping[str, Any], parameters: Any, out: Path, *, kind: str, merge: bool
) -> nn.Module:
    """Write a pretrained model and return transformers' network, merged where that is asked for."""
    from rayfed.models import pretrained

    base = pretrained.base(config)
    assert base is not None
    with refusing("export"):
        module = pretrained.build(config, int(about["classes"]), kind, base, tuple(about["input_shape"]))
    if config.adapter.kind not in WHOLE and not merge:
        module.publish(parameters, out)
        network: nn.Module = module.network
        return network
    return module.merge(parameters, out)


def _plain(config: Config, about: Mapping[str, Any], parameters: Any, out: Path) -> nn.Module:
    """Write the `state_dict` of a network of rayfed's or of the user's own and return the network."""
    import torch
    from safetensors.torch import save_model

    from rayfed import models

    with torch.random.fork_rng(devices=[]), refusing("export"):
        held = modalities.of(about.get("modalities", ()))
        network = models.build(config.task.model, int(about["classes"]), tuple(about["input_shape"]), held)
    like = next(iter(parameters.values()), torch.zeros(()))
    network = network.to(like.dtype).eval()
    network.load_state_dict(dict(parameters), strict=False)
    save_model(network, str(out / "model.safetensors"))
    source = config.task.model.name.rpartition(":")[0]
    if source.endswith(".py") and Path(source).is_file():
        shutil.copyfile(source, out / Path(source).name)  # the code that the weights belong to
    return network


def write_onnx(network: nn.Module, kind: str, input_shape: Sequence[int], file: Path) -> None:
    """Write a network as ONNX, for any number of rows. kind: of the data; input_shape: of one example."""
    import torch

    batch = torch.export.Dim("batch")
    if kind in ("text", "instruct"):
        length = torch.export.Dim("length", max=int(input_shape[-1]) if len(input_shape) else 512)
        ids = torch.ones(2, int(input_shape[-1]), dtype=torch.int64)
        network.config.use_cache = False  # type: ignore[union-attr]
        kwargs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        shapes: Any = {n: {0: batch, 1: length} for n in kwargs}
        program = torch.onnx.export(
            network.eval(), kwargs=kwargs, dynamic_shapes=shapes, dynamo=True, verbose=False, output_names=["logits"]
        )
    else:
        x = torch.zeros(2, *input_shape, dtype=next(network.parameters()).dtype)
        name = "pixel_values" if hasattr(network, "config") else "x"
        program = torch.onnx.export(
            network.eval(),
            (x,),
            dynamic_shapes=({0: batch},),
            dynamo=True,
            verbose=False,
            input_names=[name],
            output_names=["logits"],
        )
    assert program is not None
    program.save(str(file))
