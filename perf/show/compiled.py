"""Tables of what torch.compile makes of GELUs in their surroundings: PyTorch alone, and with this package."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from perf.library import FORMULAS
from perf.rows import COMPILED, COMPILED_LIBRARY, Row
from perf.show.table import grouped
from perf.static.metrics import BYTES, HEADROOM, INSTRUCTIONS, LAUNCHES

GPU = "h100"  # of the table of bytes; on others they are the same
ALIKE = 0.1  # bytes an element: no difference worth a word
INSTRUCTION_SCENES = {"forward": "x + bias, GELU", "backward": "GELU, no bias"}
PROVIDERS = (COMPILED, COMPILED_LIBRARY)
Table = tuple[Sequence[str], list[Sequence[str]]]


def bytes_table(rows: Iterable[Row]) -> Table:
    """Bytes an element and kernels, forward / backward, a line a scene and, where they differ, a formula."""
    body: list[Sequence[str]] = []
    mine = [row for row in rows if row.device == GPU]
    for name, of_scene in grouped(mine, lambda row: row.case).items():
        lines = {formula: _line(each) for formula, each in grouped(of_scene, lambda row: row.approximate).items()}
        same = len({tuple(line) for line in lines.values()}) == 1
        for formula, line in list(lines.items())[: 1 if same else None]:
            body.append([name if same else f"{name}: {FORMULAS[formula].title}", *line])
    return ["GELU and its surroundings", "PyTorch's GELU", "this package", "this package moves"], body


def _line(rows: Sequence[Row]) -> list[str]:
    """A scene's cells: each side's, and how they compare."""
    cells, total = [], []
    for provider in PROVIDERS:
        found = {(row.metric, row.direction): row.value or 0.0 for row in rows if row.provider == provider}
        ways = [way for way in ("forward", "backward") if (BYTES, way) in found]
        moved = " / ".join(f"{found[BYTES, way]:.2f}" for way in ways)
        cells.append(f"{moved} ({' + '.join(f'{found[LAUNCHES, way]:.0f}' for way in ways)})")
        total.append(sum(found[BYTES, way] for way in ways))
    plain, ours = total
    return [*cells, "the same" if abs(ours - plain) <= ALIKE else "less" if ours < plain else "more"]


def instructions_table(rows: Iterable[Row], gpus: Callable[[Iterable[Row]], list[str]]) -> Table:
    """Instructions an element and headroom of Inductor's pointwise kernels, a column a GPU."""
    body: list[Sequence[str]] = []
    found = [row for row in rows if INSTRUCTION_SCENES.get(row.direction) == row.case]
    devices = gpus(row for row in found if row.metric == INSTRUCTIONS)
    for (way, formula), mine in grouped(found, lambda row: (row.direction, row.approximate)).items():
        for provider in PROVIDERS:
            values = {(row.device, row.metric): row.value for row in mine if row.provider == provider}
            cells = [f"{values[gpu, INSTRUCTIONS]:.1f}, {values[gpu, HEADROOM]:.2f}" for gpu in devices]
            whose = "PyTorch's" if provider == COMPILED else "ours"
            body.append([f"{FORMULAS[formula].title} {way}, {whose}", *cells])
    return ["bf16, 8192 x 4096", *map(str.upper, devices)], body
