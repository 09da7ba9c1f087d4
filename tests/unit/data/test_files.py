"""Data files of every kind, broken ones among them: each gives a split that can be computed with, or a sentence; never a traceback."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from rayfed.cli import main
from rayfed.config.user_code import load_file
from rayfed.data import Dataset, Part
from rayfed.errors import ConfigError
from rayfed.launch.federations import Federations
from rayfed.launch.preflight import load_request
from tests.fresh import many

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of broken tags
SENTENCE = re.compile(r"[a-z_]+(\.[a-z_]+)*: \S")  # names a setting first
FORESEEN = re.compile(r"task\.data: \S+ cannot be read: [A-Z]")  # how the outermost boundary begins
QUICK = settings(max_examples=35, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
LONG = many(QUICK, 1500)


def judged(asked: dict[str, Any], broken: bool = False) -> None:
    """Split as a run does before it starts; what comes out is whole, or the error says what is wrong.

    broken: whether the files' bytes are; what is not broken is never answered by the outermost boundary.
    """
    try:
        made = Federations().of(load_request(asked))  # type: ignore[arg-type]
    except ConfigError as e:
        assert e.problems and all(SENTENCE.match(p) for p in e.problems), e.problems
        assert broken or not any(FORESEEN.match(p) for p in e.problems), e.problems
        event("refused")
        return
    event("split")
    x, y = made.arrays["x"], made.arrays["y"]
    assert len(x) == len(y) and x.dtype == np.float32 and np.isfinite(x).all()
    labelled = np.setdiff1d(np.arange(len(y)), made.probe)
    assert ((y[labelled] >= 0) & (y[labelled] < made.classes)).all() and len(made.label_names) == made.classes
    assert made.class_counts.shape == (made.clients, made.classes)
    assert (made.train.sizes() > 0).all() and made.class_counts.sum() == len(made.train.rows)
    assert made.input_shape == x.shape[1:] and 0 not in made.input_shape
    assert all(isinstance(n, str) and n for n in made.notes)


# -- tables ------------------------------------------------------------------------------------------------------------

WHOLE = st.one_of(
    st.integers(0, 2), st.integers(-3, 9), st.sampled_from([0, 500, 90000]), st.integers(-(2**63), 2**63 - 1)
)
REAL = st.one_of(st.floats(-9, 9), st.floats(allow_nan=True, allow_infinity=True))
TEXT = st.one_of(st.sampled_from(["a", "b", "c", ""]), st.text(st.characters(codec="utf-8"), max_size=5))
VALUES: dict[str, tuple[Any, pa.DataType]] = {  # what a column may hold
    "few": (st.integers(0, 2), pa.int64()),
    "small": (st.integers(-5, 100), pa.int8()),
    "whole": (WHOLE, pa.int64()),
    "unsigned": (st.integers(0, 2**64 - 1), pa.uint64()),
    "real": (REAL, pa.float64()),
    "single": (st.floats(width=32), pa.float32()),
    "half": (st.floats(width=16).map(np.float16), pa.float16()),
    "truth": (st.booleans(), pa.bool_()),
    "text": (TEXT, pa.string()),
    "large text": (TEXT, pa.large_string()),
    "category": (st.sampled_from(["x", "y"]), pa.dictionary(pa.int8(), pa.string())),
    "lists": (st.lists(st.integers(0, 3), max_size=3), pa.list_(pa.int64())),
    "bytes": (st.binary(max_size=8), pa.binary()),
    "fixed bytes": (st.binary(min_size=4, max_size=4), pa.binary(4)),
    "date": (st.dates(datetime.date(1990, 1, 1), datetime.date(2030, 1, 1)), pa.date32()),
    "decimal": (st.integers(-99, 99).map(decimal.Decimal), pa.decimal128(9, 2)),
    "record": (st.fixed_dictionaries({"p": st.integers(0, 3)}), pa.struct([("p", pa.int64())])),
    "nothing": (st.none(), pa.null()),
}
SPLITS = (st.sampled_from(["train", "valid", "test", "test_unseen"]), pa.string())
USUAL = {
    "label": ["few", "text", "truth", "whole", "category", "small", "unsigned"],
    "a": ["single", "few", "small", "truth"],
    "b": ["few", "half"],
    "client": ["few", "text"],
    "domain": ["text"],
    "split": ["split"],
}
ROLES = {n: [*USUAL[n], *USUAL[n], *VALUES] for n in USUAL}  # the usual types of a role come more often


@st.composite
def columns(draw: Callable[..., Any], rows: int, kinds: dict[str, str], odd: bool) -> pa.Table:
    """Return a table of these kinds; an odd one may have missing values, text that is not UTF-8, and names twice."""
    arrays, names = [], []
    for name, kind in kinds.items():
        values, of = SPLITS if kind == "split" else VALUES[kind]
        values = st.none() | values if odd and draw(st.integers(0, 5)) == 0 else values
        if kind == "single" and not odd:
            values = st.floats(-9, 9, width=32)
        array = pa.array(draw(st.lists(values, min_size=rows, max_size=rows)), of)
        if odd and kind == "text" and rows and draw(st.integers(0, 9)) == 0:
            raw = pa.array(draw(st.lists(st.binary(max_size=4), min_size=rows, max_size=rows)), pa.binary())
            array = pa.Array.from_buffers(pa.string(), rows, raw.buffers())
        arrays.append(array)
        names.append(draw(st.sampled_from([*kinds])) if odd and draw(st.integers(0, 24)) == 0 else name)
    return pa.Table.from_arrays(arrays, names=names)


@st.composite
def tables(draw: Callable[..., Any], odd: bool = True) -> tuple[pa.Table, pa.Table | None]:
    """Return training rows, and maybe test rows of the same types; odd: of any type, or of others than the training rows."""
    known = ROLES if odd else USUAL
    chosen = {
        n: draw(st.sampled_from(k))
        for n, k in known.items()
        if n in ("label", "a", "b") or draw(st.integers(0, 3)) == 0
    }
    train = draw(columns(draw(st.sampled_from([24, 24, 12, 3, 1, 0] if odd else [24])), chosen, odd))
    if odd and draw(st.integers(0, 4)) == 0:
        train = train.replace_schema_metadata({"shelf": draw(metadata())})
    if draw(st.booleans()):
        return train, None
    if odd and draw(st.integers(0, 2)) == 0:
        chosen = {n: draw(st.sampled_from(ROLES[n])) for n in chosen if draw(st.integers(0, 5))}
    return train, draw(columns(draw(st.integers(0, 6)), chosen, odd))


def metadata() -> st.SearchStrategy[bytes]:
    known = st.dictionaries(
        st.sampled_from(["height", "width", "channels", "features", "label_names"]),
        st.one_of(st.integers(-1, 4), st.lists(st.sampled_from(["a", "b", "q", 3]), max_size=3), st.none()),
    )
    return st.one_of(st.binary(max_size=9), known.map(lambda v: json.dumps(v).encode()))


def federations(odd: bool = True) -> st.SearchStrategy[dict[str, Any]]:
    """Return settings of who holds what; odd: also such as do not fit most data."""
    if not odd:
        return st.fixed_dictionaries(
            {"clients": st.integers(1, 2)}, optional={"partition": st.just({"kind": "iid"}), "probe": st.just(2)}
        )
    return st.fixed_dictionaries(
        {"clients": st.integers(1, 3)},
        optional={
            "partition": st.sampled_from(
                [
                    {"kind": "iid"},
                    {"kind": "dirichlet", "alpha": 0.5, "min_examples": 1},
                    {"kind": "natural", "min_examples": 1},
                    {"kind": "shards"},
                    {"kind": "quantity"},
                    {"kind": "longtail"},
                ]
            ),
            "groups": st.sampled_from(
                [
                    {"kind": "classes", "count": 2},
                    {"kind": "classes", "count": 2, "sets": [[0, 1], [500]]},
                    {"kind": "label_permutation", "count": 2},
                    {"kind": "rotation", "count": 2},
                    {"kind": "domain"},
                ]
            ),
            "probe": st.just(2),
        },
    )


def options(odd: bool = True) -> st.SearchStrategy[dict[str, Any]]:
    """Return options of `task.data`; odd: also such as do not fit."""
    if not odd:
        return st.fixed_dictionaries(
            {"features": st.sampled_from([["a"], ["a", "b"]])}, optional={"test": st.just(0.3)}
        )
    return st.fixed_dictionaries(
        {"features": st.sampled_from([["a"], ["a"], ["a", "b"], ["b"], ["q"], None])},
        optional={
            "test": st.sampled_from([0.3, 0.9, 1, "train"]),
            "client": st.sampled_from(["domain", "b"]),
            "label": st.sampled_from(["b", "labels"]),
            "scale": st.just(2),
        },
    )


def request(where: str, o: dict[str, Any], federation: dict[str, Any], model: str = "linear") -> dict[str, Any]:
    given_options = {k: v for k, v in o.items() if v is not None}
    return {
        "task": {"data": {"name": where, **given_options}, "model": model},
        "federation": federation,
        "method": "fedavg",
    }


def harmed(draw: Callable[..., Any], file: Path) -> bool:
    """Maybe change some bytes of a file, or cut it; return whether."""
    how = draw(st.sampled_from(["whole", "whole", "cut", "bytes", "zeros"]))
    if how == "whole":
        return False
    content = bytearray(file.read_bytes())
    if not content:
        return False
    at = draw(st.integers(0, len(content) - 1))
    if how == "cut":
        content = content[:at]
    elif how == "zeros":
        content[at : at + 16] = bytes(len(content[at : at + 16]))
    else:
        for place in draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
            content[place] = draw(st.integers(0, 255))
    file.write_bytes(bytes(content))
    return True


def check_parquet(draw: Callable[..., Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        broken, odd = False, draw(st.booleans())
        for name, table in zip(("train", "test"), draw(tables(odd)), strict=True):
            if table is not None:
                file = Path(folder) / f"{name}.parquet"
                pq.write_table(table, file)
                broken = (odd and harmed(draw, file)) or broken
        judged(request(f"parquet:{folder}", draw(options(odd)), draw(federations(odd))), broken)


@QUICK
@given(st.data())
def test_parquet(data: Any) -> None:
    check_parquet(data.draw)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@LONG
@given(st.data())
def test_much_parquet(data: Any) -> None:
    check_parquet(data.draw)


# -- pictures ----------------------------------------------------------------------------------------------------------


@st.composite
def encoded(draw: Callable[..., Any]) -> bytes:
    """Return a picture file of any mode, one in five harmed."""
    from PIL import Image

    mode = draw(st.sampled_from(["L", "L", "RGB", "1", "LA", "RGBA", "P", "I;16", "I", "F", "CMYK"]))
    h, w = draw(st.sampled_from([(4, 4), (4, 4), (4, 4), (3, 5)]))
    image = Image.new(
        "RGBA" if mode == "P" else mode, (w, h), draw(st.integers(0, 255)) if mode in ("L", "I;16") else 0
    )
    image = image.convert("P") if mode == "P" else image
    kind = "TIFF" if mode in ("F", "CMYK", "I") else draw(st.sampled_from(["PNG", "TIFF"]))
    out = io.BytesIO()
    image.save(out, kind)
    content = bytearray(out.getvalue())
    if draw(st.integers(0, 4)) == 0:
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content)


@st.composite
def arrays(draw: Callable[..., Any]) -> tuple[Any, pa.DataType]:
    """Return (strategy of one row, type) of pictures as nested lists."""
    of = draw(st.sampled_from([pa.uint8(), pa.uint16(), pa.int64(), pa.float32(), pa.float64(), pa.bool_()]))
    if pa.types.is_boolean(of):
        value = st.booleans()
    elif pa.types.is_integer(of):
        value = st.integers(0, 255)
    else:
        value = st.one_of(st.floats(-2, 2, width=32), st.floats(width=32))
    side = draw(st.sampled_from([(2, 2), (2, 2), (1, 3), (0, 2)]))
    inner = draw(st.sampled_from([None, None, 3, 2]))
    pixel = value if inner is None else st.lists(value, min_size=inner, max_size=inner)
    ragged = draw(st.integers(0, 5)) == 0
    line = st.lists(pixel, min_size=0 if ragged else side[1], max_size=side[1])
    depth = 2 if inner is None else 3
    for _ in range(depth):
        of = pa.list_(of)
    return st.lists(line, min_size=side[0], max_size=side[0]), of


def check_pictures(draw: Callable[..., Any]) -> None:
    rows = draw(st.sampled_from([6, 8, 2]))
    if draw(st.booleans()):
        picture = draw(st.sampled_from([encoded(), encoded().map(lambda b: {"bytes": b, "path": "p.png"})]))
        given_of = None
    else:
        picture, given_of = draw(arrays())
    with tempfile.TemporaryDirectory() as folder:
        for name in ("train", "test")[: draw(st.integers(1, 2))]:
            rows = rows if name == "train" else draw(st.sampled_from([2, 0]))
            images = draw(st.lists(picture, min_size=rows, max_size=rows))
            labels = pa.array([0, 1] * (rows // 2), pa.int64())
            table = pa.table({"image": pa.array(images, given_of), "label": labels})
            pq.write_table(table, Path(folder) / f"{name}.parquet")
        o = st.fixed_dictionaries(
            {},
            optional={
                "size": st.sampled_from([3, [2, 4], 0]),
                "channels": st.sampled_from([1, 3]),
                "scale": st.sampled_from([255, 0.5]),
                "shape": st.just([2, 2, 1]),
            },
        )
        judged(
            request(
                f"parquet:{folder}",
                draw(o),
                draw(federations(draw(st.booleans()))),
                draw(st.sampled_from(["mlp", "cnn"])),
            )
        )


@QUICK
@given(st.data())
def test_pictures(data: Any) -> None:
    check_pictures(data.draw)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@LONG
@given(st.data())
def test_many_pictures(data: Any) -> None:
    check_pictures(data.draw)


# -- folders of the `datasets` library -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
    yield


def check_folder(draw: Callable[..., Any]) -> None:
    import datasets

    kind = draw(st.sampled_from(["csv", "json", "disk"]))
    odd = draw(st.booleans())
    train, test = draw(tables(odd))
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where) / "set"
        try:  # what the library itself refuses to write is nobody's file
            if kind == "disk":
                found = {"train": datasets.Dataset(train.replace_schema_metadata(None))}
                found |= {"test": datasets.Dataset(test.replace_schema_metadata(None))} if test is not None else {}
                datasets.DatasetDict(found).save_to_disk(folder)
            else:
                folder.mkdir()
                for name, table in (("train", train), ("test", test)):
                    if table is not None:
                        file = folder / f"{name}.{kind}"
                        if kind == "csv":
                            sep = draw(st.sampled_from([",", ";", "\t"])) if odd else ","
                            table.to_pandas().to_csv(file, index=False, sep=sep)
                        else:  # pandas' own writer of JSON can end the process on odd values
                            lines = [json.dumps(row, default=str) for row in table.to_pylist()]
                            file.write_text("\n".join(lines), encoding="utf-8")
        except Exception:
            return
        files = sorted(f for f in folder.rglob("*") if f.is_file())
        broken = odd and any([harmed(draw, f) for f in files])
        judged(request(f"hf:{folder}", draw(options(odd)), draw(federations(odd))), broken)


@settings(QUICK, max_examples=20)
@given(st.data())
def test_folders_of_datasets(data: Any) -> None:
    check_folder(data.draw)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@settings(LONG, max_examples=100)
@given(st.data())
def test_many_folders_of_datasets(data: Any) -> None:
    check_folder(data.draw)


# -- own functions -----------------------------------------------------------------------------------------------------


@st.composite
def own_arrays(draw: Callable[..., Any], rows: int) -> Any:
    """Return something that stands for x."""
    shape = draw(st.sampled_from([(3,), (3,), (1, 4, 4), (2, 2), (), (0,)]))
    kind = draw(st.sampled_from(["f8", "f4", "f2", "u1", "u2", "i8", "?", "O", "U", "c8", "text", "list", "none"]))
    if kind == "none":
        return None
    if kind == "text":
        return np.array(
            [draw(TEXT | st.text(max_size=3)) for _ in range(rows)], dtype=draw(st.sampled_from([object, str]))
        )
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = rng.normal(size=(rows, *shape)) * draw(st.sampled_from([1, 1, 50, 1e30, 1e300]))
    if x.size and draw(st.integers(0, 4)) == 0:
        x.reshape(-1)[draw(st.integers(0, x.size - 1))] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    if kind == "list":
        return x.tolist()
    with np.errstate(all="ignore"):
        return x.astype(kind)


@st.composite
def own_labels(draw: Callable[..., Any], rows: int) -> Any:
    values = draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows))
    kind = draw(st.sampled_from(["i8", "i8", "i8", "u1", "f8", "U", "list", "lists", "short", "low"]))
    if kind in ("list", "lists"):
        return values if kind == "list" else [[v] * (v + 1) for v in values]
    if kind in ("short", "low"):
        return np.array(values[1:] if kind == "short" else [v - 1 for v in values])
    return np.array(values).astype(kind)


def usual_part(draw: Callable[..., Any], rows: int, shape: tuple[int, ...], kind: str) -> Part:
    """Return rows that a run can take."""
    x = np.random.default_rng(rows).integers(0, 9, (rows, *shape)).astype(kind)
    client = draw(st.none() | st.lists(TEXT | st.integers(0, 3), min_size=rows, max_size=rows))
    return Part(x, np.array(draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows)), np.int64), client)


def odd_part(draw: Callable[..., Any], rows: int) -> Any:
    """Return rows in which anything may be wrong."""
    any_text = TEXT | st.text(max_size=2)
    names = st.none() | st.lists(any_text | st.integers(0, 3) | st.none(), min_size=rows, max_size=rows)
    split = st.none() | st.lists(st.sampled_from(["train", "valid", "best"]), min_size=rows, max_size=rows)
    found = [draw(own_arrays(rows)), draw(own_labels(rows)), draw(names), draw(names), draw(split)]
    return Part(*found) if draw(st.integers(0, 9)) else tuple(found)


def check_own(draw: Callable[..., Any]) -> None:
    odd, small = draw(st.booleans()), draw(st.integers(0, 4))
    if odd:
        kind = draw(st.sampled_from(["tabular", "tabular", "image", "text", "instruct", "graph"]))
        classes = draw(st.sampled_from([3, 3, 3, 2, 0, 2.5, "3"]))
        names = draw(st.sampled_from([("a", "b", "c"), ("a", "b", "c"), (0, 1), None]))
        made = Dataset("own", odd_part(draw, 12), odd_part(draw, small), classes, names, kind)
    else:
        kind, shape = draw(st.sampled_from([("tabular", (3,)), ("tabular", (2, 2)), ("image", (1, 4, 4))]))
        of = draw(st.sampled_from(["f8", "f4", "f2", "u1", "u2", "i8", "?"]))
        train, test = (usual_part(draw, n, shape, of) for n in (12, small))
        made = Dataset("own", train, test, 3, ("a", "b", "c"), kind)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mine.py"
        file.write_text("made = []\n\ndef make(seed):\n    return made[0]\n")
        before = set(sys.modules)
        try:
            load_file(str(file)).made.append(made)
            judged(request(f"{file}:make", {}, draw(federations(odd)), "mlp"))
        finally:
            for n in set(sys.modules) - before:
                if n.startswith("rayfed_user_"):
                    del sys.modules[n]


@QUICK
@given(st.data())
def test_own_functions(data: Any) -> None:
    check_own(data.draw)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@LONG
@given(st.data())
def test_many_own_functions(data: Any) -> None:
    check_own(data.draw)


# -- whole commands ----------------------------------------------------------------------------------------------------


def check_command(draw: Callable[..., Any]) -> None:
    """Run a command on a table: it ends with an exit code of the README and a sentence; what is refused leaves nothing behind."""
    with tempfile.TemporaryDirectory() as where:
        folder, odd = Path(where), draw(st.integers(0, 3)) == 0
        for name, table in zip(("train", "test"), draw(tables(odd)), strict=True):
            if table is not None:
                pq.write_table(table, folder / f"{name}.parquet")
                if odd:
                    harmed(draw, folder / f"{name}.parquet")
        asked = request(
            f"parquet:{folder}", draw(options(odd)), draw(federations(odd)), draw(st.sampled_from(["linear", "mlp"]))
        )
        more = {"rounds": 1, "storage": {"path": f"{folder}/runs"}, "resources": {"executor": "loop"}, "track": []}
        (folder / "c.yaml").write_text(yaml.safe_dump({**asked, **more}))
        out, err = io.StringIO(), io.StringIO()
        words = ["rayfed", "run", f"{folder}/c.yaml", "--local"]
        quiet = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with mock.patch.object(sys, "argv", words), quiet[0], quiet[1], pytest.raises(SystemExit) as ended:
            main()
        event(f"exit code {ended.value.code}")
        said = err.getvalue()
        assert ended.value.code in (0, 2, 3, 4) and "Traceback" not in said, said
        assert ended.value.code == 0 or "rayfed:" in said
        assert ended.value.code != 2 or not (folder / "runs").exists()


@pytest.mark.slow
@pytest.mark.timeout(1500)
@settings(LONG, max_examples=80)
@given(st.data())
def test_whole_commands(data: Any) -> None:
    check_command(data.draw)
