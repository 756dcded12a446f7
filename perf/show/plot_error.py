"""The picture of accuracy rows: error against x, a panel a formula."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter

from perf.accuracy.ulp_errors import CURVE, EDGES, KERNEL
from perf.library import FORMULAS
from perf.rows import Row
from perf.show.plot import BLUE, GREEN, GREY, SKY, VERMILION, head, human, origin, style
from perf.show.table import grouped

LOOKS: Mapping[str, tuple[str, str, str, float]] = {  # provider: label, colour, line, width
    "textbook": ("textbook, 0.5x(1 + ...)", GREEN, ":", 2.0),
    "tanh.approx": ("textbook on tanh.approx", GREY, "-", 1.4),
    "torch.compile": ("torch.compile", SKY, "--", 1.6),
    "torch": ("torch", BLUE, "-", 1.6),
    f"{KERNEL}, high": ("triton_gelu kernel, worst case", VERMILION, "-", 2.2),
}
LEAST = 0.5  # a result that is rounded correctly is off by this much or less


def draw(rows: Sequence[Row]) -> Iterator[tuple[str, Picture]]:
    """A figure a dtype and direction; errors in ulp, log scale."""
    curves = [row for row in rows if row.metric == CURVE and row.provider in LOOKS]
    for (dtype, direction), mine in grouped(curves, lambda row: (row.dtype, row.direction)).items():
        yield f"error-{dtype}-{direction}", errors(mine, dtype, direction)


def errors(rows: Sequence[Row], dtype: str, direction: str) -> Picture:
    """Largest error between the edges, a panel a formula."""
    panels = grouped(sorted(rows, key=lambda row: list(FORMULAS).index(row.approximate)), lambda row: row.approximate)
    nothing = 2 / torch.finfo(getattr(torch, dtype)).eps
    what = "GELU" if direction == "forward" else "the derivative of GELU"
    with style():
        picture = Picture(figsize=(1.2 + 3.6 * len(panels), 4.4))
        head(picture, f"Digits of {what} that are wrong, {dtype}", f"largest error near each x; {origin(rows)}")
        axes = picture.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (approximate, mine) in zip(axes, panels.items(), strict=True):
            panel(axis, mine, nothing=nothing)
            axis.set_title(FORMULAS[approximate].title)
        axes[0].set_ylabel("error in ulp (units in the last place)")
        handles = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
        picture.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(handles), fontsize=9)
        picture.subplots_adjust(left=0.09, right=0.985, top=0.80, bottom=0.23, wspace=0.08)
    return picture


def panel(axis: Axes, rows: Sequence[Row], nothing: float) -> None:
    """One formula: a line a provider, between errors of rounding alone and those that leave `nothing` right."""
    for provider, (label, colour, line, width) in LOOKS.items():
        for row in rows:
            if row.provider == provider:
                points = [LEAST if error is None else max(error, LEAST) for error in json.loads(row.note)]
                axis.stairs(points, EDGES, baseline=None, color=colour, linestyle=line, linewidth=width, label=label)
    for height, meaning in ((LEAST, "rounded correctly"), (nothing, "no digit is right")):
        axis.axhline(height, color=GREY, linewidth=0.8)
        above = height > LEAST
        place = {"x": EDGES[-1], "y": height * 1.15 if above else height / 1.1, "va": "bottom" if above else "top"}
        axis.text(s=meaning, ha="right", fontsize=8, color="#555555", **place)
    axis.set_yscale("log")
    axis.set_ylim(LEAST / 4, 16 * nothing)
    axis.yaxis.set_major_formatter(FuncFormatter(human))
    axis.set_xlabel("x")
