"""A model card of a run: what was trained on what, by which method, how good it is, how to load it and how to repeat it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayfed.metrics import SCOPES, meaning, outcome
from rayfed.report.html import number
from rayfed.report.subject import RunRecord, read_run
from rayfed.storage.saved_config import method_name, section
from rayfed.storage.versions import versions

PIPELINES = {
    "text": "text-classification", "image": "image-classification", "instruct": "text-generation",
    "tabular": "tabular-classification",
}  # fmt: skip
AUTO = {"text": "SequenceClassification", "instruct": "CausalLM"}  # PEFT's classes: AutoPeftModelFor...


def model_card(run: RunRecord, kind: str, form: str, labels: Sequence[str] = ()) -> str:
    """Return the card of a run's model as Markdown with the hub's metadata; loads huggingface_hub.

    kind: of the data, text | image | instruct | tabular; form: adapter | transformers | weights, how the model is stored; labels: the
    names of the classes.
    """
    from huggingface_hub import EvalResult, ModelCardData

    task, data, model = section(run.config, "task"), _name(run.config, "data"), _name(run.config, "model")
    values = _scores(run)
    results = [
        EvalResult(
            task_type=PIPELINES.get(kind, kind), dataset_type=data.removeprefix("hf:"), dataset_name=data,
            metric_type=metric.partition("/")[0], metric_name=metric, metric_value=float(value),
        )
        for metric, value in values.items()
    ]  # fmt: skip
    base = model.removeprefix("hf:") if model.startswith("hf:") else None
    about = ModelCardData(
        library_name={"adapter": "peft", "transformers": "transformers", "weights": "rayfed"}[form],
        pipeline_tag=PIPELINES.get(kind),
        base_model=base if base and not Path(base).expanduser().exists() else None,
        datasets=[data.removeprefix("hf:")]
        if data.startswith("hf:") and not Path(data.removeprefix("hf:")).exists()
        else None,
        tags=["federated-learning", "rayfed", method_name(run.config)],
        metrics=sorted({m.partition("/")[0] for m in values}) or None,
        model_name=_title(run).replace(" ", "-"),
        eval_results=results or None,
    )
    parts = [f"---\n{about.to_yaml()}\n---", f"# {_title(run)}", _trained(run, model, data, labels), _table(values)]
    parts += [
        *(f"- {note}" for note in run.notes),
        "## Use",
        _use(run, kind, form, len(labels)),
        "## Repeat it",
        _repeat(run),
    ]
    dtype = task.get("dtype", "float32")
    parts.append(f"Trained in {dtype} with " + ", ".join(f"{n} {v}" for n, v in versions().items()) + ".")
    return "\n\n".join(p for p in parts if p) + "\n"


def write_card(run: Path, where: Path, kind: str, labels: Sequence[str] = ()) -> Path:
    """Write the card of a run's model next to its files and return it.

    run: the run folder; where: the files of the model, of which `hf/` is a whole one in transformers' format; the others as in
    `model_card`.
    """
    whole = where / "hf" if (where / "hf").is_dir() else where
    form = "weights"
    if (whole / "config.json").is_file():
        form = "transformers"
    elif (where / "adapter_config.json").is_file():
        form = "adapter"
    file = whole / "README.md"
    file.write_text(model_card(read_run(run), kind, form, labels), encoding="utf-8")
    return file


def _scores(run: RunRecord) -> dict[str, Any]:
    """Return the final values of metrics with a scope, means over examples left out."""
    found = {m: v["final"] for m, v in outcome(run.rows).items() if m.partition("/")[2] in SCOPES}
    return {m: v for m, v in found.items() if v is not None}


def _trained(run: RunRecord, model: str, data: str, labels: Sequence[str]) -> str:
    federation = section(run.config, "federation")
    method, rounds = method_name(run.config), len(run.rows)
    partition = section(federation, "partition").get("kind", "iid")
    adapter = section(run.config, "adapter").get("kind", "none")
    how = "" if adapter in ("none", "full") else f", with an adapter of kind {adapter}"
    per_round = federation.get("per_round")
    asked = (
        "all" if per_round is None else f"{per_round:g} (a share)" if isinstance(per_round, float) else f"{per_round}"
    )
    named = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
    return (
        f"`{model}`{how}, trained by federated learning: {rounds} rounds of `{method}` over {federation.get('clients')} simulated clients, "
        f"{asked} asked in a round, on `{data}`, dealt to them by `{partition}` (seed {run.seed})."
        + (f"\n\nClasses: {named}." if named else "")
    )


def _title(run: RunRecord) -> str:
    """Return the run folder's name; of a run of a study, that of its config with arm and seed."""
    if not run.path.name.startswith("seed-"):
        return run.path.name
    return f"{run.config.get('name')} {run.path.parent.name} seed {run.seed}"


def _table(values: dict[str, Any]) -> str:
    if not values:
        return ""
    rows = [f"| {m} | {number(v, m)} | {about.text if (about := meaning(m)) else ''} |" for m, v in values.items()]
    return "\n".join(["| metric | final value | |", "|---|---:|---|", *rows])


def _use(run: RunRecord, kind: str, form: str, classes: int) -> str:
    """Return code that loads the model from the card's own folder."""
    if form == "transformers" and kind in PIPELINES:
        task = f"pipeline({PIPELINES[kind]!r}, model='.')"
        return f"```python\nfrom transformers import pipeline\n\nmodel = {task}  # in this folder\n```"
    if form == "adapter" and kind in AUTO:
        name = f"AutoPeftModelFor{AUTO[kind]}"
        more = f", num_labels={classes}" if kind == "text" and classes else ""
        return (
            f"```python\nfrom peft import {name}\nfrom transformers import AutoTokenizer\n\n"
            f"model = {name}.from_pretrained('.'{more})  # in this folder\ntokenizer = AutoTokenizer.from_pretrained('.')\n```\n\n"
            f"`rayfed export RUN --merge --out DIR` writes a plain model, which `transformers.pipeline` opens."
        )
    network = _name(run.config, "model")
    return (
        "```python\nfrom safetensors.torch import load_file\n\n"
        f"state = load_file('model.safetensors')  # the state_dict of {network}\n```\n\n"
        "With rayfed: `rayfed.load(RUN).model()`, which answers as it was scored."
    )


def _repeat(run: RunRecord) -> str:
    return f"```sh\nrayfed run RUN/config.yaml {run.repeat_options}".rstrip() + "\n```"


def _name(config: Any, key: str) -> str:
    value = section(config, "task").get(key)
    return str(value.get("name") if isinstance(value, dict) else value)
