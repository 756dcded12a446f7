"""A progress bar with the time left, on stderr; plain lines where stderr is not a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
BAR = 24
CLEAR = "\r\x1b[K"


def progress(items: Sequence[Item], label: Callable[[Item], str]) -> Iterator[Item]:
    """The items, one by one, while the bar tells which is at work and how long the rest will take."""
    began = time.monotonic()
    lively = sys.stderr.isatty()
    try:
        for done, item in enumerate(items):
            line = f"{done + 1}/{len(items)}  {label(item)}"
            if lively:
                filled = BAR * done // len(items)
                left = _left(time.monotonic() - began, done, len(items))
                line = f"{'━' * filled}{'╌' * (BAR - filled)} {line}{left}"
                line = CLEAR + line[: shutil.get_terminal_size().columns - 1]
            print(line, end="" if lively else "\n", file=sys.stderr, flush=True)
            yield item
    finally:
        if lively:
            print(CLEAR, end="", file=sys.stderr, flush=True)


def _left(elapsed: float, done: int, total: int) -> str:
    if not done:
        return ""
    minutes, seconds = divmod(round(elapsed / done * (total - done)), 60)
    return f"  {minutes}:{seconds:02} left"
