"""What a user's own data function may return, and what is said of everything else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayfed import data
from rayfed.config.schema import Named
from rayfed.data import Dataset, Part
from rayfed.data.own import checked
from rayfed.errors import ConfigError
from rayfed.launch.federations import Federations
from rayfed.launch.preflight import load_request
from tests.configs import refusal
from tests.unit.data import sets

Y = np.array([0, 1, 2] * 4)
NAMES = ("a", "b", "c")


def made(x: Any, y: Any = Y, kind: str = "tabular", test: Part | None = None, **more: Any) -> Dataset:
    """What a function returns: the same rows in both parts unless `test` is given."""
    part = Part(x, y, **more)
    return Dataset("mine", part, part if test is None else test, 3, NAMES, kind)


def refused(d: Dataset) -> str:
    return refusal(checked, d)


@pytest.mark.parametrize("where", ["train", "test"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_no_model_can_take_are_refused_with_part_and_row(where: str, value: float) -> None:
    x = np.zeros((12, 4))
    bad = x.copy()
    bad[7, 2] = bad[9, 1] = value
    train, test = (Part(bad if where == w else x, Y) for w in ("train", "test"))
    text = refused(Dataset("mine", train, test, 3, NAMES, "tabular"))
    assert text == f"{where}: row 7 holds {value} at 2 (2 such rows in all), allowed: finite numbers that float32 holds"


def test_whole_numbers_that_would_be_rounded_are_refused() -> None:
    x = np.zeros((12, 2), np.int64)
    x[3, 1] = 2**53 + 1
    assert refused(made(x)).startswith(
        f"train: row 3 holds {2**53 + 1} at 1 (1 such rows in all), allowed: whole numbers up"
    )


@pytest.mark.parametrize(
    ("kind", "top"), [("uint8", 255), ("uint16", 65535), ("int32", 1), ("float64", 1), ("bool", 1)]
)
def test_images_are_scaled_by_their_type(kind: str, top: int) -> None:
    x = (np.random.default_rng(0).integers(0, 60, (12, 1, 4, 4))).astype(kind)
    d = checked(made(x, kind="image"))
    assert np.array_equal(d.train.x, x.astype(np.float32) / np.float32(top)) and d.train.x.dtype == np.float32
    said = {"uint8": "were divided by 255", "uint16": "were divided by 65,535", "bool": ""}.get(kind, "as they are")
    assert len(d.notes) == bool(said) and all(said in n for n in d.notes)
    table = checked(made(x.reshape(12, -1)))
    assert np.array_equal(table.train.x, x.reshape(12, -1).astype(np.float32)) and not table.notes


def test_lists_and_tensors_are_arrays() -> None:
    import torch

    d = checked(made([[1.0, 2.0]] * 12, Y.tolist()))
    assert d.train.x.shape == (12, 2) and d.train.y.dtype == np.int64
    x = torch.rand(12, 1, 4, 4)
    assert np.array_equal(checked(made(x, torch.tensor(Y), "image")).train.x, x.numpy())
    assert "train.x: Tensor is no array: RuntimeError" in refused(made(x.requires_grad_(), Y, "image"))


def test_token_ids_are_texts_already() -> None:
    x, short = np.random.default_rng(0).integers(0, 30, (12, 6)), np.full((3, 4), 5)
    d = checked(made(x, kind="text", test=Part(short, Y[:3])))
    assert d.kind == "text" and d.train.x.dtype == np.int32 and np.array_equal(d.train.x, x)
    assert d.test.x.tolist() == [[5, 5, 5, 5, -1, -1]] * 3  # as wide as the training rows', padding behind
    assert "train: row 2 holds -2 at 1" in refused(
        made(np.where(np.arange(72).reshape(12, 6) == 13, -2, x), kind="text")
    )
    assert "needed: texts (n,) or token ids (n, length)" in refused(made(x * 1.0, kind="text"))
    assert checked(made(np.array(["ab", "c"] * 6), kind="text")).train.x.tolist() == ["ab", "c"] * 6
    assert "train: row 1 holds NoneType, needed: texts" in refused(made(np.array(["a", None] * 6, object), kind="text"))
    records = np.array([["add", "1 2", "3"]] * 12)
    assert checked(made(records, kind="instruct")).train.x.shape == (12, 3)
    assert "needed: (n, 3) for instructions, lists of messages for chats" in refused(
        made(records[:, :2], kind="instruct")
    )


@pytest.mark.parametrize(
    ("d", "says"),
    [
        (
            made(np.zeros((12, 2)), [[0, 1]] * 12),
            "train: y int64 (12, 2) and 3 classes found, needed: whole numbers (n,) for classes",
        ),
        (made(np.zeros((12, 2)), np.array([[0], [0, 1]] * 6, object)), "holds lists, one label a row is needed"),
        (made(np.array(["a", "b\ud800"] * 6), kind="text"), "train: row 1 holds text that UTF-8 cannot write"),
        (made(np.zeros((12, 2)), client=["\udfff"] * 12), "train.client: it holds text that UTF-8 cannot write"),
        (made(None), "train: x object () and y int64 (12,) found, needed: numbers"),
        (made([[1], [1, 2]] * 6), "train.x: list is no array: ValueError"),
        (made(np.zeros((12, 0))), "train: x of shape (12, 0) found"),
        (
            made(np.zeros((12, 2)), np.where(np.arange(12) == 5, 3, Y)),
            "labels 0 to 3 found, allowed: 0 to 2 (first: row 5)",
        ),
        (made(np.zeros((12, 2)), split=["train"] * 11 + ["best"]), "train.split: 'best' found (did you mean 'test'?)"),
        (Dataset("m", (1, 2), Part([], []), 3, NAMES, "tabular"), "train: tuple found, needed: rayfed.data.Part"),  # type: ignore[arg-type]
        (Dataset("m", Part([], []), Part([], []), 0, (), "tabular"), "classes 0 found, allowed: a whole number >= 1"),  # type: ignore[arg-type]
        (Dataset("m", Part([], []), Part([], []), 3, None, "tabular"), "label_names None found"),  # type: ignore[arg-type]
        (
            made(np.zeros((12, 2)), kind="table"),
            "kind 'table' found (did you mean 'tabular'?), allowed: image, tabular, text",
        ),
    ],
)
def test_what_is_no_data_set_is_refused(d: Dataset, says: str) -> None:
    assert says in refused(d)


def test_names_of_clients_may_be_numbers() -> None:
    d = checked(made(np.zeros((12, 2)), client=[0, 1, None] * 4))
    assert d.train.client is not None and d.train.client.tolist() == ["0", "1", ""] * 4


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Any]:
    """Writes a file and gives the name of its function; forgets the modules afterwards."""
    before = set(sys.modules)

    def write(text: str, function: str = "make") -> str:
        (tmp_path / "mine.py").write_text(text)
        return f"{tmp_path / 'mine.py'}:{function}"

    yield write
    for n in set(sys.modules) - before:
        if n.startswith("rayfed_user_"):
            del sys.modules[n]


TOKENS = """
import numpy as np
from torch import nn
from rayfed.data import Dataset, Part

