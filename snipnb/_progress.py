"""What a terminal shows: progress bars for people, silent where nobody looks, and characters that it may lack."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sized
from functools import cache
from typing import IO, TypeVar

from tqdm import tqdm

T = TypeVar("T")
DELAY_SECONDS = 2.0  # anything shorter shows nothing


def _in_notebook() -> bool:
    """Whether this process is a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and shell.__class__.__name__ == "ZMQInteractiveShell"


@cache
def _open_terminal(path: str) -> IO[str] | None:
    """The terminal that the runner named, if it can be written to."""
    try:
        return open(path, "w", encoding="utf-8")
    except OSError:
        return None


def progress_stream() -> IO[str] | None:
    """Where progress goes: a stream, or None for silence.

    ``SNIPNB_PROGRESS=0`` silences progress. The runner sets the variable to the path of its terminal, so that a notebook
    executed without a browser still shows progress there. Its stored outputs stay free of progress.
    """
    setting = os.environ.get("SNIPNB_PROGRESS", "")
    if setting.startswith("/"):
        return _open_terminal(setting)
    if setting == "0":
        return None
    if _in_notebook():
        return sys.stdout
    return sys.stderr if sys.stderr is not None and sys.stderr.isatty() else None


def track(items: Iterable[T], description: str, *, total: int | None = None) -> Iterable[T]:
    """Iterate over ``items`` with a bar that appears after two seconds, also within a first long step, where somebody can see it."""
    if (stream := progress_stream()) is None:
        return items
    total = len(items) if total is None and isinstance(items, Sized) else total
    return _shown(
        items, tqdm(desc=description, total=total, file=stream, leave=False, delay=DELAY_SECONDS, mininterval=0.5)
    )


def _shown(items: Iterable[T], bar: tqdm) -> Iterator[T]:
    """The items, counted by a bar that by itself looks at the time only when a step ends."""
    first = threading.Timer(DELAY_SECONDS + 0.1, bar.update, [0])
    first.daemon = True
    first.start()
    try:
        for item in items:
            yield item
            bar.update()
    finally:
        first.cancel()
        bar.close()


def note(message: str) -> None:
    """Print one line about a slow step, where somebody can see it."""
    if (stream := progress_stream()) is not None:
        print(message, file=stream, flush=True)


def print_anywhere() -> None:
    """Make ``print`` write ``?`` for a character that the terminal's encoding lacks, where it would raise an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
