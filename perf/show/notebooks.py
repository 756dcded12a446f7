"""Execute the notebooks and keep their outputs; warnings, which name paths of this machine, are dropped.

examples:
  python -m perf notebooks                          all of them
  python -m perf notebooks notebooks/encoder.ipynb
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from perf.compat_tqdm import progress
from perf.rows import ROOT

FOLDER = ROOT / "notebooks"
CELL_S = 120  # most that a cell may take


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m perf notebooks`."""
    parser.add_argument("files", nargs="*", type=Path, help="notebooks (default: all)")


def run(args: argparse.Namespace) -> int:
    """Execute and save, one after another."""
    for path in progress(args.files or sorted(FOLDER.glob("*.ipynb")), str):
        nbformat.write(executed(path), path)
    return 0


def executed(path: Path) -> Any:
    """The notebook with fresh outputs. Raises `nbclient.exceptions.CellExecutionError` where a cell does."""
    notebook = nbformat.read(path, as_version=4)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    client = NotebookClient(
        notebook, timeout=CELL_S, coalesce_streams=True, resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    return notebook
