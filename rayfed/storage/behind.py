"""Work behind the rounds: a thread writes and syncs what the next rounds need not wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Behind:
    """Does one piece of work at a time in a thread of its own. What goes wrong in it is raised, once, by the next call."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def busy(self) -> bool:
        """Return whether the last piece is under way. Raises its error where it has failed."""
        if self._thread is not None and self._thread.is_alive():
            return True
        self.wait()
        return False

    def start(self, work: Callable[[], None]) -> None:
        """Begin a piece of work, once the last one has ended. Raises the last one's error instead."""
        self.wait()
        self._thread = threading.Thread(target=self._do, args=(work,), name="rayfed-behind")
        self._thread.start()

    def wait(self) -> None:
        """Return once the last piece has ended. Raises its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
