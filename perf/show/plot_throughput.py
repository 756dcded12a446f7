"""The picture of measured rows: throughput against size, a panel a formula, dtype and direction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from perf.rows import COPY, CPU_BACKEND, THROUGHPUT, Row
from perf.show.plot import GREY, PROVIDER_COLOURS, PURPLE, head, human, origin, style
from perf.show.table import grouped, titled

Topic = tuple[str, str, str]

COLUMNS = 3
PANEL_INCHES = (3.8, 2.9)
HEAD_INCHES = 1.25
TICK_GAP = 0.11  # of a double panel's width, so that labels do not touch
ROOM = 0.05  # between the outermost sizes and the ends of the axis, as a share of their range
MARGINS_INCHES = {"left": 0.6, "right": 0.2, "bottom": 0.6}
MARKERS = {"eager": "o", "torch.compile": "s", "triton_gelu": "^", "triton_gelu compiled": "D"}


def draw(rows: Sequence[Row]) -> Iterator[tuple[str, Figure]]:
    """One figure a device."""
    speeds = [row for row in rows if row.metric == THROUGHPUT]
    devices = grouped(speeds, lambda row: row.device)
    for number, mine in enumerate(devices.values(), start=1):
        yield "throughput" if number == 1 else f"throughput-{number}", throughput(mine)


def throughput(rows: Sequence[Row]) -> Figure:
    """GB/s of bytes that have to move, over the elements of x; all rows from one device."""
    panels = grouped(rows, lambda row: (row.approximate, row.dtype, row.direction))
    places = arranged(panels)
    lines = 1 + max(line for line, _, _ in places.values())
    columns = max(start + width for _, start, width in places.values())
    inches = (PANEL_INCHES[0] * COLUMNS, PANEL_INCHES[1] * lines + HEAD_INCHES)
    with style():
        figure = Figure(figsize=inches)
        grid = GridSpec(lines, columns, figure, **margins(*inches), wspace=0.1, hspace=0.5)
        head(figure, f"GELU with bias, measured: {what_ran(rows[0])}", origin(rows))
        legend(figure, rows)
        first: Axes | None = None
        for topic, (line, start, width) in places.items():
            axis = figure.add_subplot(grid[line, start : start + width], sharey=first)
            first = first or axis
            panel(axis, topic, panels[topic], TICK_GAP * (3 - width))
            axis.set_ylabel("GB/s" if start == 0 else "")
            axis.tick_params(labelleft=start == 0)
    return figure


def arranged(panels: Mapping[Topic, Sequence[Row]]) -> dict[Topic, tuple[int, int, int]]:
    """Line, first column and columns of each panel: one that has most of the sizes is drawn two columns wide."""
    sizes = {topic: len({row.shape for row in rows}) for topic, rows in panels.items()}
    places: dict[Topic, tuple[int, int, int]] = {}
    line = start = 0
    for topic, count in sizes.items():
        width = 2 if 2 * count > sum(sizes.values()) else 1
        if start + width > COLUMNS:
            line, start = line + 1, 0
        places[topic] = (line, start, width)
        start += width
    return places


def margins(width: float, height: float) -> dict[str, float]:
    """Where the panels begin and end, in shares of the figure."""
    return {
        "left": MARGINS_INCHES["left"] / width,
        "right": 1 - MARGINS_INCHES["right"] / width,
        "bottom": MARGINS_INCHES["bottom"] / height,
        "top": 1 - HEAD_INCHES / height,
    }


def what_ran(row: Row) -> str:
    """What ran, in words nobody can take for something else."""
    return "CPU backend (no Triton kernel ran)" if row.backend == CPU_BACKEND else row.backend


def panel(axis: Axes, topic: Topic, rows: Sequence[Row], gap: float) -> None:
    """One panel: a line a provider, the bandwidth of a copy behind them."""
    axis.set(xscale="log", yscale="log", title=titled(*topic))
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_formatter(FuncFormatter(human))
    name_sizes(axis, rows, gap)  # before anything is drawn: of a single size matplotlib makes an axis without a length
    for provider, mine in grouped(rows, lambda row: row.provider).items():
        if provider == COPY:
            line(axis, provider, mine)
        else:
            for along_last, points in grouped(mine, is_last).items():
                line(axis, provider, points, filled=along_last)


def ticks(sizes: Sequence[int], gap: float) -> list[int]:
    """The ends, and sizes between them that leave their labels room; `gap` is a share of the range."""
    first, last = min(sizes), max(sizes)
    kept = [first]
    for size in sorted(sizes):
        room = math.log(size / kept[-1]) / math.log(last / first) if last > first else 0
        rest = math.log(last / size) / math.log(last / first) if last > first else 0
        if room >= gap * (2 if kept == [first] else 1) and rest >= 2 * gap:
            kept.append(size)
    return [*kept, last]


def name_sizes(axis: Axes, rows: Sequence[Row], gap: float) -> None:
    """Tick labels at sizes that occur, with the names of the cases at both ends."""
    names = {math.prod(row.shape): row.case for row in rows}
    places = sorted(set(ticks(list(names), gap)))
    ends: dict[int, Literal["left", "center", "right"]]
    ends = {places[0]: "left", places[-1]: "right"} if len(places) > 1 else {places[0]: "center"}
    labels = [f"{human(size)} elements\n{names[size]}" if size in ends else f"{human(size)}\n" for size in places]
    room = max(places[-1] / places[0], 2.0) ** ROOM
    axis.set_xlim(places[0] / room, places[-1] * room)
    axis.set_xticks(places, labels)
    for size, label in zip(places, axis.get_xticklabels(), strict=True):
        label.set_horizontalalignment(ends.get(size, "center"))


def is_last(row: Row) -> bool:
    """Whether the bias runs along the last dimension (or there is none)."""
    return row.dim in (None, -1, len(row.shape) - 1)


def line(axis: Axes, provider: str, rows: Sequence[Row], *, filled: bool = True) -> None:
    """One provider's points with their quantiles, hollow where the bias runs along channels."""
    points = sorted((math.prod(row.shape), row.value, row.low, row.high) for row in rows)
    sizes, values, low, high = zip(*points, strict=True)
    appearance = look(provider, filled=filled)
    if provider == COPY and len(set(sizes)) == 1:
        axis.axhline(values[-1], **appearance)  # a point would have no length to be seen by
    else:
        axis.plot(sizes, values, **appearance)
    if provider != COPY:
        axis.vlines(sizes, low, high, color=appearance["color"], linewidth=0.8, alpha=0.6)


