"""Rewrite the documents' figures, and redraw their pictures, from the committed rows.

Every number lies between a line `<!-- rows: NAME -->` and the next `<!-- end -->`; a picture carries a digest of the
rows it was drawn from. So a test can tell what is stale, and this command mends it.

examples:
  python -m perf readme            after new rows in perf/data
  python -m perf readme --check    only name what is stale; the exit code is 1 if anything is
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from perf.accuracy import ulp_errors
from perf.cases import FRESH, OWN, SETS, Case
from perf.library import DTYPES, FORMULAS
from perf.rows import DATA, KERNEL_BACKEND, RATIO, ROOT, Row, UserError, latest_rows, read_rows
from perf.show import compare, compiled, plot, table, table_static
from perf.static import analyse, saved
from perf.static.gpus import GPUS
from perf.static.metrics import BYTES, HEADROOM, IN_FLIGHT, INSTRUCTIONS, LIBRARY, SMALL_PROGRAMS

README = ROOT / "README.md"
DOCUMENTS = (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- rows: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
WIDTH, SHAPE = "width 4096", (16384, 4096)  # the case of static figures
WORST_KERNEL = "kernel, worst case"
ACCURACY = {  # line of the table: the providers it is the worst of
    WORST_KERNEL: tuple(ulp_errors.SIGNS),
    "CPU": ("triton_gelu, CPU",),
    "PyTorch": ("torch",),
}
PICTURES: Mapping[str, tuple[str, Callable[[Row], bool]]] = {  # picture: file of rows, which of them
    "headroom.png": ("static.jsonl", lambda row: True),
    "headroom-bf16.png": ("static.jsonl", lambda row: (row.case, row.dtype) == (WIDTH, "bfloat16")),
    "quick.png": ("quick.jsonl", lambda row: True),
    "error-float32-forward.png": (
        "accuracy.jsonl",
        lambda row: (row.dtype, row.direction) == ("float32", "forward"),
    ),
}
SITES = {  # what a user has: the static case that stands for it
    "Linear, GELU": WIDTH,
    "convolution, GELU": "3000 frames",
    "convolution, GELU, transposition, position (the stem of Whisper)": "stem, 1500 frames",
}
FURTHER = {  # the names of cases with a gate or dropout, whose shape is not all that is asked
    case.name for case in (*SETS["gated"](), *SETS["dropout"](), *analyse.budget()) if case.gated or case.dropout_p
}
VERSIONS, RECORDED = ("torch", "triton", "python"), "versions.jsonl"
RATIOS = (("triton_gelu", "eager"), ("triton_gelu compiled", "torch.compile"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m perf readme`."""
    parser.add_argument("--check", action="store_true", help="change nothing, name what is stale")


def run(args: argparse.Namespace) -> int:
    """Name what is stale, and mend it unless asked not to."""
    old = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
    new, pictures = {path: rewritten(text) for path, text in old.items()}, stale_pictures()
    stale = [*(path for path in DOCUMENTS if new[path] != old[path]), *pictures]
    for path in stale:
        print(f"{'stale' if args.check else 'rewritten'}: {path.relative_to(ROOT)}")
    if args.check:
        return int(bool(stale))
    for path, text in new.items():
        path.write_text(text, encoding="utf-8")
    for path in pictures:
        plot.write(pictured(path.name), path)
    return 0


def rewritten(text: str) -> str:
    """A document with every block filled from the rows. Raises `UserError` for a name that no block has."""

    def filled(match: re.Match[str]) -> str:
        opening, name, closing = match.groups()
        if name not in BLOCKS:
            raise UserError(f"no block is named {name!r}; there are {', '.join(BLOCKS)}")
        return "\n".join([opening.rstrip(), *BLOCKS[name](), closing])

    return BLOCK.sub(filled, text)


def stale_pictures() -> list[Path]:
    """The pictures that are missing, or were drawn from other rows than are committed now."""
    return [DATA / name for name in PICTURES if drawn_from(DATA / name) != plot.digest(pictured(name))]


def pictured(name: str) -> list[Row]:
    """The rows that a picture shows."""
    file, shown = PICTURES[name]
    return latest_rows(filter(shown, committed(file)))


def drawn_from(path: Path) -> str:
    """The digest of rows that a picture carries; empty where there is none."""
    if not path.exists():
        return ""
    with Image.open(path) as picture:
        return str(picture.info.get(plot.DIGEST, ""))


def committed(pattern: str) -> list[Row]:
    """The newest answers of the committed files of that name."""
    return latest_rows(row for file in sorted(DATA.glob(pattern)) for row in read_rows(file))


