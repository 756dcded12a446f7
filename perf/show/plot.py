"""The command `plot`, and the style of all pictures: each provider's colour, fonts, sizes.

Rows of different kinds never share a picture: what was measured stays apart from what was computed.

examples:
  python -m perf plot                                       the newest file in perf/results
  python -m perf plot mine.jsonl --output mine.png
  python -m perf plot a.jsonl b.jsonl --approximate tanh --dtype bf16
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from perf.rows import COPY, Row, UserError, latest_rows
from perf.show import chosen_rows

# Each module has draw(rows) -> iterator of (name, Figure).
PICTURES = {
    "measured": "perf.show.plot_throughput",
    "static": "perf.show.plot_headroom",
    "accuracy": "perf.show.plot_error",
}

# Okabe and Ito's colours, told apart by people with any kind of colour blindness (jfly.uni-koeln.de/color).
BLUE, SKY, VERMILION, ORANGE, GREEN, YELLOW, PURPLE, BLACK = (
    "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#000000",
)  # fmt: skip
GREY = "#8A8A8A"
DIGEST = "Description"  # where a PNG says from which rows it was drawn
PROVIDER_COLOURS: Mapping[str, str] = {  # PyTorch is blue, this package is red, compiled is the lighter of the two
    "eager": BLUE,
    "torch.compile": SKY,
    "triton_gelu": VERMILION,
    "triton_gelu compiled": ORANGE,
    COPY: GREY,
}
STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.0,
    "savefig.dpi": 150,
}


@contextmanager
def style() -> Iterator[None]:
    """The look that all pictures share."""
    with mpl.rc_context(STYLE):
        yield


def head(figure: Figure, title: str, subtitle: str) -> None:
    """What is shown, large; where it comes from, small below."""
    figure.suptitle(title, x=0.01, y=0.995, ha="left", va="top", fontsize=14, fontweight="bold")
    inches = figure.get_figheight()
    figure.text(0.01, 1 - 0.42 / inches, subtitle, ha="left", va="top", fontsize=9, color="#555555")


def origin(rows: Sequence[Row]) -> str:
    """Device, versions, commit and day of the newest row, and how many commits the older ones are from."""
    row = max(rows, key=lambda each: each.time)
    others = len({each.commit for each in rows}) - 1
    commit = f"commit {row.commit}" + (f" and {others} older" if others else "")
    versions = ", ".join(f"{name} {row.versions[name]}" for name in ("torch", "triton") if name in row.versions)
    return f"{row.device}; {versions}; {commit}; {row.time[:10]}"


def human(number: float, _: object = None) -> str:
    """A count as a person writes it: 20 k, 2.3 M; also a matplotlib tick formatter."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def write(rows: Iterable[Row], path: Path) -> list[Path]:
    """Draw the newest answer to each question; one file, or one a picture with its name behind the path's."""
    newest = latest_rows(rows)
    figures = [
        (name, figure)
        for kind, module in PICTURES.items()
        if (mine := [row for row in newest if row.kind == kind and row.status == "ok"])
        for name, figure in importlib.import_module(module).draw(mine)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures:
        target = path if len(figures) == 1 else path.with_name(f"{path.stem}-{name}{path.suffix}")
        figure.savefig(target, metadata={DIGEST: digest(newest)} if target.suffix == ".png" else None)
        written.append(target)
    return written


def digest(rows: Iterable[Row]) -> str:
    """What tells a picture of these rows from one of others."""
    text = "\n".join(json.dumps(asdict(row)) for row in rows)
    return f"rows {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def drawable(path: Path) -> Path:
    """The path of a picture, a PNG if nothing else is said. Raises `UserError` for an ending that nobody can draw."""
    path = path if path.suffix else path.with_suffix(".png")
    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise UserError(f"--output {path}: pictures end with one of {', '.join(f'.{each}' for each in sorted(known))}")
    return path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m perf plot`."""
    chosen_rows.add_arguments(parser, "PNG, SVG or PDF")


def run(args: argparse.Namespace) -> int:
    """Read, keep what is asked for, draw, name the files."""
    first, rows = chosen_rows.select(args)
    pictures = write(rows, drawable(args.output or first.with_suffix(".png")))
    if not pictures:
        raise UserError("no rows to draw; python -m perf measure makes some")
    for picture in pictures:
        print(f"picture: {picture}")
    return 0
