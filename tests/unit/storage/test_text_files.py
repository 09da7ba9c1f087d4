"""JSON and YAML of run folders."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from rayfed.storage.text_files import json_bytes, read_json, read_yaml, timestamp, to_plain, yaml_bytes


def test_values_become_plain(tmp_path: Path) -> None:
    value = {1: (np.float32(0.5), {2}), "path": tmp_path, "array": np.arange(2), "none": None}
    assert to_plain(value) == {"1": [0.5, [2]], "path": str(tmp_path), "array": [0, 1], "none": None}
    file = tmp_path / "a.yaml"
    file.write_bytes(yaml_bytes(value))
    assert read_yaml(file) == to_plain(value)


def test_json_has_no_nan() -> None:
    assert json_bytes({"a": [math.nan, math.inf, 1.5]}) == b'{"a": [null, null, 1.5]}\n'


def test_what_is_no_object_or_mapping(tmp_path: Path) -> None:
    file = tmp_path / "file"
    assert read_json(file) == {}
    for text in ("[1]", '{"torn', ""):
        file.write_text(text)
        assert read_json(file) == {}
    assert read_yaml(file) == {}
    for text in ("- 1\n", "a: [1"):
        file.write_text(text)
        with pytest.raises(ValueError, match=str(file)):
            read_yaml(file)


def test_times_are_utc_with_milliseconds() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", timestamp())
