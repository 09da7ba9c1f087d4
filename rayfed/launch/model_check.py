"""Checks before anything starts: can pretrained models be built as configs want them, and do users' own networks train?

Each is built once, and an own network tried on some rows of the data. Building loads torch, which the process that reads
configs never does: it starts another one,

    python -m rayfed.launch.model_check QUESTIONS.json

What can be built is remembered in the user's cache.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rayfed import clock, cut, methods, models, tree
from rayfed.config import phases, unread, user_code
from rayfed.config.watchdog import say_if_slow
from rayfed.data import modalities
from rayfed.errors import ConfigError, refusing
from rayfed.models import families, folder
from rayfed.partition.targets import Targets
from rayfed.storage.cache import cache_folder
from rayfed.transform import checks

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.method import Method
    from rayfed.partition import Federation
    from rayfed.task import Task

ROWS = 4  # of the data, on which an own network is tried


@dataclass(frozen=True)
class Question:
    """Plain values: a config, what a task reads of its federation, some rows of its arrays by name, why it must not write buffers,
    the method's `splits_model`, the bytes that each family's model may have for anybody to be in time (() where that limits nothing),
    and the key under which a good answer is remembered."""

    config: dict[str, Any]
    federation: dict[str, Any]
    rows: dict[str, list[Any]]
    no_buffers: str | None
    splits_model: bool
    room: list[float]
    key: str


def question(config: Config, federation: Federation) -> Question | None:
    """Return what has to be checked; None for rayfed's own models that start from their seed, and for what was checked before."""
    method = methods.of(config)
    asks = type(method).fits_model is not methods.Method.fits_model
    several, room = len(families.names(config)) > 0, _room(config, federation, method)
    asks = asks or config.task.split is not None or bool(room)
    if config.task.model.name in models.KNOWN and config.init.from_ is None and not (asks or _needs_vmap(config)):
        return None
    values = config.to_dict()
    about = {
        n: getattr(federation, n)
        for n in ("classes", "answers", "kind", "population", "clients", "task", "label_names")
    }
    about["targets"] = federation.targets and federation.targets.to_dict()
    about["input_shape"], about["new_classes"] = list(federation.input_shape), list(federation.new_classes)
    about["texts"] = None if federation.texts is None else federation.texts.tolist()
    about["modalities"] = [list(m) for m in federation.modalities]
    versions = [importlib.metadata.version(n) for n in ("torch", "transformers", "peft")]
    # Only settings from which a model is built: others change from run to run.
    settings = [
        values["resources"]["executor"],
        values["task"]["model"],
        values["task"]["dtype"],
        values["local"]["buffers"],
        values["adapter"],
        values["init"],
        [values["method"], values["local"], _crc(config.method.name)] if _needs_vmap(config) else None,
        values["method"] if asks or several else None,
        versions,
        list(_files(config)),
        *([values["task"]["split"]] if config.task.split is not None else []),
    ]
    splits = method.splits_model()
    no_buffers = method.no_buffers or checks.no_buffers(config)
    decides = json.dumps([about, no_buffers, splits, room, *settings], sort_keys=True, default=str)
    key = hashlib.sha256(decides.encode()).hexdigest()[:32]
    if _known(key).exists():
        return None
    rows = {n: np.asarray(a)[federation.train.rows[:ROWS]].tolist() for n, a in federation.arrays.items()}
    return Question(values, about, rows, no_buffers, splits, room, key)


def _room(config: Config, federation: Federation, method: Method) -> list[float]:
    """Return the bytes that each family's model may have for one of its clients to meet the deadline, of one model for all the one
    number; [] where that limits nothing."""
    found = clock.room(config, federation, method.visit_steps(federation))
    if found is None:
        return []
    of = families.drawn(config, federation.population, federation.clients)
    if of is None:
        return [float(found.max())]
    mine = of[: federation.population]
    return [float(found[mine == i].max()) for i in range(len(families.names(config)))]


def find_problems(questions: Mapping[str, Question | None]) -> dict[str, list[str]]:
    """Return name -> what is wrong, of the questions where something is; remember those where nothing is."""
    asked = {n: q for n, q in questions.items() if q is not None}
    if not asked:
        return {}
    found = check_models(asked) if "torch" in sys.modules else _check_elsewhere(asked)
    for name, problems in found.items():
        if not problems:
            file = _known(asked[name].key)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    return {name: problems for name, problems in found.items() if problems}


