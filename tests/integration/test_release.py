"""What a release needs: an index takes what is built, forms ask for the report, workflows run what a developer runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

import triton_gelu

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
LONG = ("make test", "make matrix")  # what runs these tests; here make is only asked what it would do
HERE = ["-o", ".venv/torch", "-o", ".venv/dev", f"BIN={Path(sys.executable).parent}"]  # the environment of this process


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def steps(path: Path) -> list[str]:
    """The commands of a workflow, in order, for each entry of its matrix."""
    commands = []
    for job in read(path)["jobs"].values():
        for entry in job.get("strategy", {}).get("matrix", {}).get("include", [{}]):
            for step in job["steps"]:
                text = step.get("run", "")
                commands.append(re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda found, e=entry: e[found[1]], text))
    return [command for command in commands if command]


COMMANDS = sorted({command for path in WORKFLOWS for command in steps(path)})


def make(command: str, *options: str) -> str:
    """What `make` prints."""
    if not shutil.which("make"):
        pytest.skip("this machine has no make")
    words = [*command.split(), *HERE, *options]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_make_and_nothing_else(path: Path) -> None:
    known = set(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split())
    assert steps(path)
    for command in steps(path):
        program, *words = command.split()
        assert program == "make"
        assert {word for word in words if "=" not in word} <= known
    for job in read(path)["jobs"].values():
        pythons = {
            str(step["with"]["python-version"]) for step in job["steps"] if "setup-python" in step.get("uses", "")
        }
        assert all(version.startswith(("3.", "${{")) for version in pythons)  # text: 3.10 as a number is 3.1


def test_the_workflows_run_the_tests_that_have_to_pass_before_a_change_lands() -> None:
    (line,) = re.findall(r"^make .*$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert line in COMMANDS


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith(LONG)])
def test_make_would_run_the_tests_that_a_workflow_asks_for(command: str) -> None:
    assert "-m pytest" in make(command, "--dry-run")


@pytest.mark.slow
@pytest.mark.parametrize("command", [each for each in COMMANDS if not each.startswith(LONG)])
def test_the_other_steps_of_the_workflows_run(command: str) -> None:
    make(command)


@pytest.mark.slow
def test_an_index_takes_the_wheel_and_the_source_distribution(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    files = [str(path) for path in tmp_path.iterdir()]
    check = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *files]
    done = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.count("PASSED") == len(files) == 2, done.stdout + done.stderr
    (source,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        inside = {Path(name).parts[1] for name in archive.getnames()}
        metadata = archive.extractfile(f"triton_gelu-{triton_gelu.__version__}/PKG-INFO")
        assert metadata is not None
        text = metadata.read().decode()
    assert {"Metadata-Version: 2.4", "Requires-Python: >=3.10", "License-Expression: Apache-2.0"} <= set(
        text.splitlines()
    )
    assert inside >= {"triton_gelu", "tests", "perf", "docs", "examples", "hub", "notebooks", ".github", "CITATION.cff"}


def test_the_version_is_the_same_wherever_it_is_said() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert citation["version"] == triton_gelu.__version__
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
    newest = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert newest == triton_gelu.__version__


def test_the_changelog_says_of_each_version_after_the_first_what_breaks() -> None:
    _, *newer, _ = (ROOT / "CHANGELOG.md").read_text().split("\n## ")
    assert newer
    assert all("What breaks" in text for text in newer)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_asks_for_the_report(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= set(form)
    asked = [field for field in form["body"] if "python -m triton_gelu" in str(field["attributes"]["label"])]
    assert asked[0]["validations"]["required"]
    names = [field["id"] for field in form["body"]]
    assert len(set(names)) == len(names)
