"""Builds the documentation as a site: `make docs`, which leaves it in dist/docs/site.

    python docs/site/build_site.py --output dist/docs
    python -m http.server --directory dist/docs/site      # and look at it, search included

Pages are the documents of the repository, its notebooks with their outputs, its examples with their source, and the
docstrings of everything public. Links between documents lead to pages; what is no page is named without a link.
"""

from __future__ import annotations

import argparse
import ast
import base64
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import latex2mathml.converter
import nbformat

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "docs" / "site"
PAGES = {  # page: what it is made of
    "index.md": "docs/start.md",
    "overview.md": "README.md",
    "examples.md": "examples/README.md",
    "gpu.md": "examples/gpu/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "models.md": "tests/fuse/clients.md",
    **{f"{path.stem}.md": f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md") if path.stem != "start"},
    **{f"notebooks/{path.stem}.md": f"notebooks/{path.name}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))},
}  # fmt: skip
TITLES = {"models.md": "# Models that fuse understands\n\n"}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#)([^)\s]+)\)")
FENCE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)
ANSI = re.compile(r"\x1b\[[0-9;]*m")
GROUPS = {  # of the page of operators: what it tells, and which public names it holds
    "Functions": ("functional",),
    "Layers": ("modules", "audio"),
    "Models that exist": ("fuse",),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, and build the site of them; the exit code is that of MkDocs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist" / "docs", help="default: %(default)s")
    output: Path = parser.parse_args(argv).output
    if output.exists():
        shutil.rmtree(output)
    (output / "pages" / "pictures").mkdir(parents=True)
    (output / "pages" / "notebooks").mkdir()
    for page, text in pages(output / "pages" / "pictures").items():
        (output / "pages" / page).write_text(text, encoding="utf-8")
    shutil.copy(HERE / "site.css", output / "pages")
    configuration = (HERE / "mkdocs.yml").read_text(encoding="utf-8").replace("ROOT", str(ROOT))
    (output / "mkdocs.yml").write_text(configuration, encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "--quiet", "build", "--config-file", str(output / "mkdocs.yml")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def pages(pictures: Path) -> dict[str, str]:
    """The text of each page; pictures are put into a folder."""
    made = {}
    for page, source in PAGES.items():
        path = ROOT / source
        text = notebook(path, pictures) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
        made[page] = TITLES.get(page, "") + linked(text, path.parent, page, pictures)
    made["examples.md"] += "".join(sources())
    made["operators.md"] = "\n".join(operators())
    return made


def linked(text: str, folder: Path, page: str, pictures: Path) -> str:
    """A document with links to pages, its pictures brought along, and its formulas in MathML, but not in code."""
    by_source = {(ROOT / source).resolve(): name for name, source in PAGES.items()}

    def link(found: re.Match[str]) -> str:
        picture, label, target = found.groups()
        path, _, place = target.partition("#")
        file = (folder / path).resolve()
        if picture and file.is_relative_to(ROOT):
            shutil.copy(file, pictures)
            return f"![{label}]({relative(f'pictures/{file.name}', page)})"
        if file in by_source:
            return f"[{label}]({relative(by_source[file], page)}{'#' * bool(place)}{place})"
        if file.parent == ROOT / "examples":
            return f"[{label}]({relative('examples.md', page)}#{file.stem})"
        return label

    parts = FENCE.split(text)
    parts[::2] = [FORMULA.sub(formula, LINK.sub(link, part)) for part in parts[::2]]
    return "".join(parts)


def relative(name: str, page: str) -> str:
    """The way from a page to another file of the site."""
    return os.path.relpath(name, Path(page).parent).replace(os.sep, "/")


def formula(found: re.Match[str]) -> str:
    """A formula as browsers show it by themselves."""
    display, inline = found.groups()
    text: str = latex2mathml.converter.convert(display or inline, display="block" if display else "inline")
    return text


def notebook(path: Path, pictures: Path) -> str:
    """A notebook as a document: what is written in it, its code, and what that printed or drew."""
    parts, count = [], 0
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                count += 1
                picture = pictures / f"{path.stem}-{count}.png"
                picture.write_bytes(base64.b64decode(data["image/png"]))
                parts.append(f'<img src="../../pictures/{picture.name}" alt="Figure {count}">')
            elif text := output.get("text") or data.get("text/plain"):
                printed = ANSI.sub("", text).rstrip()
                parts.append(f'<div class="output" markdown>\n\n```text\n{printed}\n```\n\n</div>')
    return "\n\n".join(parts) + "\n"


def operators() -> Iterator[str]:
    """The page of everything public: docstrings, in groups."""
    yield "# Operators, layers and fuse\n"
    yield "What is public, as `help` shows it. `approximate` is one of three formulas, see `bias_gelu`.\n"
    for title, modules in GROUPS.items():
        yield f"## {title}\n"
        yield from (f"::: triton_gelu.{name}\n" for name, module in public() if module in modules)


def public() -> list[tuple[str, str]]:
    """Public names of the package, each with the module or folder that it is from."""
    tree = ast.parse((ROOT / "triton_gelu" / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level]
    return [(name.name, str(node.module).split(".")[0]) for node in imports for name in node.names]


def sources() -> Iterator[str]:
    """The source of each example."""
    for path in sorted((ROOT / "examples").glob("*.py")):
        yield f"\n## {path.name} {{ #{path.stem} }}\n\n```python\n{path.read_text(encoding='utf-8')}```\n"


if __name__ == "__main__":
    raise SystemExit(main())