def static() -> Iterator[str]:
    """Headroom and instructions in bf16, ours and those of a plain kernel, a column a GPU."""
    rows = [row for row in committed("static.jsonl") if (row.case, row.dtype) == (WIDTH, "bfloat16")]
    gpus = shown(rows)
    yield from markdown(
        ["bf16, 16384 x 4096", *map(str.upper, gpus)],
        [
            [f"{FORMULAS[formula].title} {direction}", *(headroom_cell(mine, gpu) for gpu in gpus)]
            for (formula, direction), mine in table.grouped(rows, lambda row: (row.approximate, row.direction)).items()
        ],
    )


def shown(rows: Iterable[Row]) -> list[str]:
    """The GPUs that rows are of, in the order of the table."""
    found = {row.device for row in rows}
    return [gpu for gpu in GPUS if gpu in found]


def headroom_cell(rows: Iterable[Row], gpu: str) -> str:
    """Our headroom and instructions an element, then the plain kernel's."""
    mine = [row for row in rows if row.device == gpu]
    ours = {row.metric: row.value for row in mine if row.provider == LIBRARY}
    plain = {row.metric: row.value for row in mine if "flat index" in row.provider}
    return " / ".join(f"{each[HEADROOM]:.2f} ({each[INSTRUCTIONS]:.0f})" for each in (ours, plain) if each)


def traffic() -> Iterator[str]:
    """Bytes an element in bf16, forward / backward: what PyTorch's eager operations read and write, then ours."""
    rows = [row for row in committed("static.jsonl") if (row.dtype, row.metric) == ("bfloat16", BYTES)]
    body = []
    for what, name in SITES.items():
        mine = [row for row in rows if row.case == name and row.provider == LIBRARY]
        cells: dict[str, list[str]] = {"eager": [], LIBRARY: []}
        for direction in ("forward", "backward"):
            largest = max((row for row in mine if row.direction == direction), key=lambda row: row.value or 0.0)
            site = Case(name, largest.shape, largest.dim, largest.dtype, direction=direction)
            moved, _ = saved.eager(replace(site, transposed=name.startswith("stem")))
            cells["eager"].append(f"{moved / site.elements:.1f}")
            cells[LIBRARY].append(f"{largest.value:.1f}")
        body.append([what, *(" / ".join(each) for each in cells.values())])
    yield from markdown(["bytes an element, forward / backward", "PyTorch, eager", LIBRARY], body)


def in_flight() -> Iterator[str]:
    """KiB in flight of the goal, and programs a processor at 16 MB: ours in bf16, a line a case, a column a GPU."""
    rows = [row for row in committed("static.jsonl") if (row.dtype, row.provider) == ("bfloat16", LIBRARY)]
    rows = [row for row in rows if row.metric in (IN_FLIGHT, SMALL_PROGRAMS)]
    gpus = shown(rows)
    body = []
    for (case, formula, way), mine in table.grouped(
        rows, lambda row: (row.case, row.approximate, row.direction)
    ).items():
        found = {(row.device, row.metric): row for row in mine}
        pairs = [(found.get((gpu, IN_FLIGHT)), found.get((gpu, SMALL_PROGRAMS))) for gpu in gpus]
        cells = [f"{table_static.held_of_goal(held)}, {few.value:.1f}" if held and few else "" for held, few in pairs]
        body.append([f"{case}, {FORMULAS[formula].title} {way}", *cells])
    yield from markdown(["KiB in flight of the goal, programs at 16 MB", *map(str.upper, gpus)], body)


def compilers() -> Iterator[str]:
    """Our headroom in bf16 on every GPU, a column a compiler."""
    rows = [row for name in ("static.jsonl", "compilers.jsonl") for row in read_rows(DATA / name)]
    asked_for = ("bfloat16", LIBRARY, HEADROOM)
    found: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        alike = row.case == WIDTH or (row.case, row.shape) == (OWN, SHAPE)
        if alike and (row.dtype, row.provider, row.metric) == asked_for:
            line = found.setdefault(f"{FORMULAS[row.approximate].title} {row.direction}", {})
            line.setdefault(compare.version(row), {})[row.device] = f"{row.value:.2f}"
    versions = list(dict.fromkeys(version for line in found.values() for version in line))
    gpus = shown(rows)
    yield from markdown(
        [" / ".join(map(str.upper, gpus)), *(f"Triton {version}" for version in versions)],
        [
            [name, *(" / ".join(line.get(version, {}).get(each, "") for each in gpus) for version in versions)]
            for name, line in found.items()
        ],
    )


