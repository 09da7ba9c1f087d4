"""What own code raises is that code's error; what a signal raises is the user's."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rayfed.config.own_errors import OwnCodeExit, contained, describe, place
from rayfed.config.user_code import load_file

HERE = Path(__file__).name


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (SystemExit(0), "SystemExit: 0"),
        (SystemExit(), "SystemExit"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit("over"), "GeneratorExit: over"),
    ],
)
def test_what_is_no_exception_becomes_one(raised: BaseException, text: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(OwnCodeExit) as found, contained():
        raise raised
    assert str(found.value).startswith(f"{text} (") and HERE in str(found.value) and found.value.__cause__ is raised
    assert str(pickle.loads(pickle.dumps(found.value))) == str(found.value), "it travels between processes"
    assert signal.getsignal(signal.SIGINT) is before


def test_exceptions_pass_as_they_are() -> None:
    with pytest.raises(KeyError, match="column"), contained():
        raise KeyError("column")


def test_a_thread_has_no_signals() -> None:
    found: list[Any] = []

    def work() -> None:
        try:
            with contained():
                raise KeyboardInterrupt
        except OwnCodeExit as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(found) == 1


@pytest.mark.parametrize("own_handler", [False, True])
def test_ctrl_c_stays_the_users(own_handler: bool) -> None:
    """Under Python's own handler, and under one of a run."""

    class Now(BaseException):
        pass

    def handle(signum: int, frame: Any) -> None:
        raise Now

    before = signal.signal(signal.SIGINT, handle if own_handler else signal.default_int_handler)
    try:
        with pytest.raises(Now if own_handler else KeyboardInterrupt), contained():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    finally:
        signal.signal(signal.SIGINT, before)


def test_errors_are_placed_in_the_users_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import json\n\ndef go():\n    return json.loads('{')\n")
    with pytest.raises(ValueError, match="Expecting") as inside:
        load_file(file).go()
    assert place(inside.value) == f"{file}, line 4", "not in the library that it called"
    assert describe(inside.value).endswith(f"({file}, line 4)")
    file.write_text("x = 1\nimport sys\nsys.exit('no licence')\n")
    with pytest.raises(OwnCodeExit, match=rf"^SystemExit: no licence \({file}, line 3\)$"):
        load_file(file)
    assert not [m for m in sys.modules.values() if getattr(m, "__file__", None) == str(file) and hasattr(m, "x")]
    file.write_text("def broken(:\n")
    with pytest.raises(SyntaxError) as wrong:
        load_file(file)
    assert describe(wrong.value).count("line 1") == 1
    assert place(ValueError("never raised")) == "" and describe(ValueError("x")) == "ValueError: x"
