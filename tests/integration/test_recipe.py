"""CONTRIBUTING.md's recipe for a formula works: its lines are applied to a copy of the package, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
DIFF = re.compile(r"^```diff\n--- (\S+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
CHECK = Path(__file__).with_name("check_formula.py")


def changes() -> Iterator[tuple[str, str, str]]:
    """The recipe: in which file, which lines, and what stands there afterwards."""
    for file, hunks in DIFF.findall(CONTRIBUTING.read_text()):
        for hunk in re.split(r"^@@\n", hunks, flags=re.MULTILINE):
            lines = hunk.splitlines(keepends=True)
            assert all(line[0] in " -+" for line in lines), f"{file}: {hunk}"
            yield file, *("".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, and the recipe's formula in it."""
    folder = tmp_path_factory.mktemp("recipe")
    shutil.copytree(ROOT / "triton_gelu", folder / "triton_gelu", ignore=shutil.ignore_patterns("__pycache__"))
    for file, old, new in changes():
        text = (folder / file).read_text()
        assert text.count(old) == 1, f"CONTRIBUTING.md: these lines are not once in {file}:\n{old}"
        (folder / file).write_text(text.replace(old, new))
    return folder


def test_the_recipe_names_the_formulas_files_only() -> None:
    assert {file for file, _, _ in changes()} == {
        "triton_gelu/formulas/__init__.py",
        "triton_gelu/formulas/device.py",
    }


@pytest.mark.parametrize(
    "backend", ["Triton kernels", "PyTorch, in cache-sized blocks", "plain PyTorch", "torch.compile"]
)
def test_a_formula_added_by_the_recipe_is_right(backend: str, copy: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(copy), "TRITON_INTERPRET": "1"}
    if backend != "Triton kernels" or os.environ.get("TRITON_INTERPRET") != "1":  # silicon, where there is some
        del environment["TRITON_INTERPRET"]
    run = [sys.executable, "-W", "ignore", str(CHECK), "swish3", "1.3", backend]
    done = subprocess.run(run, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(copy / "triton_gelu" / "__init__.py"), "right"]


def test_a_formula_without_its_branches_fails_by_name(copy: Path, tmp_path: Path) -> None:
    shutil.copytree(copy, tmp_path, dirs_exist_ok=True)
    shutil.copy(ROOT / "triton_gelu" / "formulas" / "device.py", tmp_path / "triton_gelu" / "formulas")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TRITON_INTERPRET": "1"}
    run = [sys.executable, "-W", "ignore", str(CHECK), "swish3", "1.3", "Triton kernels"]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "formula 'swish3'" in done.stderr
