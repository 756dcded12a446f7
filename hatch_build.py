"""Makes the description that a package index shows out of README.md: its links and pictures are relative there.

The address of the repository is `Source` in pyproject.toml's [project.urls]. Links then lead to that version's tag.
Without an address a paragraph that begins with a picture is left out, and links become plain text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"!\[([^\]]*)\]\((?!https?:)([^)]+)\)")
ILLUSTRATION = re.compile(rf"^{PICTURE.pattern}.*?(?:\n\n|\Z)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[((?:!\[[^\]]*\]\([^)]*\)|[^\[\]])*)\]\((?!https?:|#)([^)]+)\)")  # of text, or a picture


class Description(MetadataHookInterface):
    """Sets `readme`, which pyproject.toml declares dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        address = metadata.get("urls", {}).get("Source")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": described(text, address, f"v{metadata['version']}"),
        }


def described(text: str, address: str | None, tag: str) -> str:
    """README.md with relative links and pictures made absolute, or without them."""
    if not address:
        return LINK.sub(r"\1", PICTURE.sub("", ILLUSTRATION.sub("", text)))
    text = PICTURE.sub(lambda found: found[0].replace(found[2], f"{address}/raw/{tag}/{found[2]}"), text)
    return LINK.sub(lambda found: f"[{found[1]}]({address}/blob/{tag}/{found[2]})", text)
