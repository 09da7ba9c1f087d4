"""The ready configs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest

from rayfed.config.load import READY, ready
from rayfed.config.schema import Config, Study
from rayfed.launch.preflight import load_request
from tests.tiny import make_places
from tests.tiny_lm import make_data, make_lm


@pytest.fixture(scope="module", autouse=True)
def shelves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the ready configs' variables stand for."""
    root = tmp_path_factory.mktemp("shelves")
    make_data(root / "records")
    make_lm(root / "lm", "gpt2")
    made = make_places(root)
    with pytest.MonkeyPatch.context() as m:
        m.setenv("RAYFED_INSTRUCTIONS", f"parquet:{root / 'records'}")
        m.setenv("RAYFED_LM", str(root / "lm"))
        m.setenv("RAYFED_DATA", f"parquet:{made['data']}")
        m.setenv("RAYFED_MODEL", str(made["bert"]))
        yield


@pytest.mark.parametrize("name", ready())
def test_ready_configs_are_valid_and_begin_with_the_command_that_runs_them(name: str) -> None:
    assert isinstance(load_request(name), Config | Study)
    lines = (READY / f"{name}.yaml").read_text().splitlines()
    assert lines[0].split() == ["#", "rayfed", "run", name]
    for line in (x for x in lines if x.startswith("# rayfed run")):
        words = shlex.split(line.partition("     (")[0])
        load_request(words[3], [words[i + 1] for i, w in enumerate(words) if w == "--set"])
