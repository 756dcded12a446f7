"""What the documents say: figures are those of the rows, commands run, links lead somewhere."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from perf.rows import DATA, ROOT, Row, UserError, append_row, read_rows

plot, readme = (pytest.importorskip(f"perf.show.{name}") for name in ("plot", "readme"))
FENCED = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SMALLER = {  # options that make a long command short, or only ask it for help
    "measure": ["--provider", "triton_gelu", "--seconds", "0", "--output", "{folder}/rows.jsonl"],
    "report": ["--help"],
    "compare": ["--help"],
    "accuracy": ["--help"],
    "fit": ["--help"],
    "notebooks": ["--help"],
    "readme": ["--check"],
    "saved": ["--help"],
    "calls": ["--help"],
    "gpu": ["--help"],
    "analyse": ["--gpu", "h100", "--provider", "triton_gelu"],
}
README_LINES = 120
ENOUGH_LINES = 10  # of the README, for a reader to see what it is, and an example


def fenced(language: str) -> list[str]:
    return [code for file in readme.DOCUMENTS for name, code in FENCED.findall(file.read_text()) if name == language]


COMMANDS = sorted({
    command for code in fenced("sh") for line in code.splitlines() for command in line.split(" && ")
})  # fmt: skip


def test_every_figure_is_that_of_the_committed_rows() -> None:
    text = "".join(path.read_text() for path in readme.DOCUMENTS)
    assert readme.rewritten(text) == text, "stale: run python -m perf readme"
    assert set(re.findall(r"<!-- rows: (\w+) -->", text)) == set(readme.BLOCKS)


def test_the_readme_is_short() -> None:
    lines = readme.README.read_text().splitlines()
    assert len(lines) <= README_LINES
    assert fenced("python")[0].splitlines()[-1] in lines[:ENOUGH_LINES]


def test_every_picture_was_drawn_from_the_committed_rows() -> None:
    assert readme.stale_pictures() == [], "stale: run python -m perf readme"
    text = "".join(path.read_text() for path in readme.DOCUMENTS)
    assert set(re.findall(r"perf/data/([\w-]+\.png)\)", text)) == set(readme.PICTURES)


def test_a_stale_figure_and_a_stale_picture_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = readme.README.read_text()
    spoilt = re.sub(r"\| (\d)\.(\d\d) ", r"| \g<1>.\g<2>9 ", text, count=1)
    assert spoilt != text
    assert readme.rewritten(spoilt) == text
    data = tmp_path / "data"
    shutil.copytree(DATA, data)
    monkeypatch.setattr(readme, "DATA", data)
    assert readme.stale_pictures() == []
    append_row(data / "targets.jsonl", read_rows(data / "quick.jsonl")[0])
    assert readme.stale_pictures() == []
    quick = read_rows(data / "quick.jsonl")
    append_row(data / "quick.jsonl", readme_row(quick))
    assert [path.name for path in readme.stale_pictures()] == ["quick.png"]
    (data / "headroom.png").unlink()
    assert [path.name for path in readme.stale_pictures()] == ["headroom.png", "quick.png"]
    assert plot.digest(quick) != plot.digest(quick[1:])


def readme_row(rows: list[Row]) -> Row:
    from dataclasses import replace

    return replace(rows[0], value=2 * (rows[0].value or 1.0))


def test_a_block_that_nobody_fills_is_refused() -> None:
    with pytest.raises(UserError, match="no block is named 'nothing'; there are traffic"):
        readme.rewritten("<!-- rows: nothing -->\n<!-- end -->")


def test_links_lead_to_files_and_headings() -> None:
    for file in readme.DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", file.read_text()):
            name, _, anchor = target.partition("#")
            path = file.parent / name if name else file
            assert path.exists(), f"{file.name} links to {target}"
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if anchor else []
            assert not anchor or anchor in map(slug, headings), f"{file.name} links to {target}"


def slug(heading: str) -> str:
    """A heading as a link names it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def output(code: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_first_example_runs_and_its_comments_are_true() -> None:
    example, *_ = fenced("python")
    checks = """
from torch.nn.functional import gelu
gradients = torch.autograd.grad(gelu(x @ w + b).sum(), (x, w, b))
torch.testing.assert_close(y, gelu(x @ w + b), rtol=1e-4, atol=1e-5)
torch.testing.assert_close([x.grad, w.grad, b.grad], list(gradients), rtol=1e-3, atol=1e-4)
"""
    assert output(example + checks) == ""


def test_a_report_of_fuse_is_what_the_readme_says() -> None:
    text = readme.README.read_text()
    (printed,) = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    code, said = printed
    code = code[code.rfind("```python\n") + len("```python\n") :] if "```python" in code else code
    assert output(code) == said


@pytest.mark.slow
@pytest.mark.parametrize("page", ["start", "hugging_face"])
def test_examples_of_the_pages_for_beginners_run_and_print_what_is_said(page: str) -> None:
    blocks = FENCED.findall((ROOT / "docs" / f"{page}.md").read_text())
    printed = {code: text for (name, code), (after, text) in pairwise(blocks) if (name, after) == ("python", "text")}
    examples = [code for name, code in blocks if name == "python" and "LocalLayerRepository" not in code]
    assert examples  # of the one that is left out tests/integration/test_hub.py tells
    for code in examples:
        said = output(code)
        assert said == printed.get(code, said)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_in_the_documents_runs(command: str, tmp_path: Path) -> None:
    words = shlex.split(command, comments=True)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    while "=" in words[0]:
        environment |= [words.pop(0).split("=", 1)]
    if words[0] == "make":
        if not shutil.which("make"):
            pytest.skip("this machine has no make")
        done = subprocess.run([*words, "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=True)
        assert ".venv/bin/" in done.stdout
    elif words[0] == "pip":
        assert words == ["pip", "install", "."]  # tests/integration/test_structure.py builds and installs it
    elif words[0] == "git":
        assert (ROOT / words[-1]).is_dir()
    else:
        extra: list[str] = []
        if words[1:3] == ["-m", "perf"]:
            words = [re.sub(r"^\d[\d,]+$", "4,8", word) for word in words]
            extra = [each.format(folder=tmp_path) for each in SMALLER[words[3]]]
        run = [sys.executable, *words[1:], *extra]
        done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
