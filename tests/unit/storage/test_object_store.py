"""Runs in object storage: what is uploaded, what a commit is, and what lost and doubled writes change. No Ray, no network."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from rayfed.api import Run
from rayfed.errors import ConfigError, Fenced, RunFailed
from rayfed.launch.start import LocalLauncher, resume_local, run_local, start_request
from rayfed.storage import object_store
from rayfed.storage.new_folder import new_folder
from rayfed.storage.owner import Owner, process_start
from rayfed.storage.run_folder import RunFolder, read_metrics
from rayfed.storage.text_files import load_json, sealed_bytes
from tests import toy


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYFED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(object_store, "WAIT_S", 0.001)
    # Drawing takes seconds, and is not what is tested.
    monkeypatch.setattr("rayfed.report.write_report", lambda path: (path / "report.html").write_text(path.name))


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


class Faulty(fs.FileSystemHandler):
    """A folder as object storage with faults: `lose` writes never arrive, `torn` keep half, `refuse` fail, `double` arrive twice."""

    def __init__(self, root: Path):
        root.mkdir(exist_ok=True)
        self.inner, self.root = fs.SubTreeFileSystem(str(root), fs.LocalFileSystem()), root
        self.lose = self.torn = self.refuse = 0
        self.double = False
        self.written: list[str] = []

    def get_type_name(self) -> str:
        return "faulty"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: Any) -> Any:
        return self.inner.get_file_info(paths)

    def get_file_info_selector(self, selector: Any) -> Any:
        return self.inner.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self.inner.create_dir(path, recursive=recursive)

    def delete_file(self, path: str) -> None:
        self.inner.delete_file(path)

    def open_input_stream(self, path: str) -> Any:
        return self.inner.open_input_stream(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        import pyarrow as pa

        if not (self.root / path).parent.is_dir():
            raise FileNotFoundError(path)
        handler = self

        class Sink:
            closed = False

            def __init__(self) -> None:
                self.data = b""

            def write(self, data: Any) -> None:
                self.data += bytes(data)

            def flush(self) -> None: ...

            def writable(self) -> bool:
                return True

            def readable(self) -> bool:
                return False

            def seekable(self) -> bool:
                return False

            def close(self) -> None:
                if not self.closed:
                    self.closed = True
                    handler.put(path, self.data)

        return pa.PythonFile(Sink(), mode="w")

    def put(self, path: str, data: bytes) -> None:
        self.written.append(path)
        if self.refuse:
            self.refuse -= 1
            raise OSError("503 slow down")
        if self.lose:
            self.lose -= 1
            return
        half = bool(self.torn)
        self.torn = max(0, self.torn - 1)
        for _ in range(1 + self.double):
            (self.root / path).write_bytes(data[: len(data) // 2] if half else data)

    get_file_info_async = create_dir_async = None
    delete_dir = delete_dir_contents = delete_root_dir_contents = move = copy_file = None  # type: ignore[assignment]
    open_input_file = open_append_stream = None  # type: ignore[assignment]


for _name in list(Faulty.__abstractmethods__):
    setattr(Faulty, _name, lambda self, *a: NotImplemented)
Faulty.__abstractmethods__ = frozenset()


def commit(folder: RunFolder, *what: Any, **more: Any) -> None:
    """Commit a round, and wait until it is uploaded."""
    folder.commit(*what, **more)
    folder.wait()


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Faulty:
    handler = Faulty(tmp_path / "bucket")
    made = fs.PyFileSystem(handler)
    monkeypatch.setattr(object_store, "open_filesystem", lambda uri: (made, uri.partition("://")[2].partition("?")[0]))
    return handler


def made(path: Path, uri: str) -> RunFolder:
    return RunFolder.create(path, {"name": "r", "storage": {"keep": 1}}, owner=Owner.me(), stored=uri)


def rounds(uri: str, target: Path) -> list[int]:
    """The rounds of what a reader gets from there."""
    return read_metrics(object_store.download(uri, target))["round"].to_pylist()


# -- whole runs ----------------------------------------------------------------------------------------------------------


def test_a_run_in_storage_is_the_run_on_disk_and_goes_on_elsewhere(store: str, tmp_path: Path) -> None:
    short = toy.config(rounds=2, storage={"path": store, "snapshot_every": 2})
    done = run_local(short)
    uri = object_store.mirror_of(done.path).uri  # type: ignore[union-attr]
    assert uri == f"{store}/{done.path.name}" and done.path.is_relative_to(tmp_path / "cache")
    stored = Path(uri.removeprefix("file://"))
    for name in ("summary.json", "metrics.parquet", "report.html", "config.yaml", "model/model.safetensors"):
        assert (stored / name).read_bytes() == (done.path / name).read_bytes(), (
            "the files of an ended run have plain names"
        )
    assert len(list(stored.glob("manifest-*"))) == 1
    shutil.rmtree(tmp_path / "cache")
    again = resume_local(uri, sets=["rounds=4"])
    plain = run_local(toy.config(rounds=4, storage={"snapshot_every": 2}), out=tmp_path / "plain")
    keep = [
        c
        for c in read_metrics(plain.path).column_names
        if not c.startswith(("time/", "clients/per", "ray/", "actors/"))
    ]
    assert read_metrics(again.path).select(keep) == read_metrics(plain.path).select(keep)
    assert rounds(uri, tmp_path / "copy") == [1, 2, 3, 4]
    assert Run(tmp_path / "copy").summary["rounds"] == 4


def test_a_study_in_storage_comes_back_whole(store: str, tmp_path: Path) -> None:
    from rayfed.config.load import load_config
    from rayfed.config.schema import Study

    raw = {**toy.config(rounds=1).to_dict(), "seeds": [0, 1], "arms": {"a": {}, "b": {"method": {"name": "fedprox"}}}}
    study = load_config({**raw, "storage": {"path": store}})
    assert isinstance(study, Study)
    done = run_local(study)
    back = object_store.download(f"{store}/{done.path.name}", tmp_path / "back")
    names = {p.relative_to(done.path) for p in done.path.rglob("*") if p.is_file() and not p.name.startswith(".")}
    assert {p.relative_to(back) for p in back.rglob("*") if p.is_file()} == names
    assert len([n for n in names if n.name == "summary.json"]) == 5
    shutil.rmtree(done.path)
    before = (back / "a/seed-0/summary.json").read_bytes()
    assert (resume_local(f"{store}/{done.path.name}").path / "a/seed-0/summary.json").read_bytes() == before


# -- commits -------------------------------------------------------------------------------------------------------------


def test_every_commit_is_there_and_sends_only_new_lines(store: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "here", store)
    uri = object_store.mirror_of(folder.path).uri  # type: ignore[union-attr]
    for r in range(1, 6):
        commit(folder, r, {"loss/global": 1.0 / r})
        assert rounds(uri, tmp_path / f"copy{r}") == list(range(1, r + 1))
    entry = object_store.newest_manifest(*object_store.open_filesystem(uri))["files"]["parts/rows-1.jsonl"]  # type: ignore[index]
    assert [n for _, n in entry["pieces"]] == [
        len(x) + 1 for x in (folder.path / "parts/rows-1.jsonl").read_bytes().splitlines()
    ]


def test_rows_are_read_before_what_they_lead_to(store: str, tmp_path: Path) -> None:
    """A round that is committed during an upload is not there without its client rows."""
    folder = made(tmp_path / "here", store)
    commit(folder, 1, {"loss/global": 1.0})
    mirror = object_store.mirror_of(folder.path)
    assert mirror is not None
    names = [p.relative_to(folder.path).as_posix() for p in mirror._files()]
    assert names[0] == "parts/rows-1.jsonl" and len(set(names)) == len(names)


def test_what_is_uploaded_is_no_commit_before_its_manifest(faulty: Faulty, tmp_path: Path) -> None:
    folder = made(tmp_path / "here", "s3://b/x")
    uri = object_store.mirror_of(folder.path).uri  # type: ignore[union-attr]
    commit(folder, 1, {"loss/global": 1.0})
    before = len(faulty.written)
    commit(folder, 2, {"loss/global": 0.5})
    news = faulty.written[before:]
    assert "manifest-" in news[-1] and not any("manifest-" in n for n in news[:-1])
    faulty.refuse = 10**6
    with pytest.raises(RunFailed, match=r"503 slow down.*rayfed resume"):
        commit(folder, 3, {"loss/global": 0.25})
    assert rounds(uri, tmp_path / "copy") == [1, 2]
    faulty.refuse = 0
    folder.upload()
    assert rounds(uri, tmp_path / "copy2") == [1, 2, 3]


@pytest.mark.parametrize("fault", ["lose", "torn", "refuse"])
def test_a_write_that_went_wrong_is_repeated(faulty: Faulty, tmp_path: Path, fault: str) -> None:
    folder = made(tmp_path / "here", "s3://b/x")
    before = len(faulty.written)
    setattr(faulty, fault, 2)
    commit(folder, 1, {"loss/global": 1.0})
    assert getattr(faulty, fault) == 0
    again = faulty.written[before:]
    assert again[0] == again[1] == again[2]
    assert rounds(object_store.mirror_of(folder.path).uri, tmp_path / "copy") == [1]  # type: ignore[union-attr]


def test_doubled_writes_change_nothing(faulty: Faulty, tmp_path: Path) -> None:
    faulty.double = True
    folder = made(tmp_path / "here", "s3://b/x")
    commit(folder, 1, {"loss/global": 1.0})
    commit(folder, 2, {"loss/global": 0.5}, snapshot=lambda d: (d / "a").write_bytes(b"x") and None)
    assert rounds(object_store.mirror_of(folder.path).uri, tmp_path / "copy") == [1, 2]  # type: ignore[union-attr]


def test_a_torn_manifest_does_not_count(store: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "here", store)
    commit(folder, 1, {"loss/global": 1.0})
    uri = object_store.mirror_of(folder.path).uri  # type: ignore[union-attr]
    stored = Path(uri.removeprefix("file://"))
    (last,) = stored.glob("manifest-*")
    (stored / "manifest-000009-00000001.json").write_bytes(last.read_bytes()[:-30])
    assert rounds(uri, tmp_path / "copy") == [1]


def test_a_damaged_object_is_an_error_and_nothing_half_arrives(store: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "here", store)
    commit(folder, 1, {"loss/global": 1.0})
    uri = object_store.mirror_of(folder.path).uri  # type: ignore[union-attr]
    (Path(uri.removeprefix("file://")) / "config.yaml").write_text("name: q\nstorage:\n  keep: 1\n")
    with pytest.raises(RunFailed, match=r"config\.yaml is damaged"):
        object_store.download(uri, tmp_path / "copy" / "r")
    assert list((tmp_path / "copy").iterdir()) == []


def test_an_older_writer_can_upload_nothing_more(store: str, tmp_path: Path) -> None:
    old = made(tmp_path / "here", store)
    commit(old, 1, {"loss/global": 1.0})
    uri = object_store.mirror_of(old.path).uri  # type: ignore[union-attr]
    new = RunFolder.open(object_store.download(uri, tmp_path / "there"), owner=Owner.me())
    assert new.fence == 2
    with pytest.raises(Fenced, match="taken over"):
        commit(old, 2, {"loss/global": 9.0})
    commit(new, 2, {"loss/global": 0.5})
    assert read_metrics(object_store.download(uri, tmp_path / "copy"))["loss/global"].to_pylist() == [1.0, 0.5]


# -- places --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("s4://bucket/x", "did you mean 's3'"),
        ("s3://", "the place is missing, e.g. s3://bucket/runs"),
        ("http://x/y", "s3://"),
    ],
)
def test_a_wrong_place_is_an_error_of_the_config(path: str, says: str) -> None:
    with pytest.raises(ConfigError, match=r"storage\.path") as e:
        toy.config(storage={"path": path})
    assert says in str(e.value)


def test_a_place_that_takes_nothing_is_an_error_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"storage\.path: nothing can be written"):
        run_local(toy.config(rounds=1), out=f"file://{tmp_path}/file/x")
    assert not (tmp_path / "cache").exists()


def test_no_run_there(store: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run"):
        resume_local(f"{store}/nothing")
    assert not (tmp_path / "cache").exists()


def test_a_folder_in_use_is_not_replaced(store: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "here", store)
    lock = load_json(folder.path / "lock.json")
    parent = os.getppid()
    lock["owner"] |= {"pid": parent, "start": process_start(parent)}
    (folder.path / "lock.json").write_bytes(sealed_bytes(lock))
    with pytest.raises(ConfigError, match="still runs"):
        object_store.download(object_store.mirror_of(folder.path).uri, folder.path)  # type: ignore[union-attr]


def test_a_server_elsewhere_cannot_upload(store: str) -> None:
    with pytest.raises(ConfigError, match=r"resources\.server\.place"):
        toy.config(storage={"path": store}, resources={"server": {"place": "any", "gpus": 1}})


def test_names_join_before_a_query() -> None:
    assert object_store.join_uri("s3://b/x/?region=eu", "r", "s") == "s3://b/x/r/s?region=eu"


def test_a_study_folder_leaves_its_runs_to_themselves(store: str, tmp_path: Path) -> None:
    top = new_folder(tmp_path / "here", "s", {"study.yaml": "name: s"}, stored=store)
    RunFolder.create(top / "a" / "seed-0", {}, owner=Owner.me(), exact=True, stored=f"{store}/{top.name}/a/seed-0")
    mirror = object_store.mirror_of(top)
    assert mirror is not None
    mirror.push(0)
    assert set(object_store.newest_manifest(mirror.fs, mirror.base)["files"]) == {"study.yaml"}  # type: ignore[index]


def test_a_sweep_comes_back_whole(store: str, tmp_path: Path) -> None:
    """Its own files, its trials' runs and clones of them, each stored by itself; what is still written here is not replaced."""
    top = new_folder(tmp_path / "here", "s", {"sweep.yaml": "name: s"}, stored=store)
    uri = object_store.mirror_of(top).uri  # type: ignore[union-attr]
    one, two = (
        RunFolder.create(
            top / p, {"name": "r"}, owner=Owner.me(), exact=True, stored=object_store.join_uri(uri, *p.split("/"))
        )
        for p in ("trials/00000/seed-0", "trials/00001/seed-0")
    )
    commit(one, 1, {"loss/global": 1.0}, snapshot=lambda d: (d / "x").write_text("x"))
    commit(two, 1, {"loss/global": 2.0})
    at = top / "trials" / "00001" / "clone-1" / "seed-0"
    at.parent.mkdir()
    parts = at.relative_to(top).parts
    clone = RunFolder.clone(one.path, 1, at, {"name": "c"}, owner=Owner.me(), stored=object_store.join_uri(uri, *parts))
    commit(clone, 2, {"loss/global": 3.0})
    mirror = object_store.mirror_of(top)
    assert mirror is not None
    for text in ("{}", "{}{}"):  # ended, gone on, ended again
        (top / "trials" / "00000" / "rows.jsonl").write_text(text)
        mirror.push(0, plain=True)
        stored = Path(uri.removeprefix("file://"))
        assert (stored / "trials" / "00000" / "rows.jsonl").read_text() == text
    assert set(object_store.newest_manifest(mirror.fs, mirror.base)["files"]) == {
        "sweep.yaml",
        "trials/00000/rows.jsonl",
    }  # type: ignore[index]
    for _ in range(2):  # again over the first copy
        back = object_store.download(uri, tmp_path / "back")
        files = {p.relative_to(top) for p in top.rglob("*") if p.is_file() and not p.name.startswith(".")}
        assert {p.relative_to(back) for p in back.rglob("*") if p.is_file() and not p.name.startswith(".")} == files
        assert read_metrics(back / at.relative_to(top))["loss/global"].to_pylist() == [1.0, 3.0]
    lock = load_json(two.path / "lock.json")
    lock["owner"] |= {"pid": os.getppid(), "start": process_start(os.getppid())}
    (two.path / "lock.json").write_bytes(sealed_bytes(lock))
    with pytest.raises(ConfigError, match="trials/00001/seed-0 is being written"):
        object_store.download(uri, top)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of a run of six rounds."""
    return toy.run_folder("scaffold", tmp_path_factory.mktemp("plain"), rounds=6).rows


@pytest.mark.parametrize(
    ("what", "harm"),
    [
        ("segments", "flip"),
        ("snapshots/round-000004/server", "remove"),
        ("rows", "flip"),
        ("config.yaml", "flip"),
        ("config.yaml", "remove"),
        ("lock.json", "remove"),
    ],
)
def test_a_resume_from_storage_takes_the_newest_whole_state(
    store: str, tmp_path: Path, uninterrupted: list[dict[str, Any]], what: str, harm: str
) -> None:
    """An object that is damaged or lost in the storage is found as a file of a folder is."""
    launcher = LocalLauncher()

    def watch(state: dict[str, Any]) -> None:
        if state["round"] == 4:
            launcher.stop()

    with pytest.raises(RunFailed, match="stopped"):
        start_request(
            toy.config("scaffold", rounds=6, storage={"snapshot_every": 2, "path": store}), launcher, watch=watch
        )
    (stored,) = (tmp_path / "store").iterdir()
    shutil.rmtree(tmp_path / "cache")
    found = [p for p in stored.rglob("*") if p.is_file() and what in p.as_posix().replace("%2F", "/")]
    assert found
    for file in found:
        data = bytearray(file.read_bytes())
        at = (
            data.index(b"constant") + 1 if what == "config.yaml" else len(data) // 2
        )  # a letter: the file can still be read
        data[at] ^= 8
        file.unlink() if harm == "remove" else file.write_bytes(bytes(data))
    with pytest.raises((RunFailed, ConfigError)):
        object_store.download(f"{store}/{stored.name}", tmp_path / "strict")
    if (what, harm) == ("config.yaml", "flip"):
        with pytest.raises(ConfigError, match=r"config\.yaml: \S+ is cgnstant and was constant(.|\n)*--accept-changes"):
            resume_local(f"{store}/{stored.name}")
        return
    again = resume_local(f"{store}/{stored.name}")
    rows = read_metrics(again.path).to_pylist()
    assert [{k: v for k, v in row.items() if not k.startswith(toy.VOLATILE)} for row in rows] == uninterrupted
    assert again.summary["notes"][0].startswith(("segments/", "snapshots/", "parts/", "config.yaml", "lock.json"))


def test_a_damaged_manifest_is_named(store: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "here", store)
    uri = object_store.mirror_of(folder.path).uri  # type: ignore[union-attr]
    (manifest,) = Path(uri.removeprefix("file://")).glob("manifest-*")
    manifest.write_bytes(manifest.read_bytes()[:-9])
    with pytest.raises(ConfigError, match=rf"{manifest.name} is damaged.*can be resumed"):
        object_store.download(uri, tmp_path / "there")


def test_a_damaged_pointer_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "remote.json").write_text("{")
    with pytest.raises(ConfigError, match=r"remote\.json is damaged.*Resume it by its URI"):
        object_store.mirror_of(tmp_path)
