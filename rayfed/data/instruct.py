"""Instructions with answers as token ids and targets: a prompt from a template, a loss on the answer alone.

A record is one sequence: what `task.data.template` makes of instruction, input and response, and an end token. Targets are the
ids where the answer stands, its end token among them, and -1 elsewhere.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rayfed.data import tokens
from rayfed.errors import ConfigError, nearest
from rayfed.models import folder

if TYPE_CHECKING:
    from rayfed.config.schema import Config
    from rayfed.data import Dataset

LENGTH = 256  # tokens of a record, where `task.data.length` does not say
FIELDS = ("instruction", "input", "response")
COLUMNS = {  # the usual names of a record's columns
    "instruction": ("instruction", "prompt", "question"),
    "input": ("input", "context"),
    "response": ("response", "output", "answer", "completion"),
}
LABELS = ("label", "category", "task")
OPTIONS = (*FIELDS, "template", "too_long", "packing", "loss_on")
TOO_LONG = ("truncate", "drop", "error")
LOSS_ON = ("answer", "all")
TEMPLATE = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n{response}"


class Layout(NamedTuple):
    """A template in three: paragraphs of the prompt, the words that lead into the answer, and what the answer is."""

    prompt: str
    lead: str
    answer: str


def option_problems(o: dict[str, Any]) -> list[str]:
    """Return what is wrong with the options of a set of instructions."""
    out = [
        f"task.data.{n}: {o[n]!r} found, allowed: the name of a column"
        for n in FIELDS
        if n in o and not isinstance(o[n], str)
    ]
    for n, allowed in (("too_long", TOO_LONG), ("loss_on", LOSS_ON)):
        v = o.get(n, allowed[0])
        if v not in allowed:
            out.append(f"task.data.{n}: {v!r} found{nearest(str(v), allowed)}, allowed: {', '.join(allowed)}")
    if o.get("packing", False) is not False:
        out.append(
            f"task.data.packing: {o['packing']!r} found, allowed: false; several records in one sequence would change what an "
            "example is, and losses, weights and counts of clients are per example"
        )
    if "length" in o and o["length"] == 1:
        out.append("task.data.length: 1 found, allowed: at least 2 tokens, one of the prompt and one of the answer")
    template = o.get("template", TEMPLATE)
    if of_chats(template):
        return out
    try:
        layout(template)
    except ConfigError as e:
        out += e.problems
    return out


def of_chats(template: Any) -> bool:
    """Return whether `task.data.template` is one of chats, in Jinja (`rayfed.data.chat`), and none of records."""
    return isinstance(template, str) and (template == "chatml" or "{%" in template)


def layout(template: Any) -> Layout:
    """Return the template in its three pieces. ConfigError for unknown fields, or an answer that is not the last of them."""
    where = f"task.data.template: {template!r} found"
    fields = ", ".join(f"{{{f}}}" for f in FIELDS)
    if not isinstance(template, str):
        raise ConfigError(f"{where}, allowed: a text with {fields}")
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as e:
        raise ConfigError(f"{where}: {e}; a brace that is no field is written twice") from None
    found = [f for _, f, _, _ in pieces if f is not None]
    unknown = [f for f in found if f not in FIELDS]
    if unknown:
        raise ConfigError(f"{where}: {{{unknown[0]}}} is unknown{nearest(unknown[0], FIELDS)}; known: {fields}")
    if any(spec or turn for _, _, spec, turn in pieces):
        raise ConfigError(f"{where}: fields take no format; allowed: {fields}")
    if found.count("response") != 1 or found[-1] != "response" or "instruction" not in found:
        raise ConfigError(f"{where}: it needs {{instruction}}, and {{response}} once, after all others")
    before, answer = re.split(r"(?<!\{)(?=\{response\})", template, maxsplit=1)
    last = max(before.rfind("{instruction}") + 13, before.rfind("{input}") + 7)
    return Layout(before[:last], before[last:], answer)


def rendered(made: Layout, record: Sequence[str]) -> tuple[str, str, str]:
    """Return (prompt, lead, answer) of a record's instruction, input and response.

    A paragraph of the prompt that holds {input}, and not {instruction}, is left out where the record has none.
    """
    values = dict(zip(FIELDS, record, strict=True))
    prompt = made.prompt
    if not values["input"].strip():
        prompt = "\n\n".join(p for p in prompt.split("\n\n") if "{input}" not in p or "{instruction}" in p)
    return prompt.format(**values), made.lead.format(**values), made.answer.format(**values)


def tokenised(dataset: Dataset, config: Config) -> Dataset:
    """Return the data set with x (n, 2, L) int32: ids (-1 on padding) and targets (-1 but on answer tokens); L <= `task.data.length`.

    A record that is longer: `too_long: truncate` cuts the right end of the prompt, in front of the words that lead into the
    answer, but never so little that a quarter of the length is not left for the answer, then the answer's end; `drop` leaves
    the record out; `error` refuses the data. Records without an answer are refused, or left out under `drop`.
    ConfigError where the model has no tokenizer or is too short for the sequences.
    """
    options = config.task.data.options
    where, length = tokens.tokenizer_folder(dataset, config, LENGTH)
    no_head(dataset, config)
    pieces, mode = layout(options.get("template", TEMPLATE)), options.get("too_long", TOO_LONG[0])
    answers = [str(r[2]).strip() for part in (dataset.train, dataset.test) for r in part.x]
    empty = np.array([not a for a in answers], bool)
    if empty.any() and mode != "drop":
        raise ConfigError(
            f"task.data: {int(empty.sum())} records of {dataset.name} have an empty response; fill them, or leave them out with "
            "too_long: drop"
        )
    records = [rendered(pieces, r) for part in (dataset.train, dataset.test) for r in part.x]
    rows, kept, over = _cut_all(records, empty, where, length, drop=mode == "drop")
    if over and mode == "error":
        raise ConfigError(
            f"task.data.length: {over} of {len(records)} records of {dataset.name} have more than {length} tokens; allowed: a longer "
            "length, or too_long: truncate or drop"
        )
    check_vocabulary(rows, where)
    x = np.full((len(rows), 2, max((len(ids) for ids, _ in rows), default=1)), -1, np.int32)
    for row, (ids, prompt) in zip(x, rows, strict=True):
        row[0, : len(ids)] = ids
        row[1, prompt : len(ids)] = ids[prompt:]
    made = parts(dataset, x, kept)
    if not len(made.train.y):
        raise ConfigError(f"task.data.length: no record of {dataset.name} has at most {length} tokens and an answer")
    so = "left out (task.data.too_long: drop)" if mode == "drop" else "cut (task.data.length)"
    happened = {
        f"have more than {length} tokens and were {so}": over,
        f"have an empty response and were {so}": int(empty.sum()),
    }
    notes = [f"{m:,} of {len(records):,} records of {dataset.name} {what}" for what, m in happened.items() if m]
    return replace(made, notes=(*dataset.notes, *notes))


def _cut_all(
    records: Sequence[tuple[str, str, str]], empty: np.ndarray, where: Path, length: int, drop: bool
) -> tuple[list[tuple[np.ndarray, int]], np.ndarray, int]:
    """Return (`cut`'s ids and prompt length of the records that stay, their numbers, how many were too long).

    records: as by `rendered`; empty: mask of those without an answer, which do not stay; drop: those too long neither.
    """
    texts = {"prompt": [p + lead for p, lead, _ in records], "answer": [a for _, _, a in records]}
    found = tokens.cached(where, texts, "", "instruct")
    rows, kept, over = [], [], 0
    for i, (ids, ends) in enumerate(zip(found["ids"], found["ends"], strict=True)):
        before, leading = len(records[i][0]), len(records[i][1])
        prompt = int((ends <= before + leading).sum())  # a token over the border belongs to the answer
        lead = int((ends[:prompt] > before).sum())
        long = len(ids) > length
        over += long and not empty[i]
        if not empty[i] and not (long and drop):
            kept.append(i)
            rows.append(cut(ids, prompt, lead, length))
    return rows, np.array(kept, np.int64), over


def check_vocabulary(rows: Sequence[tuple[np.ndarray, int]], where: Path) -> None:
    """Raise ConfigError for a token that the model in `where` does not know."""
    size = int(folder.architecture(where).get("vocab_size") or 0)
    most = max((int(ids.max()) for ids, _ in rows), default=-1)
    if size and most >= size:
        raise ConfigError(
            f"task.model: the tokenizer of {where} gives token {most}, the model knows {size}; they do not belong together"
        )


def no_head(dataset: Dataset, config: Config) -> None:
    """Raise ConfigError where the model is asked for a head that is not its own."""
    if "head" in config.task.model.options:
        raise ConfigError(
            f"task.model.head: {config.task.model.options['head']!r} found, {dataset.name} holds instructions, whose model keeps "
            "its own head; leave it out"
        )


def parts(dataset: Dataset, x: np.ndarray, kept: np.ndarray) -> Dataset:
    """Return the data set of the records that stay. x: (m, 2, L) ids and targets; kept: (m,) their numbers, training rows first."""
    n = len(dataset.train.y)
    of_train = kept < n
    train = replace(dataset.train.take(kept[of_train]), x=x[of_train])
    test = replace(dataset.test.take(kept[~of_train] - n), x=x[~of_train])
    return replace(dataset, train=train, test=test)


def cut(ids: np.ndarray, prompt: int, lead: int, length: int) -> tuple[np.ndarray, int]:
    """Return (at most `length` of the ids, how many of them are the prompt's).

    The last `lead` tokens of the prompt stay with its start.
    """
    answer = len(ids) - prompt
    room = min(prompt, length - min(answer, max(1, length // 4)))
    head = max(room - lead, 0)
    kept = np.concatenate([ids[:head], ids[prompt - (room - head) : prompt], ids[prompt:]])
    return kept[:length], room


def encode(where: Path, texts: Mapping[str, list[str]], length: str) -> dict[str, Any]:
    """Return `ids` of each record, its end token among them, and `ends`: where in the text each token ends. Nothing is cut."""
    tokenizer = folder.tokenizer(where)
    if not tokenizer.is_fast:
        raise ConfigError(f"task.model: {where} has a tokenizer that does not say where in a text its tokens are")
    end = tokenizer.eos_token_id
    if end is None:
        end = folder.architecture(where).get("eos_token_id")
    end = end[0] if isinstance(end, list) else end
    records = [p + a for p, a in zip(texts["prompt"], texts["answer"], strict=True)]
    got = tokenizer(records, return_offsets_mapping=True, return_special_tokens_mask=True) if records else None
    ids: list[Any] = []
    ends: list[Any] = []
    for i, t in enumerate(records):
        assert got is not None
        special = got["special_tokens_mask"][i]
        last = max((j + 1 for j, s in enumerate(special) if not s), default=0)  # a closing token is ours to set
        more = [] if end is None else [int(end)]
        ids.append(np.array([*got["input_ids"][i][:last], *more], np.int32))
        ends.append(np.array([*(b for _, b in got["offset_mapping"][i][:last]), *(len(t) + 1 for _ in more)], np.int32))
    return {"ids": ids, "ends": ends}