def look(provider: str, *, filled: bool = True) -> dict[str, Any]:
    """Colour, marker and line of a provider, the same in panels and legend."""
    if provider == COPY:
        return {"color": GREY, "linestyle": ":", "zorder": 1}
    colour = PROVIDER_COLOURS.get(provider, PURPLE)
    is_compiled = provider.endswith(("compile", "compiled"))
    return {
        "color": colour,
        "marker": MARKERS.get(provider, "v"),
        "markerfacecolor": colour if filled else "white",
        "linestyle": "--" if is_compiled else "-",
        "linewidth": 1.6 if filled else 0.8,
    }


def legend(figure: Figure, rows: Sequence[Row]) -> None:
    """The names, in one line below the title."""
    names = list(dict.fromkeys(row.provider for row in rows if row.provider != COPY))
    handles = [Line2D([], [], label=name, **look(name)) for name in names]
    handles.append(Line2D([], [], label="copy of the same tensor", **look(COPY)))
    if not all(map(is_last, rows)):
        hollow: dict[str, Any] = {"marker": "o", "linestyle": "", "color": GREY, "markerfacecolor": "white"}
        handles.append(Line2D([], [], label="hollow: bias along channels", **hollow))
    place = (0.005, 1 - 0.62 / figure.get_figheight())
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=place, ncols=len(handles), columnspacing=1.4)
