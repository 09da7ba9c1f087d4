"""Instructions as token ids and targets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rayfed import partition
from rayfed.data import instruct
from rayfed.errors import ConfigError
from rayfed.storage import cache
from tests import toy
from tests.configs import refusal
from tests.conftest import ROOT
from tests.pretrained_runs import resident
from tests.records import changes
from tests.tiny_lm import WORDS

pytestmark = pytest.mark.usefixtures("fresh_cache")


@pytest.fixture
def places(record_places: dict[str, Any]) -> dict[str, Any]:
    return record_places


def test_records_are_the_tokenizers_ids_with_targets_on_the_answer(places: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    fed = partition.build(toy.config(**changes(places)))
    tokenizer = AutoTokenizer.from_pretrained(places["gpt2"])
    x = fed.arrays["x"]
    assert (
        fed.kind == "instruct" and fed.classes == 3 and x.dtype == np.int32 and x.shape == (72, 2, fed.input_shape[1])
    )
    assert fed.label_names == ("answer", "copy", "say twice")
    for row, r in zip(x, places["rows"], strict=True):
        paragraphs = [f"### Instruction:\n{r['instruction']}"]
        paragraphs += [f"### Input:\n{r['context']}"] if r["context"] else []
        prompt = "\n\n".join([*paragraphs, "### Response:\n"])
        whole = [*tokenizer(prompt + r["response"])["input_ids"], 1]
        answer = [*tokenizer(r["response"])["input_ids"], 1]
        assert row[0][row[0] >= 0].tolist() == whole
        assert row[1][: len(whole)].tolist() == [-1] * (len(whole) - len(answer)) + answer
        assert (row[:, len(whole) :] == -1).all()


def test_another_process_tokenises_and_torch_stays_out(places: dict[str, Any]) -> None:
    code = (
        "import sys, json; from rayfed.launch.preflight import load_request; from rayfed.launch.federations import Federations;"
        f"c = load_request(json.loads({json.dumps(json.dumps(toy.config(**changes(places)).to_dict()))}));"
        "print(json.dumps([Federations().of(c).arrays['x'].tolist(), 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    x, torch_came = json.loads(done.stdout)
    assert not torch_came
    assert partition.build(toy.config(**changes(places))).arrays["x"].tolist() == x
    assert len(list((cache.cache_folder() / "tokens").iterdir())) == 1  # and this process read it


def test_an_own_template(places: dict[str, Any]) -> None:
    data = {"template": "{instruction} : {input} answer : {response} ."}
    x = partition.build(toy.config(**changes(places, task={"data": data}))).arrays["x"]
    known = ["[UNK]", "</s>", *WORDS]
    first = [known[i] for i in x[0][0] if i >= 0]
    r = places["rows"][0]
    assert " ".join(first) == f"{r['instruction']} : answer : {r['response']} . </s>"
    assert [known[i] for i in x[0][1] if i >= 0] == [*f"{r['response']} .".split(), "</s>"]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{instruction} {respnse}", "{respnse} is unknown (did you mean 'response'?)"),
        ("{response} {instruction}", "{response} once, after all others"),
        ("{input} {response}", "it needs {instruction}"),
        ("{instruction} { {response}", "twice"),
        ("{instruction} {response:>9}", "no format"),
    ],
)
def test_templates_that_cannot_be(places: dict[str, Any], template: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        toy.config(**changes(places, task={"data": {"template": template}}))
    assert "task.data.template: " in str(caught.value) and says in str(caught.value)


def test_cutting_keeps_the_lead_and_a_part_of_the_answer() -> None:
    ids = np.arange(20)  # 12 of the prompt, the last 3 lead into the answer, 8 of the answer
    for length, want in (
        (20, [*range(20)]),
        (16, [*range(16)]),  # the prompt leaves a quarter
        (12, [*range(6), 9, 10, 11, 12, 13, 14]),  # 9 of the prompt: its end stays, its middle goes
        (4, [9, 10, 11, 12]),
    ):
        got, prompt = instruct.cut(ids, 12, 3, length)
        assert got.tolist() == want and prompt == sum(i < 12 for i in want)
    got, prompt = instruct.cut(np.arange(14), 12, 3, 12)  # a short answer stays whole
    assert got.tolist() == [*range(7), 9, 10, 11, 12, 13] and prompt == 10


def test_records_over_the_length(places: dict[str, Any], tmp_path: Path) -> None:
    def build(**data: Any) -> Any:
        return partition.build(toy.config(**changes(places, task={"data": data})))

    whole = build()
    sizes = (whole.arrays["x"][:, 0] >= 0).sum(1)
    length = int(np.median(sizes))
    over = int((sizes > length).sum())
    assert 0 < over < 60
    cut = build(length=length).arrays["x"]
    assert cut.shape == (72, 2, length) and (cut[:, 1] >= 0).any(1).all()
    assert len(build(length=length, too_long="drop").arrays["x"]) == 72 - over
    said = f"{over} of 72 records of parquet:{places['data']} have more than {length} tokens and were "
    assert build(length=length).notes == (f"{said}cut (task.data.length)",)
    assert build(length=length, too_long="drop").notes == (f"{said}left out (task.data.too_long: drop)",)
    assert whole.notes == ()
    c = toy.config(**changes(places, task={"data": {"length": length}}))
    done = toy.run_folder("fedit", tmp_path, rounds=1, **changes(places, task={"data": {"length": length}}))
    assert partition.Federation.from_numpy(partition.build(c).numpy()).notes == (f"{said}cut (task.data.length)",)
    assert f"{said}cut (task.data.length)" in json.loads((done.folder.path / "summary.json").read_text())["notes"]
    with pytest.raises(ConfigError, match=rf"{over} of 72 records .* more than {length} tokens"):
        build(length=length, too_long="error")
    with pytest.raises(ConfigError, match=r"'dorp' found .did you mean 'drop'"):
        build(too_long="dorp")
    with pytest.raises(ConfigError, match=r"takes at most 48 tokens"):
        build(length=49)


def test_records_without_an_answer(places: dict[str, Any], tmp_path: Path) -> None:
    table = pq.read_table(places["data"] / "train.parquet").to_pylist()
    table[3]["response"] = table[7]["response"] = "  "
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "data" / "train.parquet")
    here = {**places, "data": tmp_path / "data"}
    with pytest.raises(ConfigError, match=r"2 records of .* empty response.*too_long: drop"):
        partition.build(toy.config(**changes(here)))
    kept = partition.build(toy.config(**changes(here, task={"data": {"too_long": "drop"}})))
    assert len(kept.arrays["x"]) == 58
    assert [n.split(" records of ")[0] for n in kept.notes] == ["2 of 60"] and "have an empty response" in kept.notes[0]
    table[3]["response"] = None
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "data" / "train.parquet")
    with pytest.raises(ConfigError, match=r"task.data.response: 1 rows of .* have no response"):
        partition.build(toy.config(**changes(here)))


def test_columns_and_options_that_do_not_fit(places: dict[str, Any]) -> None:
    def problem(**data: Any) -> str:
        return refusal(lambda: toy.config(**changes(places, task={"data": data})))

    assert "has no column 'respons' (did you mean 'response'?)" in problem(response="respons")
    assert "task.data.packing: True found, allowed: false" in problem(packing=True)
    assert "task.data.label: " in problem(label="kategory") and "did you mean 'category'" in problem(label="kategory")
    with pytest.raises(ConfigError, match=r"holds instructions; allowed: hf:NAME_OR_DIR"):
        partition.build(toy.config(**changes(places, task={"model": {"name": "mlp"}}, adapter={"kind": "none"})))
    with pytest.raises(ConfigError, match=r"label_permutation found"):
        partition.build(toy.config(**changes(places, federation={"groups": {"kind": "label_permutation", "count": 2}})))


def test_a_tokenizer_without_padding_or_end(places: dict[str, Any]) -> None:
    x = partition.build(toy.config(**changes(places, "mute"))).arrays["x"]
    assert not (x == 1).any()  # no end token is known, none is added
    task = resident(toy.config(**changes(places, "mute"))).task
    assert bool(torch.isfinite(task.loss(task.initial, {"x": torch.as_tensor(x[:4])})).all())


def test_a_model_that_is_no_causal_language_model(places: dict[str, Any], tmp_path: Path) -> None:
    from transformers import BertConfig, BertLMHeadModel, LlamaConfig, LlamaModel

    small: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    BertLMHeadModel(BertConfig(vocab_size=32, **small)).save_pretrained(tmp_path / "bert")
    LlamaModel(LlamaConfig(vocab_size=32, **small)).save_pretrained(tmp_path / "headless")
    LlamaModel(LlamaConfig(vocab_size=8, **small)).save_pretrained(tmp_path / "narrow")
    for name, says in (
        ("bert", "sees? what comes after|see what comes after"),
        ("headless", "lacks lm_head.weight"),
        ("narrow", "the model knows 8"),
    ):
        for f in places["gpt2"].glob("token*"):
            (tmp_path / name / f.name).write_bytes(f.read_bytes())
        with pytest.raises(ConfigError, match=says):
            resident(toy.config(**changes({**places, name: tmp_path / name}, name, adapter={"kind": "full"})))