def _check_elsewhere(asked: Mapping[str, Question]) -> dict[str, list[str]]:
    """Return what `check_models` finds in another process; where that process dies, of memory say, that it did."""
    with tempfile.TemporaryDirectory() as tmp:
        file = Path(tmp) / "questions.json"
        file.write_text(json.dumps({n: asdict(q) for n, q in asked.items()}, default=str), encoding="utf-8")
        command = [sys.executable, "-m", "rayfed.launch.model_check", str(file)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
        atexit.register(process.kill)  # Ctrl-C does not wait for the thread that this runs in
        names = {n: q.config["task"]["model"].get("name", "the families of task.model") for n, q in asked.items()}
        phases.begin(f"trying {', '.join(sorted(set(names.values())))}")
        with say_if_slow(f"the trial of {', '.join(sorted(set(names.values())))}"):
            out, err = process.communicate()
        atexit.unregister(process.kill)
    if process.returncode:
        said = (err.strip().splitlines() or ["no reason given"])[-1]
        ended = f"by signal {-process.returncode}, maybe of memory" if process.returncode < 0 else f"with {said}"
        return {n: [f"task.model: {name}: the process that tried it ended {ended}"] for n, name in names.items()}
    found: dict[str, list[str]] = json.loads(out.splitlines()[-1])
    return found


def check_models(asked: Mapping[str, Question]) -> dict[str, list[str]]:
    """Build the models and return name -> what is wrong, possibly nothing."""
    by_key = {key: _problems_of(q) for key, q in {q.key: q for q in asked.values()}.items()}
    return {name: by_key[q.key] for name, q in asked.items()}


def _problems_of(q: Question) -> list[str]:
    """Build the model, or that of each family, and return what is wrong."""
    from rayfed.config.schema import Config
    from rayfed.launch import family_check

    config, found, problems = Config.from_dict(q.config), {}, []
    for family, one in families.configs(config).items():
        found[family], wrong = _built(q, one)
        problems += [p.replace("task.model", f"task.model.{family}", 1) if family else p for p in wrong]
    buffers = {b for t in found.values() if t is not None for b in t.buffers}
    if config.local.buffers == "private" and not buffers and not problems:
        name, allowed = config.task.model.name, "a model with running statistics or counters"
        problems.append(unread.sentence("local.buffers", "private", "task.model", name, allowed))
    there = {n: t for n, t in found.items() if t is not None}
    problems = problems or _deadline_problems(q, config, [tree.nbytes(t.params_like) for t in there.values()])
    return problems or (family_check.problems(methods.of(config), there) if families.names(config) else [])


def _deadline_problems(q: Question, config: Config, sizes: Sequence[int]) -> list[str]:
    """Return that nobody could ever be in time because of transfers. sizes: bytes of each family's model."""
    if not q.room or any(size <= room for size, room in zip(sizes, q.room, strict=True)):
        return []
    size, room = min(zip(sizes, q.room, strict=True), key=lambda both: both[0] - both[1])
    return [
        f"failures.stragglers.deadline_s: {config.failures.stragglers.deadline_s:g} found, in which no client takes a model of "
        f"{size:,} bytes, does its steps and sends the model (one of {max(room, 0):,.0f} bytes at most); allowed: a longer time"
    ]


def _built(q: Question, config: Config) -> tuple[Task | None, list[str]]:
    """Build one model, and return its task and what is wrong."""
    from rayfed import task
    from rayfed.launch import vmap_check
    from rayfed.models import pretrained
    from rayfed.models.start import start_from

    known = {**q.federation, "targets": Targets.of(q.federation["targets"])}
    known["modalities"] = modalities.of(q.federation["modalities"])
    about = cast("Federation", SimpleNamespace(**known))
    name = config.task.model.name
    try:
        with refusing(f"task.model: {name} cannot be built"):
            if name.startswith("hf:") and (problems := pretrained.size_problems(config, about.answers, about.kind)):
                return None, problems
            built = task.of(about.task)(config, about, "cpu", start_from(config))
            built.init_params(0)  # what `init.from` holds must fit
            own = name not in models.KNOWN and not name.startswith("hf:")
            batch, judged = built.batch(q.rows), bool(built.predicts)  # whether `apply` gives (B, answers)
            problems = built.check_network(batch) if own and built.answer_shape(len(batch["x"])) else []
            if _needs_vmap(config) and judged and not problems:
                problems = vmap_check.problems(config, built, batch)
            if q.splits_model and not problems:
                _ = built.feature_size  # ConfigError where there are no features before a last linear layer
            problems = problems or cut.misplaced(built) or methods.of(config).fits_model(built)
            if q.no_buffers and built.buffers:
                problems = [*problems, _buffer_problem(config, q.no_buffers, built.buffers)]
            return built, problems
    except ConfigError as e:
        return None, e.problems


def _crc(name: str) -> int:
    """Return a checksum of the file of path/to/file.py:NAME."""
    return zlib.crc32(user_code.content(name.rpartition(":")[0]) or b"")


def _buffer_problem(config: Config, why: str, buffers: tuple[str, ...]) -> str:
    names = ", ".join(buffers[:3]) + (" ..." if len(buffers) > 3 else "")
    return (
        f"method.name: {config.method.name} found, task.model: {config.task.model.name} writes buffers in training ({names}), and "
        f"{why}; allowed: local.buffers: frozen, or a network without them"
    )


def _files(config: Config) -> Iterator[tuple[str, int, int]]:
    """Yield (path, size, time) of the files that the model and its start are read from."""
    folders = []
    for model in families.models(config.task.model).values():
        if model.name.startswith("hf:"):
            folders = [folder.locate(model.name)]
        elif model.name not in models.KNOWN:
            yield model.name, 0, _crc(model.name)
    if config.init.from_ is not None:
        folders += [Path(config.init.from_), Path(config.init.from_) / "model"]
    for file in sorted(f for where in folders if where.is_dir() for f in where.iterdir() if f.is_file()):
        about = file.stat()
        yield str(file), about.st_size, about.st_mtime_ns


def _needs_vmap(config: Config) -> bool:
    """Return whether own code has to run vectorised: the method's visits are then tried too."""
    networks = [m.name for m in families.models(config.task.model).values()]
    own = ".py:" in config.method.name or any(n not in models.KNOWN for n in networks)
    return config.resources.vectorised and own and config.adapter.kind == "none"


def _known(key: str) -> Path:
    """Return the file whose presence says that a model can be built."""
    return cache_folder() / "checked" / key


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(check_models({n: Question(**q) for n, q in given.items()})))
