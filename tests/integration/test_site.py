"""The documentation as a site: it is built without warnings, holds all that is public, and needs no network."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import triton_gelu

ROOT = Path(__file__).resolve().parents[2]
OUTER = re.compile(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?(https?:)?//")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built without network."""
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, ROOT / "docs" / "site" / "build_site.py", "--output", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder / "site"


def test_every_page_stands_by_itself(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        assert not OUTER.search(page.read_text()), f"{page.relative_to(site)} loads something from elsewhere"


def test_every_document_is_in_the_navigation() -> None:
    text = (ROOT / "docs" / "site" / "mkdocs.yml").read_text()
    names = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"start"}
    names |= {f"notebooks/{path.stem}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {name for name in names if f" {name}.md" not in text} == set()


def test_links_and_pictures_lead_somewhere_in_the_site(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        for target in re.findall(r'(?:href|src)="?([^">\s#]+)', page.read_text()):
            if not re.match(r"[a-z]+:", target):
                found = (page.parent / target).resolve()
                assert found.exists(), f"{page.relative_to(site)} leads to {target}"


def test_everything_public_is_told(site: Path) -> None:
    text = (site / "operators" / "index.html").read_text()
    assert {name for name in triton_gelu.__all__ if f'id="triton_gelu.{name}"' not in text} == set()


def test_search_finds_words_of_every_kind_of_page(site: Path) -> None:
    entries = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    for word, page in {
        "TRITON_GELU_BACKEND": "", "bias_geglu": "operators/", "Seq2SeqTrainer": "examples/",
        "kernelize": "hugging_face/", "cancel": "notebooks/mathematics/", "ulp": "accuracy/",
    }.items():  # fmt: skip
        found = {entry["location"].split("#")[0] for entry in entries if word in entry["text"] + entry["title"]}
        assert page in found, word


def test_formulas_and_figures_of_notebooks_are_on_their_pages(site: Path) -> None:
    text = (site / "notebooks" / "mathematics" / "index.html").read_text()
    assert text.count("<math") > 20
    assert "pictures/mathematics-1.png" in text