def make(seed):
    y = np.arange(60) % 3
    x = np.random.default_rng(seed).integers(0, 10, (60, 8)) + 10 * y[:, None]
    return Dataset("tokens", Part(x[20:], y[20:]), Part(x[:20], y[:20]), 3, ("a", "b", "c"), "text")

class Bag(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.words, self.head = nn.Embedding(30, 8), nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.words(x.long()).mean(1))

def bag(classes, input_shape):
    return Bag(classes)
"""


def test_own_token_ids_train_an_own_network_and_no_ready_one(own: Any, tmp_path: Path) -> None:
    import rayfed

    name = own(TOKENS)
    config = {
        "task": {"data": name, "model": name.replace(":make", ":bag")},
        "federation": {"clients": 2, "per_round": 2},
        "local": {"optimizer": {"name": "sgd", "lr": 1.0}, "epochs": 5},
        "method": "fedavg",
        "rounds": 3,
        "storage": {"path": str(tmp_path / "runs")},
    }
    run = rayfed.run(config, local=True)
    assert run.summary["metrics"]["accuracy/global"]["final"] > 0.9
    with pytest.raises(
        ConfigError, match=r"task.model: 'mlp' found, tokens holds token ids; allowed: hf:NAME_OR_DIR, or a"
    ):
        Federations().of(load_request({**config, "task": {"data": name, "model": "mlp"}}))  # type: ignore[arg-type]


def test_what_leaves_the_interpreter_inside_the_function_is_its_error(own: Any) -> None:
    with pytest.raises(ConfigError, match=r"mine.py:make raised SystemExit: 0"):
        data.load(Named.model_validate(own("import sys\ndef make(seed):\n    sys.exit(0)\n")), 0)


EMPTY = """
import numpy as np
from rayfed.data import Dataset, Part

