"""Types of command line arguments, for argparse: a mistake is answered with what was expected."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from perf import library
from perf.static.gpus import GPUS

DTYPES = {name: str(dtype).removeprefix("torch.") for name, dtype in library.DTYPES.items()}


def seconds(text: str) -> float:
    """A time from the command line."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds, 0 or more, got {text!r}")
    return number


def positive(text: str) -> int:
    """A positive integer from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def gpu(text: str) -> str:
    """A GPU that is known to static analysis, as its key."""
    try:
        key = library.key_of(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None
    if key not in GPUS:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(GPUS)}, got {text!r}: its pipes are not known")
    return key


def add_gpus(parser: argparse.ArgumentParser, default: Sequence[str]) -> None:
    """The option that names GPUs to compile for: `gpus`."""
    words = f"to compile for: {', '.join(GPUS)}, or an architecture such as sm_90 (default: {' '.join(default)})"
    parser.add_argument(
        "--gpu", "--target", dest="gpus", nargs="+", type=gpu, metavar="GPU", default=list(default), help=words
    )


def dtype_name(text: str) -> str:
    """The long name of a dtype, from either of its names."""
    name = DTYPES.get(text, text)
    if name not in DTYPES.values():
        raise argparse.ArgumentTypeError(f"expected {', '.join(DTYPES)}, got {text!r}")
    return name
