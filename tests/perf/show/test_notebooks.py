"""The notebooks: they run from top to bottom, and are committed with what they print."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from perf.rows import ROOT

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


def install_cell(path: Path) -> str:
    """The first cell with code."""
    source: str = next(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    return source


def run(cell: str, folder: Path, **environment: str) -> list[str]:
    """What a cell prints, and then what is imported, in an IPython that starts in a folder."""
    code = f"{cell}\nimport perf.rows, triton_gelu\nprint(perf.rows.__file__)\nprint(triton_gelu.__file__)"
    starter = "import sys; from IPython import start_ipython; start_ipython(['--no-banner', '-c', sys.argv[1]])"
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    command = [sys.executable, "-c", starter, code]
    done = subprocess.run(command, cwd=folder, env=inherited | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_every_notebook_begins_with_the_same_installation() -> None:
    cells = {install_cell(path).replace(" openai-whisper", "") for path in NOTEBOOKS}
    assert len(cells) == 1


@pytest.mark.slow
def test_in_the_repository_nothing_is_installed(tmp_path: Path) -> None:
    *said, rows, _ = run(install_cell(NOTEBOOKS[0]), notebooks.FOLDER, PIP_NO_INDEX="1", IPYTHONDIR=str(tmp_path))
    assert said == []
    assert rows == str(ROOT / "perf" / "rows.py")


@pytest.mark.slow
def test_in_a_hosted_notebook_the_package_and_perf_are_installed_from_an_index(tmp_path: Path) -> None:
    index, home, folder = (tmp_path / name for name in ("index", "home", "folder"))
    folder.mkdir()
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(index)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    (cell,) = {install_cell(path) for path in NOTEBOOKS if "whisper" not in install_cell(path)}
    *_, rows, package = run(cell, folder, PIP_TARGET=str(home), IPYTHONDIR=str(tmp_path), **offline)
    assert Path(rows).is_relative_to(folder)
    assert Path(package).is_relative_to(folder)
    assert (home / "triton_gelu" / "__init__.py").exists()
