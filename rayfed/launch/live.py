"""The live progress of a command or of a notebook's cell: phases, a bar, and the time left of the whole request."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from rayfed.config import phases
from rayfed.launch.progress import line
from rayfed.launch.start import RUN_ID
from rayfed.launch.time_left import TimeLeft

EVERY_S = 10.0  # between two lines where output is no terminal
JOB_S = 1.0  # the same in a cluster's job, whose lines `rayfed logs -f` shows as one live line
WATCH_S = 2.0  # between two looks of `rayfed status --watch`
ENDED = ("done", "stopped", "failed")


class View(Protocol):
    """Where progress is shown."""

    def show(self, text: str, share: float | None) -> None:
        """Show how things stand; share: of the work that is done, None where nobody knows."""

    def end(self, text: str, of_several: bool) -> None:
        """Show how a run has ended; of_several: others come after it, so that a line stays behind."""

    def close(self) -> None:
        """Show nothing more."""


class Terminal:
    """A bar with a line below it, drawn by rich."""

    def __init__(self) -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeElapsedColumn
        from rich.text import Text

        self.text = Text("starting")
        self.bar = Progress(BarColumn(40), TaskProgressColumn(), TimeElapsedColumn())
        self.task = self.bar.add_task("", total=None)
        self.live = Live(Group(self.bar, self.text), refresh_per_second=8)
        self.live.__enter__()

    def show(self, text: str, share: float | None) -> None:
        self.text.plain = text
        self.bar.update(self.task, total=None if share is None else 1.0, completed=share or 0.0)

    def end(self, text: str, of_several: bool) -> None:
        if of_several:
            self.live.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self.live.__exit__(None, None, None)


class Notebook:
    """A widget below the cell, by tqdm; as text where the notebook has no widgets."""

    def __init__(self) -> None:
        import warnings

        from tqdm import TqdmWarning
        from tqdm.auto import tqdm

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TqdmWarning)  # no widgets here: it is text then
            self.bar = tqdm(total=1000, bar_format="{l_bar}{bar}| {postfix}", desc="")

    def show(self, text: str, share: float | None) -> None:
        self.bar.n = round(1000 * (share or 0.0))
        self.bar.set_postfix_str(text)

    def end(self, text: str, of_several: bool) -> None:
        if of_several:
            print(text, flush=True)

    def close(self) -> None:
        self.bar.close()


class Lines:
    """A line at the start, then one about every ten seconds, and one for each run that ends."""

    def __init__(self, every: float | None = None):
        """every: seconds between two lines."""
        self.every = (JOB_S if RUN_ID in os.environ else EVERY_S) if every is None else every
        self._last, self._due = "", 0.0

    def show(self, text: str, share: float | None) -> None:
        if text != self._last and time.monotonic() >= self._due:
            self.end(text)

    def end(self, text: str, of_several: bool = False) -> None:
        if text != self._last:
            print(text, flush=True)
        self._last, self._due = text, time.monotonic() + self.every

    def close(self) -> None:
        pass


class Progress:
    """Shows live statuses, and before there are any the phases of this process; `with Progress() as p: ... watch=p.update`.

    quiet: show nothing. Where it shows: on a terminal a bar, in a notebook a widget, elsewhere lines.
    """

    def __init__(self, quiet: bool = False):
        self.quiet = quiet
        self.view: View | None = None
        self.left = TimeLeft()
        self._stack = ExitStack()
        self._kept, self._phase = "", ""
        self._share: float | None = None

    def __enter__(self) -> Progress:
        if not self.quiet:
            self.view = _view()
            self._stack.callback(self.view.close)
            self._stack.enter_context(phases.listening(self.begin))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def begin(self, phase: str) -> None:
        """Show what begins before the first round of a run."""
        self._phase = phase
        if self.view is not None:
            self.view.show(f"starting: {phase}", self._share)

    def update(self, state: Mapping[str, Any]) -> None:
        """Show a live status, as in state.json; in a study it has arm, seed, run_number and runs too."""
        if self.view is None or (self._phase and not state.get("round") and not state.get("phase")):
            return  # it says less than the phase that is shown
        self._phase = ""
        self._share, seconds = self.left.of(state)
        several = "runs" in state or "trials" in state
        ended = state.get("status") in ENDED
        text = line({**state, "all_s": seconds} if several and not ended else state)
        if ended and text != self._kept:
            self._kept = text
            self.view.end(text, several)
        self.view.show(text, self._share if state.get("round") else (self._share or None))


@contextmanager
def shown(progress: bool | None) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """Show progress while this block runs: yields what takes live statuses, or None.

    progress: whether to; None: on a terminal and in a notebook.
    """
    if not (progress or (progress is None and (sys.stdout.isatty() or in_notebook()))):
        yield None
        return
    with Progress() as made:
        yield made.update


def in_notebook() -> bool:
    """Return whether this process is a notebook's."""
    if "IPython" not in sys.modules:
        return False
    from rich.console import Console

    return Console().is_jupyter


def keep_showing(look: Callable[[], tuple[str, bool]], every: float = WATCH_S) -> None:
    """Show what `look` gives, again and again, until it says that nothing goes on any more.

    look: returns (text, whether it goes on). On a terminal the text replaces the last one, elsewhere it is printed where it has changed,
    at most every ten seconds.
    """
    if not sys.stdout.isatty():
        lines, (text, on) = Lines(EVERY_S), look()
        while on:
            lines.show(text, None)
            time.sleep(every)
            text, on = look()
        lines.end(text)
        return
    from rich.live import Live
    from rich.text import Text

    with Live(Text(""), refresh_per_second=4) as live:
        on = True
        while on:
            text, on = look()
            live.update(Text(text))
            if on:
                time.sleep(every)


def _view() -> View:
    if in_notebook():
        try:
            return Notebook()
        except ImportError:
            return Lines()
    return Terminal() if sys.stdout.isatty() else Lines()
