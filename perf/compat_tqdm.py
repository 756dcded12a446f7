"""A progress bar on stderr: tqdm's where it is installed, else a plain line an item.

tqdm is optional, so that `python -m perf gpu` runs with nothing but PyTorch and Triton.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

Item = TypeVar("Item")


def progress(items: Sequence[Item], label: Callable[[Item], str]) -> Iterator[Item]:
    """The items, one by one, while stderr tells which is at work: a bar on a terminal, lines in a pipe or file."""
    if tqdm is None or not sys.stderr.isatty():
        for number, item in enumerate(items, start=1):
            print(f"{number}/{len(items)}  {label(item)}", file=sys.stderr, flush=True)
            yield item
        return
    with tqdm(items, file=sys.stderr, dynamic_ncols=True, leave=False, mininterval=0) as bar:
        for item in bar:
            bar.set_description_str(label(item))
            yield item
