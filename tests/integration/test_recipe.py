"""CONTRIBUTING.md's recipes work: their lines, and nothing else, are applied to a copy of the repository."""

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
RECIPE = re.compile(r"^### (.*?)\n(.*?)(?=^##)", re.DOTALL | re.MULTILINE)
DIFF = re.compile(r"^```diff\n--- (\S+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
CHECK = Path(__file__).with_name("check_formula.py")
RECIPES = dict(RECIPE.findall(CONTRIBUTING.read_text()))


def changes(recipe: str) -> Iterator[tuple[str, str, str]]:
    """What a recipe changes: in which file, which lines, and what stands there afterwards."""
    for file, hunks in DIFF.findall(RECIPES[recipe]):
        for hunk in re.split(r"^@@\n", hunks, flags=re.MULTILINE):
            lines = hunk.splitlines(keepends=True)
            assert all(line[0] in " -+" for line in lines), f"{file}: {hunk}"
            yield file, *("".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))


def copy_with(recipe: str, folder: Path) -> Path:
    """A folder with the package, perf and tests, as a recipe changes them."""
    for name in ("triton_gelu", "perf", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for file, old, new in changes(recipe):
        text = (folder / file).read_text()
        assert text.count(old) == 1, f"CONTRIBUTING.md: these lines are not once in {file}:\n{old}"
        (folder / file).write_text(text.replace(old, new))
    return folder


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python command with the copy."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = {**inherited, "PYTHONPATH": str(folder), **environment}
    command = (sys.executable, "-W", "ignore", *command)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with the recipe's formula in it."""
    return copy_with("A formula", tmp_path_factory.mktemp("recipe"))


def test_the_recipe_for_a_formula_names_two_files() -> None:
    assert {file for file, _, _ in changes("A formula")} == {
        "triton_gelu/formulas/__init__.py",
        "triton_gelu/formulas/device.py",
    }


@pytest.mark.parametrize(
    "backend", ["Triton kernels", "PyTorch, in cache-sized blocks", "plain PyTorch", "torch.compile"]
)
def test_a_formula_added_by_the_recipe_is_right(backend: str, copy: Path) -> None:
    interpreted = backend == "Triton kernels" and os.environ.get("TRITON_INTERPRET") == "1"  # else on silicon
    environment = {"TRITON_INTERPRET": "1"} if interpreted else {}
    done = run(copy, str(CHECK), "swish3", "1.3", backend, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(copy / "triton_gelu" / "__init__.py"), "right"]


def test_a_formula_without_its_branches_fails_by_name(copy: Path, tmp_path: Path) -> None:
    shutil.copytree(copy / "triton_gelu", tmp_path / "triton_gelu")
    shutil.copy(ROOT / "triton_gelu" / "formulas" / "device.py", tmp_path / "triton_gelu" / "formulas")
    done = run(tmp_path, str(CHECK), "swish3", "1.3", "Triton kernels", TRITON_INTERPRET="1")
    assert done.returncode
    assert "formula 'swish3'" in done.stderr


def test_a_backend_added_by_the_recipe_is_asked(tmp_path: Path) -> None:
    done = run(copy_with("A backend", tmp_path), "-m", "triton_gelu")
    assert done.returncode == 0, done.stderr
    assert "it is an example" in done.stdout


def test_a_gpu_added_by_the_recipe_is_planned_for_and_known(tmp_path: Path) -> None:
    copy_with("A GPU", tmp_path)
    done = run(tmp_path, "-m", "triton_gelu", "--shape", "64,4096", "--gpu", "l4")
    assert "L4 (sm_89), 58 processors" in done.stdout
    tests = "tests/core/test_targets.py"
    done = run(tmp_path, "-m", "pytest", "-q", tests, "-k", "known_by_name", "--rootdir", str(tmp_path))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("A case", ["--set", "quick", "--dtype", "bf16"]),
        ("A provider", ["--provider", "max-autotune", "--set", "targets"]),
    ],
)
def test_a_case_and_a_provider_added_by_the_recipes_are_there(recipe: str, words: list[str], tmp_path: Path) -> None:
    code = (
        "import argparse, sys; from perf import cases, providers; parser = argparse.ArgumentParser();"
        "cases.add_arguments(parser); providers.add_arguments(parser); args = parser.parse_args(sys.argv[1:]);"
        "print(*(case.name for case in cases.select(args)), *providers.select(args))"
    )
    done = run(copy_with(recipe, tmp_path), "-c", code, *words)
    assert ("mine" if recipe == "A case" else "max-autotune") in done.stdout.split(), done.stderr
