"""The tutorial's commands, with a tiny model and records of its form."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from rayfed.cli import main
from tests.conftest import ROOT
from tests.tiny_lm import make_lm

PAGE = (ROOT / "docs" / "language-models.md").read_text(encoding="utf-8")


def test_from_records_to_a_merged_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYFED_CACHE", str(tmp_path / "cache"))
    (record,) = re.findall(r"```json\n(.*?)```", PAGE, re.S)
    (config,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    first = json.loads(record)
    with open("chats.jsonl", "w") as sink:
        for i in range(32):
            word = ("red", "blue", "one", "two")[i % 4]
            messages = [{**m, "content": m["content"].replace("red", word)} for m in first["messages"]]
            sink.write(json.dumps({"messages": messages, "site": ("north", "south", "east", "west")[i // 8]}) + "\n")
    make_lm(Path("models/tiny-lm"), "gpt2")
    Path("tune.yaml").write_text(
        config.replace("rank: 4}", "rank: 4, targets: [c_attn]}")
    )  # PEFT knows no default for a tiny one
    for line in (c for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for c in block.splitlines()):
        words = shlex.split(line, comments=True)
        at = [p for w in words for p in ([str(*Path(".").glob(w))] if "*" in w else [w])]
        monkeypatch.setattr("sys.argv", at)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None), (line, capsys.readouterr())
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert AutoModelForCausalLM.from_pretrained("merged").config.model_type == "gpt2"
    assert AutoTokenizer.from_pretrained("merged")("red")["input_ids"]
