"""The ways to call, which are the columns of the table in docs/composition.md; its rows are the tests `ways` marks.

`python tests/integration/ways.py` writes the table anew.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

Test = Callable[..., None]

COLUMNS = ("eager", "compiled", "functorch", "distributed")
WORKS, FAILS, UNTESTED = "✓", "✗", "·"
ISSUE = "https://github.com/pytorch/pytorch/issues/"
MODULES = ("test_compose", "test_distributed")
RANKS = 2
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "composition.md"
TABLE = re.compile(r"(?<=<!-- python tests/integration/ways.py -->\n).*?(?=<!-- end -->)", re.DOTALL)


def ways(*names: str, slow: tuple[str, ...] = (), **limits: int) -> Callable[[Test], Test]:
    """Run a test in these ways, and let it fail in those that an issue of PyTorch forbids: `compiled=91469`.

    What stands before a comma is the way's column. The distributed ones run in processes of their own.
    """

    def mark(test: Test) -> Test:
        @functools.wraps(test)
        def run(*args: Any, **kwargs: Any) -> None:
            if "distributed" in kwargs["way"]:
                in_ranks(test.__module__, test.__name__, kwargs)
            else:
                test(*args, **kwargs)

        late = {*slow, *(name for name in names if "distributed" in name)}
        allowed = [pytest.param(name, marks=pytest.mark.slow if name in late else ()) for name in names]
        refused = [
            pytest.param(name, marks=[pytest.mark.xfail(strict=True, reason=f"{ISSUE}{number}"), pytest.mark.slow])
            for name, number in limits.items()
        ]
        run.ways = {**dict.fromkeys(names), **limits}  # type: ignore[attr-defined]
        marked: Test = pytest.mark.parametrize("way", [*allowed, *refused])(run)
        return marked

    return mark


def in_ranks(module: str, test: str, kwargs: dict[str, Any]) -> None:
    """Run a test's body in processes that make one group."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, module, test, kwargs), nprocs=RANKS)


def _rank(rank: int, port: int, module: str, test: str, kwargs: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=RANKS)
    try:
        getattr(importlib.import_module(module), test).__wrapped__(**kwargs)
    finally:
        torch.distributed.destroy_process_group()


def table() -> str:
    """The document's table: a row for each test."""
    lines = [("", *COLUMNS), ("---", *[":---:"] * len(COLUMNS))]
    for name, test in _rows():
        limits = [{way: limit for way, limit in test.ways.items() if way.split(",")[0] == c} for c in COLUMNS]
        lines.append((name.removeprefix("test_").replace("_", " "), *map(_cell, limits)))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _rows() -> Iterator[tuple[str, Any]]:
    for module in MODULES:
        for name, value in vars(importlib.import_module(module)).items():
            if hasattr(value, "ways"):
                yield name, value


def _cell(limits: dict[str, int | None]) -> str:
    return ", ".join(dict.fromkeys(f"{FAILS} [#{n}]({ISSUE}{n})" if n else WORKS for n in limits.values())) or UNTESTED


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    DOCUMENT.write_text(TABLE.sub(lambda _: table(), DOCUMENT.read_text()))
