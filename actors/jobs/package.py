"""What travels with a job: config, own method files, local data and models, and the project where the head lacks it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.jobs.head_program import find_sources
from rayfed.config import user_code
from rayfed.errors import ConfigError
from rayfed.launch.progress import human
from rayfed.storage.text_files import yaml_bytes

if TYPE_CHECKING:
    from rayfed.config.schema import Config, Study

LIMIT = 200_000_000  # bytes of data and models
CONFIG = "config.yaml"
FOLDERS = ("parquet:", "hf:")  # before a path in the config


@dataclass
class Package:
    """A request's config with the paths that it will have in the job's folder, and what has to be in that folder.

    texts: name in the package -> content; folders: name in the package -> folder or file on this machine.
    """

    config: dict[str, Any]
    texts: dict[str, bytes] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)

    def write(self, target: Path, *, project: bool) -> None:
        """Fill an empty folder. project: with rayfed itself."""
        config = {CONFIG: yaml_bytes(self.config)} if self.config else {}
        for name, text in {**self.texts, **config}.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(text)
        sources = find_sources() if project else {}
        for name, path in {**self.folders, **sources}.items():
            if path.is_dir():
                shutil.copytree(path, target / name, ignore=shutil.ignore_patterns(".*"))
            else:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target / name)

    def add_folder(self, path: Path) -> str:
        """Add a folder or file to the package, once; return its name there."""
        for known, there in self.folders.items():
            if there == path:
                return known
        name = f"data/{len(self.folders)}-{re.sub(r'[^A-Za-z0-9_.-]', '-', path.name)}"
        self.folders[name] = path
        return name


def pack(request: Config | Study, *, files: Sequence[str | Path] = (), shared: Sequence[Path] = ()) -> Package:
    """Make the package of a checked request.

    files: the user's own that the command names besides it (search spaces); shared: folders that every node of the cluster sees
    under the same path, from which nothing is packed. Raises ConfigError naming `storage` where the data are too large to
    travel.
    """
    package = Package({})
    package.config = _rewrite_paths(request.to_dict(), package, [p.expanduser().resolve() for p in shared], ())
    sizes = {name: sum(f.stat().st_size for f in _files_within(path)) for name, path in package.folders.items()}
    if sum(sizes.values()) > LIMIT:
        each = "; ".join(f"{package.folders[n]}: {human(s)}" for n, s in sizes.items())
        raise ConfigError(
            f"storage: {human(sum(sizes.values()))} of local data and models would have to travel with the job, at most "
            f"{human(LIMIT)} do ({each}). Put them where every node reads them under the same path (NFS) and submit with "
            "--shared DIR, or name them hf:NAME, which the nodes fetch themselves"
        )
    package.texts |= {f"spaces/{Path(f).name}": Path(f).read_bytes() for f in files}
    return package


def _rewrite_paths(value: Any, package: Package, shared: Sequence[Path], where: tuple[str, ...]) -> Any:
    """Return a value of the config with the package's paths, and add to the package what they lead to. where: keys above it."""
    if isinstance(value, Mapping):
        return {k: _rewrite_paths(v, package, shared, (*where, str(k))) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rewrite_paths(v, package, shared, where) for v in value]
    if not isinstance(value, str):
        return value
    own = user_code.FILE.fullmatch(value)
    text = user_code.content(own[1]) if own else None
    if own and text is not None:
        # Under the name of a session's code the run's folder keeps it, and it can be resumed anywhere.
        stem = re.sub(r"\W", "_", Path(own[1]).stem)
        name = own[1] if user_code.WRITTEN.fullmatch(own[1]) else user_code.named_text(stem, text)
        package.texts[name] = text
        return f"{name}:{value.rpartition(':')[2]}"
    scheme = next((s for s in FOLDERS if value.startswith(s)), "")
    if not scheme and where[-2:] != ("init", "from"):
        return value
    path = Path(value.removeprefix(scheme)).expanduser()
    if not path.exists():
        return value  # a name of the hub
    path = path.resolve()
    if any(path.is_relative_to(s) for s in shared):
        return scheme + str(path)
    if where[-2:] == ("init", "from") and (path / "model").is_dir():
        path = path / "model"
    return scheme + package.add_folder(path)


def _files_within(path: Path) -> Iterator[Path]:
    """Yield the file itself, or the files of a folder that are not hidden."""
    if path.is_file():
        yield path
        return
    for file in path.rglob("*"):
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(path).parts):
            yield file
