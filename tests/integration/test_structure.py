"""The house: who may import whom, what is public, what is shipped."""

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import triton_gelu

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "triton_gelu"


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= (
                {f"{node.module}.{name.name}" for name in node.names} if node.module == "triton_gelu" else {node.module}
            )
    return found


def test_the_package_knows_nothing_of_its_tests_and_measurements() -> None:
    for file in PACKAGE.rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(file)} & {"perf", "tests", "numpy", "matplotlib"}


def test_every_public_name_is_there() -> None:
    assert sorted(triton_gelu.__all__) == sorted(set(triton_gelu.__all__))
    assert all(hasattr(triton_gelu, name) for name in triton_gelu.__all__)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_what_is_built_is_installed_and_imported_from_elsewhere(kind: str, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = (each for each in tmp_path.iterdir() if each.suffix in (".whl", ".gz"))
    home = tmp_path / "home"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(home), str(built)], cwd=tmp_path, check=True, capture_output=True)
    code = f"import sys; sys.path.insert(0, {str(home)!r}); import torch, triton_gelu; print(triton_gelu.__file__);"
    code += "print(triton_gelu.bias_gelu(torch.ones(2, 3), torch.ones(3)).shape)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TRITON"))}
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [str(home / "triton_gelu" / "__init__.py"), "torch.Size([2, 3])"]


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"triton_gelu", f"triton_gelu-{triton_gelu.__version__}.dist-info"}
    assert "triton_gelu/py.typed" in zipfile.ZipFile(wheel).namelist()