def errors() -> Iterator[str]:
    """The largest error in ulp, a line a backend, a column a dtype."""
    rows = [
        row for row in committed("accuracy.jsonl") if row.metric == ulp_errors.MAXIMUM and row.direction == "forward"
    ]
    backends = {**ACCURACY, **{row.device: ("triton_gelu",) for row in rows if row.backend == KERNEL_BACKEND}}
    body = []
    for backend, providers in backends.items():
        mine = [[row for row in rows if row.approximate == each and row.provider in providers] for each in FORMULAS]
        cells = (" / ".join(worst(each, dtype) for each in mine) for dtype in DTYPES.values())
        body.append([backend, *cells])
    titles = " / ".join(formula.title for formula in FORMULAS.values())
    yield from markdown([f"largest error in ulp: {titles}", *DTYPES], body)


def worst(rows: Iterable[Row], dtype: torch.dtype) -> str:
    """The largest error in a dtype, or that all digits are wrong."""
    values = [row.value or 0.0 for row in rows if f"torch.{row.dtype}" == str(dtype)]
    nothing = 1 / torch.finfo(dtype).eps
    return "" if not values else "all" if max(values) >= nothing else f"{max(values):.3g}"


def cpu() -> Iterator[str]:
    """Times over PyTorch's on the CPU."""
    rows = committed("targets.jsonl")
    yield from ratios(rows)
    yield f"\n{plot.origin(rows)}."


def gpu() -> Iterator[str]:
    """Times over PyTorch's on every GPU that somebody sent rows of."""
    rows = [row for row in committed("gpu-*.jsonl") if row.kind == "measured" and row.backend == KERNEL_BACKEND]
    if not rows:
        yield "**Measured on a GPU: nothing yet.** Nobody has sent the rows that `make gpu` makes yet."
    for mine in table.grouped(rows, lambda row: row.device).values():
        yield f"**Measured on a GPU**, {plot.origin(mine)}; below 1 is faster.\n"
        yield from [*ratios(mine), ""]


def ratios(rows: Sequence[Row]) -> Iterator[str]:
    """A line a case: eager to eager, compiled to compiled."""
    found = {(row.provider, row.metric, asked(row), row.direction): row.value for row in rows}
    ways = list(dict.fromkeys(row.direction for row in rows))

    def cell(question: str, mine: str, rival: str, way: str) -> str:
        value = found.get((mine, RATIO.format(rival), question, way))
        return "" if value is None else f"{value:.2f}"

    columns = [(*pair, way) for way in ways for pair in RATIOS]
    heads = [f"{way.replace('_', ' + ')}, {'compiled' if 'compiled' in mine else 'eager'}" for mine, _, way in columns]
    compared = [row for row in rows if row.metric in (RATIO.format(rival) for _, rival in RATIOS)]
    body = [[each, *(cell(each, *column) for column in columns)] for each in dict.fromkeys(map(asked, compared))]
    yield from markdown(["time / PyTorch's", *heads], body)


def asked(row: Row) -> str:
    """A case in words, but for its direction."""
    fresh = f", {FRESH}" if row.case.endswith(FRESH) else ""
    alone = ", no bias" if row.dim is None else ""
    name = f"{row.case}: " if row.case in FURTHER else ""
    return f"{name}{' x '.join(map(str, row.shape))}, {row.dtype}, {FORMULAS[row.approximate].title}{alone}{fresh}"


def versions() -> Iterator[str]:
    """The versions that the whole suite passed on, the newest PyTorch first; of several rows of the same, the last."""
    rows = {tuple(row.versions.get(name, "none") for name in VERSIONS): row for row in read_rows(DATA / RECORDED)}
    if not rows:
        yield "Nothing is recorded yet."
        return
    numbers = {key: [int(part) for part in re.findall(r"\d+", key[0])[:3]] for key in rows}
    yield from markdown(
        ["PyTorch", "Triton", "Python", "kernels", "tests passed", "commit"],
        [
            [*key, row.device if row.backend == KERNEL_BACKEND else row.backend, f"{row.value:g}", row.commit]
            for key, row in sorted(rows.items(), key=lambda item: numbers[item[0]], reverse=True)
            if row.status == "ok"
        ],
    )


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown, numbers to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    yield from (f"| {' | '.join(line)} |" for line in (head, rule, *body))


def compiled_bytes() -> Iterator[str]:
    """Bytes of compiled graphs, PyTorch's GELU and ours in the same surroundings."""
    yield from markdown(*compiled.bytes_table(committed("compiled.jsonl")))


def compiled_instructions() -> Iterator[str]:
    """Instructions and headroom of what a compiler makes of PyTorch's GELU and of ours."""
    yield from markdown(*compiled.instructions_table(committed("compiled.jsonl"), shown))


BLOCKS: Mapping[str, Callable[[], Iterator[str]]] = {
    "traffic": traffic, "static": static, "in_flight": in_flight, "compilers": compilers, "errors": errors,
    "cpu": cpu, "gpu": gpu, "versions": versions,
    "compiled_bytes": compiled_bytes, "compiled_instructions": compiled_instructions,
}  # fmt: skip
