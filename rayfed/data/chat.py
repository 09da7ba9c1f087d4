"""Chats as token ids and targets: the tokenizer's own chat template, a loss on what the assistant says in every turn.

A record is a list of messages {role, content}. Targets are the ids where an assistant's message stands, with whatever the template
puts behind it up to the next message (its end mark), and -1 elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfed.data import columns, instruct, tokens
from rayfed.errors import ConfigError
from rayfed.models import folder

if TYPE_CHECKING:
    import pyarrow as pa

    from rayfed.config.schema import Config
    from rayfed.data import Dataset

COLUMNS = ("messages", "conversations")  # the usual names of the column
LENGTH = 512  # tokens of a chat, where `task.data.length` does not say
SHARED = {"human": "user", "gpt": "assistant"}  # roles in ShareGPT's form, {from, value}
CHATML = (  # `template: chatml`
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def is_chat(of: pa.DataType) -> bool:
    """Return whether a column's type is lists of {role, content}, or of ShareGPT's {from, value}."""
    import pyarrow as pa

    if columns.kind_of(of) != "lists" or not pa.types.is_struct(of.value_type):
        return False
    names = {f.name for f in of.value_type}
    return {"role", "content"} <= names or {"from", "value"} <= names


def records(column: pa.ChunkedArray, name: str, file: str) -> np.ndarray:
    """Return (n, 1) objects, the messages of each row as JSON. ConfigError for a row that is no chat with an assistant."""
    out = np.empty((len(column), 1), object)
    for row, found in enumerate(columns.plain(column, name, file, "messages").to_pylist()):
        out[row, 0] = record(found or (), f"task.data.messages: row {row} of {file}")
    return out


def record(messages: Sequence[Mapping[str, Any]], where: str) -> str:
    """Return a chat as JSON; where: what a ConfigError says of one without a message of the assistant, or of another form."""
    if not len(messages):
        raise ConfigError(f"{where} has no messages; allowed: at least one of the assistant")
    chat = [_message(m, where) for m in messages]
    if not any(m["role"] == "assistant" for m in chat):
        roles = ", ".join(dict.fromkeys(m["role"] for m in chat))
        raise ConfigError(f"{where} has messages of {roles}; needed: one of the assistant, which is learned")
    return json.dumps(chat, ensure_ascii=False)


def _message(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    role, content = given.get("role", given.get("from")), given.get("content", given.get("value"))
    if not isinstance(role, str) or not isinstance(content or "", str):
        raise ConfigError(
            f"{where} has a message {json.dumps(given, default=str):.80}, needed: {{role: TEXT, content: TEXT}}"
        )
    rest = {k: v for k, v in given.items() if v is not None and k not in ("role", "from", "content", "value")}
    return {"role": SHARED.get(role, role), "content": content or "", **rest}


def tokenised(dataset: Dataset, config: Config) -> Dataset:
    """Return the data set with x (n, 2, L) int32: ids (-1 on padding) and targets (-1 but on the assistant's tokens).

    L <= `task.data.length`. A chat that is longer: `too_long: truncate` cuts its end, and leaves it out where no answer is left;
    `drop` leaves it out; `error` refuses the data. ConfigError where the model has no tokenizer, no chat template (and `template`
    gives none), or one by which answers cannot be found.
    """
    options = config.task.data.options
    where, length = tokens.tokenizer_folder(dataset, config, LENGTH)
    instruct.no_head(dataset, config)
    template = options.get("template", "")
    if template and not instruct.of_chats(template):
        raise ConfigError(
            f"task.data.template: {template!r} found, {dataset.name} holds chats; allowed: chatml, or a text in Jinja"
        )
    chats = [str(r[0]) for part in (dataset.train, dataset.test) for r in part.x]
    found = tokens.cached(where, {"chat": chats}, template, "chat")
    mode = options.get("too_long", instruct.TOO_LONG[0])
    over = [len(ids) > length for ids in found["ids"]]
    if any(over) and mode == "error":
        raise ConfigError(
            f"task.data.length: {sum(over)} of {len(chats)} chats of {dataset.name} have more than {length} tokens; allowed: a longer "
            "length, or too_long: truncate or drop"
        )
    rows, kept = [], []
    for i, (ids, said) in enumerate(zip(found["ids"], found["answer"], strict=True)):
        if said[:length].any() and not (over[i] and mode == "drop"):
            kept.append(i)
            rows.append((ids[:length], said[:length].astype(bool)))
    instruct.check_vocabulary([(ids, 0) for ids, _ in rows], where)
    x = np.full((len(rows), 2, max((len(ids) for ids, _ in rows), default=1)), -1, np.int32)
    for row, (ids, said) in zip(x, rows, strict=True):
        row[0, : len(ids)] = ids
        row[1, : len(ids)] = np.where(said, ids, -1)
    made = instruct.parts(dataset, x, np.array(kept, np.int64))
    if not len(made.train.y):
        raise ConfigError(f"task.data.length: no chat of {dataset.name} has an answer within {length} tokens")
    cut = sum(over[i] for i in kept)
    happened = {
        f"have more than {length} tokens and were cut (task.data.length)": cut,
        "were left out": len(chats) - len(kept),
    }
    notes = [f"{m:,} of {len(chats):,} chats of {dataset.name} {what}" for what, m in happened.items() if m]
    return replace(made, notes=(*dataset.notes, *notes))


def encode(where: Path, texts: Mapping[str, list[str]], template: str) -> dict[str, Any]:
    """Return `ids` of each chat, and `answer`: 1 on the assistant's tokens; template: "" for the tokenizer's own."""
    tokenizer = folder.tokenizer(where)
    if not tokenizer.is_fast:
        raise ConfigError(f"task.model: {where} has a tokenizer that does not say where in a text its tokens are")
    source = CHATML if template == "chatml" else template or tokenizer.chat_template
    if not isinstance(source, str):
        raise ConfigError(
            f"task.data.messages: the tokenizer of {where} has no chat template; allowed: template: chatml, or a text in Jinja"
        )
    chats = [json.loads(t) for t in texts["chat"]]
    if re.search(r"\{%-?\s*generation\b", source):
        return _by_marks(tokenizer, chats, source)
    made = [_rendered(tokenizer, chat, source, f"chat {i} of {len(chats)}") for i, chat in enumerate(chats)]
    whole = [text for text, _ in made]
    got = (
        tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        if whole
        else {"input_ids": [], "offset_mapping": []}
    )
    out: dict[str, Any] = {"ids": [], "answer": []}
    for ids, offsets, (_, spans) in zip(got["input_ids"], got["offset_mapping"], made, strict=True):
        said = [any(b > start and a < end for start, end in spans) for a, b in offsets]  # over the border: the answer's
        out["ids"].append(np.array(ids, np.int32))
        out["answer"].append(np.array(said, np.int32))
    return out


def _by_marks(tokenizer: Any, chats: Sequence[Any], source: str) -> dict[str, Any]:
    """Encode by a template that marks what is generated ({% generation %})."""
    out: dict[str, Any] = {"ids": [], "answer": []}
    for chat in chats:
        got = tokenizer.apply_chat_template(
            chat, chat_template=source, return_dict=True, return_assistant_tokens_mask=True
        )
        out["ids"].append(np.array(got["input_ids"], np.int32))
        out["answer"].append(np.array(got["assistant_masks"], np.int32))
    return out


def _rendered(tokenizer: Any, chat: Sequence[Any], source: str, name: str) -> tuple[str, list[tuple[int, int]]]:
    """Return a chat as text, and where in it the assistant's messages stand: from what invites one to what begins the next."""

    def text(messages: Sequence[Any], invites: bool) -> str:
        try:
            made: str = tokenizer.apply_chat_template(
                list(messages), chat_template=source, tokenize=False, add_generation_prompt=invites
            )
        except Exception as e:  # templates raise what they like, about orders of roles for instance
            raise ConfigError(
                f"task.data.messages: the chat template refuses {name}: {' '.join(str(e).split())[:200]}"
            ) from None
        return made

    whole, spans = text(chat, False), []
    for k, message in enumerate(chat):
        if message["role"] != "assistant":
            continue
        before = text(chat[:k], True) if k else ""
        after = whole if k == len(chat) - 1 else text(chat[: k + 1], False)
        if not (after.startswith(before) and whole.startswith(after)):
            raise ConfigError(
                f"task.data.messages: the chat template writes the beginning of {name} otherwise than the whole, so that answers cannot "
                "be found in it; allowed: a template that marks them ({% generation %}), or template: chatml"
            )
        if message["content"].strip():
            spans.append((len(before), len(after)))
    return whole, spans
