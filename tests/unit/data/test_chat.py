"""Chats as token ids and targets on what the assistant says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayfed import partition
from rayfed.data import chat
from tests import toy
from tests.configs import refusal
from tests.pretrained_runs import resident
from tests.records import changes
from tests.tiny_lm import WORDS

pytestmark = pytest.mark.usefixtures("fresh_cache")
KNOWN = ["[UNK]", "</s>", *WORDS]
# A template of words that the tiny tokenizer knows: "# the" before a user's words, "answer :" before the assistant's, "</s>" behind them.
PLAIN = (
    "{% for m in messages %}{{ '# the ' if m['role'] == 'user' else 'answer : ' }}{{ m['content'] }}"
    "{{ ' </s> ' if m['role'] == 'assistant' else ' ' }}{% endfor %}{% if add_generation_prompt %}answer : {% endif %}"
)
MARKED = PLAIN.replace(
    "{{ m['content'] }}",
    "{% if m['role'] == 'user' %}{{ m['content'] }}{% else %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endif %}",
)


def turns(*said: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": words} for i, words in enumerate(said)]


def write(where: Path, chats: list[Any], column: str = "messages") -> Path:
    where.mkdir(exist_ok=True)
    pq.write_table(
        pa.Table.from_pylist([{column: c, "task": f"t{i % 2}"} for i, c in enumerate(chats)]), where / "train.parquet"
    )
    return where


@pytest.fixture
def places(record_places: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    words = ["red", "blue", "one", "two"]
    chats = [
        turns(f"copy {words[i % 4]}", words[i % 4], "say twice", f"{words[i % 4]} {words[i % 4]}") for i in range(24)
    ]
    return {**record_places, "data": write(tmp_path / "chats", chats)}


def built(places: dict[str, Any], **data: Any) -> Any:
    return partition.build(toy.config(**changes(places, task={"data": {"template": PLAIN, **data}})))


def words(ids: np.ndarray) -> str:
    return " ".join(KNOWN[i] for i in ids if i >= 0)


def test_every_answer_is_learned_and_nothing_else(places: dict[str, Any]) -> None:
    fed = built(places)
    x = fed.arrays["x"]
    assert fed.kind == "instruct" and fed.task == "instruct" and x.dtype == np.int32 and fed.label_names == ("t0", "t1")
    assert {words(r[0]) for r in x} == {
        f"# the copy {w} answer : {w} </s> # the say twice answer : {w} {w} </s>" for w in ("red", "blue", "one", "two")
    }
    for row in x:
        said = words(row[0]).split()
        assert words(row[1]).split() == [said[6], "</s>", said[14], said[15], "</s>"]
        assert ((row[1] == -1) | (row[1] == row[0])).all()


def test_a_template_that_marks_what_is_generated(places: dict[str, Any]) -> None:
    for row in built(places, template=MARKED).arrays["x"]:
        said = words(row[0]).split()
        assert words(row[1]).split() == [said[6], said[14], said[15]]


def test_the_tokenizers_own_template_is_taken(places: dict[str, Any], tmp_path: Path) -> None:
    import shutil

    own = tmp_path / "own"
    shutil.copytree(places["gpt2"], own)
    (own / "chat_template.jinja").write_text(PLAIN)
    plain = changes({**places, "gpt2": own})
    assert np.array_equal(partition.build(toy.config(**plain)).arrays["x"], built(places).arrays["x"])
    (own / "chat_template.jinja").write_text(
        PLAIN.replace("# the ", "# ")
    )  # kept ids are not those of another template
    assert words(partition.build(toy.config(**plain)).arrays["x"][0][0]).startswith("# copy")


def test_sharegpt_and_systems(record_places: dict[str, Any], tmp_path: Path) -> None:
    said = [{"from": "human", "value": "copy red"}, {"from": "gpt", "value": "red"}]
    fed = built({**record_places, "data": write(tmp_path / "c", [said] * 20, "conversations")})
    assert {words(r[0]) for r in fed.arrays["x"]} == {"# the copy red answer : red </s>"}


def test_chats_over_the_length(places: dict[str, Any]) -> None:
    whole = built(places).arrays["x"]
    assert whole.shape[2] == 17
    cut = built(places, length=10)
    assert cut.arrays["x"].shape[2] == 10 and "24 of 24 chats" in cut.notes[0]
    assert np.array_equal(cut.arrays["x"], whole[:, :, :10])
    assert "no chat of" in refusal(built, places, length=5)  # before the first answer
    assert "no chat of" in refusal(built, places, length=10, too_long="drop")
    assert "24 of 24 chats" in refusal(built, places, length=10, too_long="error")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([], "row 1 of"),
        ([{"role": "user", "content": "red"}], "has messages of user; needed: one of the assistant"),
    ],
)
def test_rows_that_are_no_chats(record_places: dict[str, Any], tmp_path: Path, row: Any, says: str) -> None:
    where = write(tmp_path / "c", [turns("copy red", "red"), row])
    assert says in refusal(built, {**record_places, "data": where})


def test_templates_that_cannot_be(places: dict[str, Any]) -> None:
    bare = changes(places)
    said = refusal(partition.build, toy.config(**bare))
    assert "has no chat template; allowed: template: chatml, or a text in Jinja" in said
    last = "{% for m in messages %}{{ m['content'] }}{{ ' </s>' if loop.last else ' . ' }}{% endfor %}"
    assert "writes the beginning of chat 0 of 24 otherwise than the whole" in refusal(built, places, template=last)
    never = "{% if true %}{{ raise_exception('no') }}{% endif %}"
    assert "the chat template refuses chat 0 of 24: no" in refusal(built, places, template=never)
    assert "holds chats; allowed: chatml" in refusal(built, places, template="{instruction} {response}")


def test_chatml(places: dict[str, Any]) -> None:
    made = chat.encode(places["gpt2"], {"chat": [json.dumps(turns("copy red", "red"))]}, "chatml")
    said = [KNOWN[i] for i, a in zip(made["ids"][0], made["answer"][0], strict=True) if a]
    assert said[0] == "red" and "copy" not in said


OWN = """
from rayfed.data import Dataset, Part

