"""Errors that end a command, each with its exit code, and hints at similar names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

LENGTH, NUMBER = 2000, 100  # characters of a problem, and problems, that are printed


class RayfedError(Exception):
    """An error that the user can act on; the command line prints its text without a traceback.

    certain: whether the same request ends in it again, however often it is tried.
    """

    exit_code = 4
    certain = False


class ConfigError(RayfedError):
    """The request is wrong; `problems` lists everything that is wrong with it, not only the first problem; long ones are cut."""

    exit_code = 2
    certain = True

    def __init__(self, problems: str | Sequence[str]):
        found = [problems] if isinstance(problems, str) else list(problems)
        half = LENGTH // 2 - 3
        self.problems = [p if len(p) <= LENGTH else f"{p[:half]} ... {p[-half:]}" for p in found]
        if len(found) > NUMBER:
            self.problems[NUMBER - 1 :] = ["... and more"]
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        return (type(self), (self.problems,))


class PlacementError(RayfedError):
    """The cluster cannot hold what was requested."""

    exit_code = 3


class RunFailed(RayfedError):
    """A run failed after it had started.

    hint: how to go on; diverged: the round in which training left the finite numbers, where that is what happened; change: `--set`
    options with which it would not fail again.
    """

    hint = ""
    diverged: int | None = None
    change = ""

    def __str__(self) -> str:
        return super().__str__() + (f"\n{self.hint}" if self.hint else "")


class DamagedFile(RunFailed):
    """A file of a run folder is not as it was written; `file` is its path, `found` what is wrong with it."""

    def __init__(self, folder: Path, file: Path, found: str):
        super().__init__(
            f"{file} is damaged: {found.rstrip('.')}. rayfed resume {folder} sets it aside and goes on from the newest whole state"
        )
        self.folder, self.file, self.found = folder, file, found

    def __reduce__(self) -> tuple[type[DamagedFile], tuple[Path, Path, str]]:
        return (type(self), (self.folder, self.file, self.found))


class Stopped(RunFailed):
    """A run was asked to stop, by no signal, and did after a committed round; `folder` is that of the request."""

    def __init__(self, folder: Path):
        super().__init__(f"the run was stopped from outside; continue with: rayfed resume {folder}")
        self.folder = folder

    def __reduce__(self) -> tuple[type[Stopped], tuple[Path]]:
        return (type(self), (self.folder,))


class FailsAgain(RunFailed):
    """A run failed, and would fail there again: its code or its settings have to change."""

    certain = True


class Fenced(RayfedError):
    """Another process has taken over the run folder; this one may not write to it any more."""


class Interrupted(RayfedError):
    """The user (130) or the system (143) asked the run to stop; it can be resumed."""

    exit_code = 130


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Make of any error a ConfigError that begins with `what`: what a user has written, or has in files, is the user's, and so is
    what it makes of its readers. Errors of this module stay as they are."""
    try:
        yield
    except RayfedError:
        raise
    except Exception as e:
        raise ConfigError(f"{what}: {type(e).__name__}: {e}") from e


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` with the known name that is most similar, or the empty string if none is."""
    found = difflib.get_close_matches(str(name), [str(k) for k in known], n=3, cutoff=0.5)
    found.sort(key=lambda k: sorted(k) != sorted(str(name)))  # letters that changed places go first
    return f" (did you mean {found[0]!r}?)" if found else ""
