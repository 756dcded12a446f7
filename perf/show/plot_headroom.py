"""The picture of static rows: headroom, how far a kernel is from being bound by anything but memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from perf.cases import DTYPES
from perf.rows import Row
from perf.show.plot import BLACK, BLUE, GREY, SKY, VERMILION, head, human, style
from perf.show.table import grouped, title
from perf.static.gpus import GPUS
from perf.static.metrics import HEADROOM, LIBRARY

FLAT = "plain formula, flat index (backward: dx, then a separate dbias sum)"
LOOKS: Mapping[str, tuple[str, str, str]] = {  # how a provider's name ends: label, colour, marker
    LIBRARY: ("triton_gelu", VERMILION, "D"),
    "one pass": ("plain formula, one pass", SKY, "s"),
    "flat index": (FLAT, BLUE, "o"),
    "then a separate dbias sum": (FLAT, BLUE, "o"),
}
TICKS = (0.25, 0.5, 1, 2, 4)
PANEL_INCHES = 2.7
LINE_INCHES = 0.19
HEAD_INCHES, FOOT_INCHES, LABEL_INCHES = 1.25, 0.75, 2.75
MEMORY_BOUND = 1.0


def draw(rows: Sequence[Row]) -> Iterator[tuple[str, Picture]]:
    """One figure; a line a case, a point a provider."""
    found = [row for row in rows if row.metric == HEADROOM]
    if found:
        yield "headroom", headroom(found)


def headroom(rows: Sequence[Row]) -> Picture:
    """Headroom of every case and provider, a panel a GPU, all panels with the same lines."""
    lines = grouped(rows, label)
    panels = grouped(rows, lambda row: row.device)
    width = LABEL_INCHES + PANEL_INCHES * len(panels)
    height = HEAD_INCHES + LINE_INCHES * len(lines) + FOOT_INCHES
    places = {name: -place for place, name in enumerate(lines)}
    with style():
        picture = Picture(figsize=(width, height))
        head(picture, "Static: headroom of kernels compiled offline, for GPUs that are not here", provenance(rows))
        axes = picture.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axis, (device, mine) in zip(axes, panels.items(), strict=True):
            panel(axis, f"{GPUS[device].name} ({GPUS[device].target.architecture})", mine, places)
        axes[0].set_yticks(list(places.values()), list(places))
        picture.subplots_adjust(
            left=LABEL_INCHES / width,
            right=1 - 0.15 / width,
            top=1 - HEAD_INCHES / height,
            bottom=FOOT_INCHES / height,
            wspace=0.06,
        )
        picture.supxlabel("time at memory bandwidth / time of the next busiest resource (log)", fontsize=9.5)
        legend(picture, rows)
    return picture


def panel(axis: Axes, title: str, rows: Sequence[Row], places: Mapping[str, int]) -> None:
    """One GPU: left of the line at 1 a kernel is not memory-bound."""
    axis.set(title=title, xscale="log")
    axis.xaxis.set_major_locator(FixedLocator(TICKS))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(human))
    axis.axvline(MEMORY_BOUND, color=BLACK, linewidth=0.9, zorder=1)
    for name, mine in grouped(rows, label).items():
        points = [(row.value, look(row)) for row in mine if row.value is not None]
        ends = [min(value for value, _ in points), max(value for value, _ in points)]
        axis.plot(ends, [places[name]] * 2, color=GREY, linewidth=0.8, zorder=2)
        for value, (_, colour, marker) in points:
            axis.plot(value, places[name], marker, color=colour, markersize=4.5, zorder=3)
    axis.tick_params(length=0)
    axis.set_ylim(min(places.values()) - 0.7, 0.7)


def legend(picture: Picture, rows: Sequence[Row]) -> None:
    """What the points are, and what the line is."""
    looks = dict.fromkeys(look(row) for row in rows)
    marks = [Line2D([], [], color=colour, marker=marker, linestyle="", label=name) for name, colour, marker in looks]
    line = Line2D([], [], color=BLACK, linewidth=0.9, label="right of it: memory-bound")
    top = 1 - 0.62 / picture.get_figheight()
    picture.legend(handles=[*marks, line], loc="upper left", bbox_to_anchor=(0.003, top), ncols=5, fontsize=9)


def label(row: Row) -> str:
    """What a line shows."""
    short = {name: word for word, name in DTYPES.items()}
    return f"{row.case}, {title(row.approximate)} {short[row.dtype]} {row.direction}"


def look(row: Row) -> tuple[str, str, str]:
    """Label, colour and marker of a provider."""
    return next((found for end, found in LOOKS.items() if row.provider.endswith(end)), (row.provider, GREY, "x"))


def provenance(rows: Sequence[Row]) -> str:
    """Versions, commit and day of the newest row."""
    row = max(rows, key=lambda each: each.time)
    return f"nothing ran; triton {row.versions.get('triton', 'unknown')}; commit {row.commit}; {row.time[:10]}"
