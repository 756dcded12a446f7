"""Options that the commands which show rows share: input files, which rows of them, output."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from perf import cases
from perf.rows import COPY, DIRECTIONS, RESULTS, Row, UserError, read_rows


def add_arguments(parser: argparse.ArgumentParser, output: str) -> None:
    """The options; `output` tells what is written."""
    parser.add_argument("files", nargs="*", type=Path, help="result files (default: newest in perf/results)")
    parser.add_argument("--output", type=Path, help=f"{output} (default: in the folder of the first file)")
    parser.add_argument("--provider", action="append", metavar="NAME", help="only this provider; may be repeated")
    cases.add_filters(parser, DIRECTIONS)


def select(args: argparse.Namespace) -> tuple[Path, list[Row]]:
    """The first file, and the rows asked for of all files."""
    files = args.files or [newest(RESULTS)]
    return files[0], [row for file in files for row in read_rows(file) if wanted(row, args)]


def wanted(row: Row, args: argparse.Namespace) -> bool:
    """Whether a row is among those asked for; the copy is the scale of all others and always is."""
    return (not args.provider or row.provider in (*args.provider, COPY)) and cases.wanted(row, args)


def newest(folder: Path) -> Path:
    """The result file written last."""
    files: Sequence[Path] = sorted(folder.glob("*.jsonl"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise UserError(f"{folder} has no result file yet; python -m perf measure makes one")
    return files[-1]