def make(seed):
    x, y = np.ones((4, 2)), np.arange(4) % 2
    return Dataset("m", Part(x, y), Part(x[:0], y[:0]), 2, ("a", "b"), "tabular")
"""


def test_no_test_rows_are_a_note(own: Any) -> None:
    d = data.load(Named.model_validate(own(EMPTY)), 0)
    assert d.notes == ("m has no test rows: no score of one pooled test set",)


# -- its file and its arguments -------------------------------------------------------------------------------------------

OWN = """
import numpy as np
from rayfed.data import Dataset, Part

def make(seed, rows=4, *, scale=1.0):
    x = np.full((rows, 3), scale * seed)
    return Dataset("mine", Part(x, np.arange(rows) % 2), Part(x[:2], np.array([0, 1])), 2, (0, 1), "tabular")
"""


def test_a_users_function_is_called_with_seed_and_options(own: Any) -> None:
    name = own(OWN)
    assert sets.check(name, rows=6, scale=0.5) == []
    d = sets.load(name, 8, rows=6, scale=0.5)
    assert d.name == "mine" and d.input_shape == (3,) and d.label_names == ("0", "1")
    assert np.array_equal(d.train.x, np.full((6, 3), 4.0, np.float32)) and d.train.x.dtype == np.float32
    assert d.train.y.tolist() == [0, 1] * 3 and d.train.y.dtype == np.int64
    assert len(sets.load(name, 1).train.y) == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"row": 3}, ".row: unknown option of {} (did you mean 'rows'?); known: rows, scale"),
        ({"seed": 3}, ".seed: unknown option of {}; known: rows, scale"),
    ],
)
def test_options_are_held_against_the_signature(own: Any, options: dict[str, Any], says: str) -> None:
    name = own(OWN)
    assert sets.check(name, **options) == ["task.data" + says.format(name)]


def test_a_file_is_checked_without_being_run(own: Any, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    body = f"open({str(ran)!r}, 'w')\nraise OSError('no such disk')\ndef make(seed, *, rows): pass\n"
    name = own(body)
    assert sets.check(name, rows=3) == []
    assert sets.check(name) == [f"task.data.rows: missing, {name} needs it"]
    assert "has no function 'mak' (did you mean 'make'?); it has: make" in sets.check(own(body, "mak"))[0]
    assert not ran.exists()
    text = sets.refused(name, rows=3)
    assert ran.exists() and "mine.py cannot be imported: OSError: no such disk" in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def make(): pass", "takes 0 arguments, it is called with 1 and the options"),
        ("def make(seed: pass", "mine.py is not readable as Python"),
        ("x = 1", "has no function 'make'; it has: none"),
    ],
)
def test_files_without_a_fitting_function(own: Any, text: str, says: str) -> None:
    (problem,) = sets.check(own(text))
    assert says in problem


def test_functions_made_in_another_way_are_left_to_the_call(own: Any) -> None:
    assert sets.check(own("make = lambda seed: None")) == []
    assert sets.check(own("from numpy import zeros as make")) == []
    assert sets.check(own("def make(*args, **more): pass"), anything=1) == []
    assert "has no function 'make'" in sets.refused(own("make = 3"))


def test_a_name_needs_a_file_and_a_function(tmp_path: Path) -> None:
    assert sets.check(f"{tmp_path}/gone.py:make") == [f"task.data: file '{tmp_path}/gone.py' does not exist"]
    assert "needed: path/to/file.py:function" in sets.check(f"{tmp_path}/gone.py")[0]


def test_an_error_inside_the_function_stays_the_cause(own: Any) -> None:
    name = own("def make(seed):\n    return {}['colour']\n")
    with pytest.raises(ConfigError, match="raised KeyError: 'colour'") as e:
        sets.load(name)
    assert isinstance(e.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ("None", "returned NoneType, needed: rayfed.data.Dataset"),
        ("D(P(x[:0], y[:0]), P(x, y))", "it has no training rows"),
        ("D(P(x, y[:3]), P(x, y))", "train: x float64 (4, 2) and y int64 (3,) found"),
        ("D(P(x, y * 1.0), P(x, y))", "train: y float64 (4,) and 2 classes found"),
        ("D(P(x.astype(str), y), P(x, y))", "needed: numbers (n, ...) and whole numbers (n,)"),
        ("D(P(x, y), P(x[:, :1], y))", "test: x of shape (4, 1) found"),
        ("D(P(x[:, 0], y), P(x[:, 0], y))", "train: x of shape (4,) found"),
        ("D(P(x, y), P(x, y), 'image')", "needed: (n, C, H, W) for images"),
        ("D(P(x, y), P(x, y), 'graph')", "kind 'graph' found, allowed: image, tabular"),
        ("D(P(x, y + 1), P(x, y))", "train: labels 1 to 2 found, allowed: 0 to 1"),
        ("D(P(x, y), P(x, y - 1))", "test: labels -1 to 0 found, allowed: 0 to 1"),
        ("D(P(x, y, np.array(['a'])), P(x, y))", "train.client: 1 values for 4 rows"),
        ("Dataset('m', P(x, y), P(x, y), 2, ('a',), 'tabular')", "1 label names for 2 classes"),
    ],
)
def test_what_a_function_returns_is_looked_at(own: Any, made: str, says: str) -> None:
    head = "import numpy as np\nfrom rayfed.data import Dataset, Part as P\n"
    body = "def D(a, b, kind='tabular'): return Dataset('m', a, b, 2, ('a', 'b'), kind)\n"
    body += f"def make(seed):\n    x, y = np.ones((4, 2)), np.array([0, 1, 0, 1])\n    return {made}\n"
    text = sets.refused(own(head + body))
    assert text.startswith("task.data: ") and says in text


def test_notes_of_a_function_are_kept(own: Any) -> None:
    body = "from rayfed.data import Dataset, Part\nimport numpy as np\ndef make(seed):\n    p = Part(np.eye(2, dtype='f4'), np.arange(2))\n"
    d = sets.load(own(body + "    return Dataset('m', p, p, 2, ('a', 'b'), 'tabular', ['three rows were empty'])"))
    assert d.notes == ("three rows were empty",)


def test_lists_are_taken_as_arrays_or_refused_in_a_sentence(own: Any) -> None:
    head = "from rayfed.data import Dataset, Part\n"
    body = "def make(seed):\n    p = Part([[1, 2], [3, 4]], [0, 1])\n    return Dataset('m', p, p, 2, ('a', 'b'), 'tabular')"
    try:
        d = sets.load(own(head + body))
    except ConfigError as e:
        assert "train" in str(e)
    else:
        assert d.train.x.tolist() == [[1, 2], [3, 4]] and d.train.x.dtype == np.float32
