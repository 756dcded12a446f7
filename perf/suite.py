"""Add a row that says how many tests pass on the versions that are installed here: what `make matrix` does at its end.

examples:
  pytest --junitxml suite.xml; python -m perf suite suite.xml
"""

from __future__ import annotations

import argparse
import platform
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import torch

from perf.rows import DATA, KERNEL_BACKEND, Row, UserError, append_row, context

CASE, PROVIDER = "tests/", "pytest"
PASSED = "tests passed"
COUNTS = ("tests", "failures", "errors", "skipped")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m perf suite`."""
    parser.add_argument("files", nargs="+", type=Path, help="what pytest --junitxml wrote, one or several")
    parser.add_argument(
        "--output", type=Path, default=DATA / "versions.jsonl", help="file of rows (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Count, and add the row; the exit code is 1 if a test failed."""
    row = counted(args.files)
    append_row(args.output, row)
    versions = ", ".join(f"{name} {version}" for name, version in row.versions.items())
    print(f"{args.output}: {row.value or 0:g} passed, {row.note}, {versions}")
    return int(row.status == "failed")


def counted(files: list[Path]) -> Row:
    """The row of a suite that wrote these files. Raises `UserError` for one that pytest did not write."""
    total = dict.fromkeys(COUNTS, 0)
    for file in files:
        try:
            suites = list(ElementTree.parse(file).iter("testsuite"))
        except (OSError, ElementTree.ParseError) as problem:
            raise UserError(f"{file} is not what pytest --junitxml writes: {problem}") from problem
        for suite in suites:
            for name in COUNTS:
                total[name] += int(suite.get(name, 0))
    failed = total["failures"] + total["errors"]
    passed = total["tests"] - failed - total["skipped"]
    on_gpu = torch.cuda.is_available()
    return Row(
        kind="checked", case=CASE, shape=(), dim=None, dtype="", approximate="", direction="forward_backward",
        provider=PROVIDER, metric=PASSED, unit="tests", value=None if failed else float(passed),
        status="failed" if failed else "ok",
        note=f"{failed} failed, {total['skipped']} skipped",
        device=torch.cuda.get_device_name() if on_gpu else f"{platform.system()} {platform.machine()}",
        backend=KERNEL_BACKEND if on_gpu else "interpreter", **context(),
    )  # fmt: skip
