"""What travels with a job: own files, local data and models, the project; and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.jobs import package
from rayfed.config import user_code
from rayfed.errors import ConfigError
from tests import toy


def test_own_files_travel_under_names_that_a_run_folder_keeps(own: Path, tmp_path: Path) -> None:
    c = toy.config(f"{own}:Mine")
    packed = package.pack(c)
    (name,) = packed.texts
    assert user_code.WRITTEN.fullmatch(name) and packed.config["method"]["name"] == f"{name}:Mine"
    target = tmp_path / "job"
    target.mkdir()
    packed.write(target, project=False)
    assert sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()) == [name, "config.yaml"]
    # as the job does: its folder is where it is, and the user's file is nowhere
    code = "from rayfed.launch.preflight import load_request; print(load_request('config.yaml').method.name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=target, capture_output=True, text=True)
    assert done.stdout.strip() == f"{name}:Mine", done.stderr


def test_local_data_travel_and_hidden_files_and_names_do_not(tmp_path: Path) -> None:
    data, model = tmp_path / "my data", tmp_path / "net"
    for d in (data, model):
        (d / ".git").mkdir(parents=True)
        (d / ".git" / "x").write_text("x")
        (d / "f.bin").write_bytes(b"12345")
    raw = {
        "task": {"data": {"name": f"parquet:{data}"}, "model": f"hf:{model}"},
        "arms": {"a": {"task": {"data": {"name": f"parquet:{data}/"}}}, "b": {"task": {"model": "hf:some/name"}}},
        "name": str(data),
        "init": {"from": str(model)},
    }
    packed = package.pack(SimpleNamespace(to_dict=lambda: raw))  # type: ignore[arg-type]
    assert packed.config["task"] == {"data": {"name": "parquet:data/0-my-data"}, "model": "hf:data/1-net"}
    assert packed.config["arms"]["a"]["task"]["data"]["name"] == "parquet:data/0-my-data"
    assert packed.config["arms"]["b"]["task"]["model"] == "hf:some/name"
    assert packed.config["name"] == str(data) and packed.config["init"]["from"] == "data/1-net"
    target = tmp_path / "job"
    target.mkdir()
    packed.write(target, project=False)
    files = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()}
    assert files == {"config.yaml", "data/0-my-data/f.bin", "data/1-net/f.bin"}


def test_large_data_are_refused_unless_shared(tmp_path: Path) -> None:
    with open(tmp_path / "train.parquet", "wb") as f:
        f.truncate(package.LIMIT + 1)  # takes no space
    request: Any = SimpleNamespace(to_dict=lambda: {"task": {"data": {"name": f"parquet:{tmp_path}"}}})
    with pytest.raises(ConfigError, match=r"^storage: 200\.0 MB .*--shared DIR") as e:
        package.pack(request)
    assert str(tmp_path) in str(e.value) and e.value.exit_code == 2
    packed = package.pack(request, shared=[tmp_path.parent])
    assert packed.folders == {} and packed.config["task"]["data"]["name"] == f"parquet:{tmp_path}"


def test_the_project_travels_whole_where_the_head_lacks_it(tmp_path: Path) -> None:
    package.Package({"name": "x"}).write(tmp_path, project=True)
    program = (
        "import rayfed.cli, actors.driver, rayfed.config.load as c; print(rayfed.__file__, 'quickstart' in c.ready())"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.split() == [str(tmp_path / "rayfed" / "__init__.py"), "True"], done.stderr
    assert not list(tmp_path.rglob("__pycache__/*.py")) and not (tmp_path / "tests").exists()
