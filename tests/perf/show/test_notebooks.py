"""The notebooks: they run from top to bottom, and are committed with what they print."""

from pathlib import Path

import pytest

nbformat, notebooks = (pytest.importorskip(name) for name in ("nbformat", "perf.show.notebooks"))

NOTEBOOKS = sorted(notebooks.FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_committed_and_name_nothing_of_a_machine(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell.outputs) for cell in cells) > len(cells) / 2
    outputs = str([cell.outputs for cell in cells])
    assert not any(word in outputs for word in ("site-packages", "/home/", "/root/", "/tmp/", "Traceback"))
    assert path.stat().st_size < 500_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path: Path) -> None:
    cells = [cell for cell in notebooks.executed(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