def chats(seed, rows=24, broken=None, template=""):  # what it takes by name is read as of a file
    turns = lambda *said: [{"role": ("user", "assistant")[i % 2], "content": words} for i, words in enumerate(said)]
    found = [turns("copy red", "red", "say twice", "red red") if i % 2 else turns("copy two", "two") for i in range(rows)]
    if broken is not None:
        found[broken] = found[broken][:1] if broken else "copy"
    y = [i % 2 for i in range(rows)]
    return Dataset("mine", Part(found, y), Part([], []), 2, ("long", "short"), "instruct")
"""


def test_an_own_function_gives_chats(record_places: dict[str, Any], tmp_path: Path) -> None:
    """Of unequal numbers of turns; the ids and targets of the same rows in a file."""
    (tmp_path / "own.py").write_text(OWN)
    mine = {"name": f"{tmp_path / 'own.py'}:chats", "template": PLAIN}
    given = changes({**record_places, "data": tmp_path}, task={"data": mine})
    given["task"]["data"] = mine
    x = partition.build(toy.config(**given)).arrays["x"]
    rows = {words(row[1]) for row in x}
    assert rows == {"two </s>", "red </s> red red </s>"}
    given["task"]["data"] = {**mine, "broken": 3}
    assert "train: row 3 has messages of user; needed: one of the assistant" in refusal(
        lambda: partition.build(toy.config(**given))
    )


def test_a_step_learns_from_chats(places: dict[str, Any]) -> None:
    import torch

    task = resident(toy.config(**changes(places, task={"data": {"template": PLAIN}}))).task
    x = torch.as_tensor(built(places).arrays["x"][:4])
    batch = {"x": x, "w": torch.ones(4)}
    logp = torch.log_softmax(task.apply(task.initial, x), -1)
    for i, row in enumerate(x):
        at = [p for p in range(1, x.shape[2]) if row[1, p] >= 0]
        by_hand = -sum(float(logp[i, p - 1, row[1, p]].detach()) for p in at) / len(at)
        assert float(task.loss(task.initial, batch)[i].detach()) == pytest.approx(by_hand, rel=1e-4)
