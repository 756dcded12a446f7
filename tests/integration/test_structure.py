"""Repository structure: which imports are allowed, what is public, what the wheel holds."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import triton_gelu

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "triton_gelu"


FLOORS = [  # each imports from those before it, and from its own
    {"core"},
    {"formulas"},
    {"ops"},
    {"functional"},
    {"modules"},
    {"audio", "fuse", "hub_layers"},
    {"__init__", "__main__"},
]
"""The package's modules and folders: core knows PyTorch and Triton, formulas what GELU is, ops both."""


def imported(file: Path) -> Iterator[str]:
    """The modules that a file of the package imports, by their absolute names."""
    folder = file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = [*folder[: len(folder) - node.level + 1]] if node.level else []
            module = [*package, *filter(None, (node.module or "").split("."))]
            yield from (".".join([*module, name.name]) for name in node.names)


def floor(name: str) -> str:
    """The module or folder of the package that an import is from."""
    return [*name.split("."), "__init__"][1]


def test_imports_go_down_only() -> None:
    place = {name: number for number, names in enumerate(FLOORS) for name in names}
    files = list(PACKAGE.rglob("*.py"))
    assert {file.relative_to(PACKAGE).parts[0].removesuffix(".py") for file in files} == set(place)
    for file in files:
        own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for name in imported(file):
            if name.split(".")[0] == PACKAGE.name and floor(name) in place:
                other = floor(name)
                assert other == own or place[other] < place[own], f"{file.relative_to(ROOT)} imports {name}"


def test_core_knows_no_operator_and_no_formula_and_private_names_stand_in_compat_files_only() -> None:
    for file in (PACKAGE / "core").rglob("*.py"):
        assert not [name for name in imported(file) if floor(name) in ("ops", "formulas") and "triton_gelu" in name], (
            file
        )
    private = ("torch._", "triton._", "triton.runtime", "triton.compiler", "triton.backends")
    for file in PACKAGE.rglob("*.py"):
        if not file.name.startswith("compat_"):
            found = [name for name in imported(file) if name.startswith(private)]
            assert not found, f"{file.relative_to(ROOT)} imports {found}"


def test_the_package_imports_itself_relatively_so_that_two_copies_keep_apart() -> None:
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert (node.module or "").split(".")[0] != PACKAGE.name, file
            elif isinstance(node, ast.Import):
                assert not [name.name for name in node.names if name.name.split(".")[0] == PACKAGE.name], file


@pytest.mark.slow
def test_two_copies_in_one_process_register_operators_of_their_own(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "another_gelu", ignore=shutil.ignore_patterns("__pycache__"))
    code = """
import torch, triton_gelu, another_gelu
x, bias = torch.randn(4, 8, requires_grad=True), torch.randn(8, requires_grad=True)
for package in triton_gelu, another_gelu:
    function = torch.compile(package.bias_gelu, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(function(x, bias), torch.nn.functional.gelu(x + bias, approximate="tanh"))
print(torch.ops.triton_gelu.bias_gelu.default.name(), torch.ops.another_gelu.bias_gelu.default.name())
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["triton_gelu::bias_gelu", "another_gelu::bias_gelu"]


def test_the_package_knows_nothing_of_its_tests_and_measurements() -> None:
    for file in PACKAGE.rglob("*.py"):
        assert not {name.split(".")[0] for name in imported(file)} & {"perf", "tests", "numpy", "matplotlib"}


def test_no_file_is_too_long_to_read() -> None:
    assert {file.name: lines for file in PACKAGE.rglob("*.py") if (lines := file.read_text().count("\n")) > 330} == {}


def test_no_two_files_of_tests_have_one_name() -> None:
    """Since tests are no package, pytest would take one for the other."""
    names = sorted(file.name for file in (ROOT / "tests").rglob("*.py"))
    assert names == sorted(set(names))


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


RELATIVE = re.compile(r"\]\((?!https?:|#)")
README = """Text, [guide](docs/guide.md) and [paper](https://example.org/paper).

![Picture](perf/data/picture.png)
What the picture shows.

[![Badge](badge.png)](docs/badge.md)
"""


def test_links_and_pictures_of_the_readme_lead_to_the_version_that_was_built() -> None:
    hatch_build = pytest.importorskip("hatch_build")
    root = "https://example.org/someone/gelu"
    text = hatch_build.described(README, root, "v1.2.3")
    assert f"[guide]({root}/blob/v1.2.3/docs/guide.md) and [paper](https://example.org/paper)" in text
    assert f"![Picture]({root}/raw/v1.2.3/perf/data/picture.png)" in text
    assert not RELATIVE.search(text)


def test_without_an_address_links_are_text_and_pictures_are_left_out() -> None:
    hatch_build = pytest.importorskip("hatch_build")
    text = hatch_build.described(README, None, "v1.2.3")
    assert text.startswith("Text, guide and [paper](https://example.org/paper).\n")
    assert "shows" not in text
    assert "icture" not in text
    assert not RELATIVE.search(text)


@pytest.mark.slow
@pytest.mark.parametrize("address", ["https://example.org/someone/gelu", ""], ids=["address", "no address"])
def test_what_a_package_index_shows_has_no_relative_links(address: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("triton_gelu", "README.md", "LICENSE", "pyproject.toml", "hatch_build.py"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)  # type: ignore[operator]
    if address:
        with (source / "pyproject.toml").open("a") as file:
            file.write(f'\n[project.urls]\nSource = "{address}"\n')
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    text = archive.read(metadata).decode()
    assert text.count("# triton_gelu") == 1
    assert not RELATIVE.search(text)
    assert f"]({address}/blob/v{triton_gelu.__version__}/docs/compile.md)" in text or not address
    assert ("![" in text) == bool(address)
