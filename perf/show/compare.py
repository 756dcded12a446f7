"""What changed between two result files; the exit code is 1 if something got worse.

Static and accuracy rows are compared exactly; static ones of different Triton versions are not compared at all, and
that is said. A measured row has changed where its range (20 to 80 %) lies wholly outside the other's.

examples:
  python -m perf compare before.jsonl after.jsonl
  python -m perf compare before.jsonl after.jsonl --provider triton_gelu --markdown
  python -m perf compare perf/data/baseline.jsonl now.jsonl --exact
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from perf import cases
from perf.rows import COPY, COPY_SHARE, DIRECTIONS, THROUGHPUT, TIME, Row, UserError, latest_rows, question, read_rows
from perf.show import table
from perf.static import metrics

WORSE, BETTER, CHANGED, GONE, NEW, SAME, SKIPPED = VERDICTS = (
    "worse",
    "better",
    "changed",
    "gone",
    "new",
    "same",
    "skipped",
)
HIGHER_IS_BETTER = {THROUGHPUT, COPY_SHARE, metrics.HEADROOM, metrics.WIDTH, metrics.IN_FLIGHT, metrics.SMALL_IN_FLIGHT}
DERIVED = {THROUGHPUT, COPY_SHARE}  # of the time, which is compared
STATIC_GOALS = {  # the other static figures say why these changed
    metrics.HEADROOM,
    metrics.INSTRUCTIONS,
    metrics.BYTES,
    metrics.WIDTH,
    metrics.SPILLS,
    metrics.STACK,
    metrics.PARTED,
    metrics.IN_FLIGHT,
    metrics.SMALL_IN_FLIGHT,
}


@dataclass(frozen=True)
class Change:
    """The old and the new answer to one question, and what to think of it. One of them may be missing."""

    verdict: str
    before: Row | None
    after: Row | None

    @property
    def row(self) -> Row:
        """The newer of the two."""
        row = self.after or self.before
        assert row is not None
        return row


def changes(before: Sequence[Row], after: Sequence[Row]) -> Iterator[Change]:
    """One for each question that either side answers."""
    old, new = ({question(row): row for row in rows} for rows in (before, after))
    for asked in {**old, **new}:
        yield change(old.get(asked), new.get(asked))


def change(before: Row | None, after: Row | None) -> Change:
    """What to think of two answers to one question."""
    if before is None or before.value is None:
        return Change(SAME if after is None or after.value is None else NEW, before, after)
    if after is None:
        return Change(GONE, before, after)
    if after.value is None:
        return Change(WORSE if after.status == "failed" else GONE, before, after)
    if after.kind == "static" and version(before) != version(after):
        return Change(SKIPPED, before, after)
    moved = after.value - before.value
    if moved == 0 or (after.kind == "measured" and overlap(before, after)):
        return Change(SAME, before, after)
    if not is_goal(after):
        return Change(CHANGED, before, after)
    return Change(BETTER if (moved > 0) == (after.metric in HIGHER_IS_BETTER) else WORSE, before, after)


def overlap(before: Row, after: Row) -> bool:
    """Whether the ranges of two measured rows meet."""
    (low, high), (least, most) = (extent(row) for row in (before, after))
    return low <= most and least <= high


def extent(row: Row) -> tuple[float, float]:
    """From the 20 % to the 80 % quantile; the value alone where nothing was repeated."""
    assert row.value is not None
    return (row.value if row.low is None else row.low, row.value if row.high is None else row.high)


def is_goal(row: Row) -> bool:
    """Whether more or less of the metric is better or worse, rather than just different."""
    if row.kind == "static":
        return row.metric in STATIC_GOALS
    return row.provider != COPY


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m perf compare`."""
    parser.add_argument("before", type=Path, help="result file")
    parser.add_argument("after", type=Path, help="result file")
    parser.add_argument("--provider", action="append", metavar="NAME", help="only this provider; may be repeated")
    parser.add_argument("--exact", action="store_true", help="exit with 1 on any change, good ones and gaps included")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    cases.add_filters(parser, DIRECTIONS)


def run(args: argparse.Namespace) -> int:
    """Print the changes and a count of them."""
    before, after = (newest(path, args) for path in (args.before, args.after))
    found = list(changes(before, after))
    if not any(each.before and each.after for each in found):
        raise UserError(f"nothing to compare: {about(args.before, before)}; {about(args.after, after)}")
    told = [each for each in found if each.verdict not in (SAME, SKIPPED)]
    layout = table.as_markdown if args.markdown else table.as_text
    for title, group in table.grouped(told, topic).items():
        print(layout(title, HEAD, [line(each) for each in group]))
    print(*caveats(found), sep="\n", end="\n" if any(caveats(found)) else "")
    counts = Counter(each.verdict for each in found)
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]))
    return int(bool(counts[WORSE] or (args.exact and told)))


def caveats(found: Sequence[Change]) -> Iterator[str]:
    """What a reader should know before believing the verdicts."""
    versions = sorted({version(row) for each in found if each.verdict == SKIPPED for row in (each.before, each.after)})
    if versions:
        yield f"Static rows of different Triton versions are not compared: {' and '.join(versions)}."
    copies = [each for each in found if each.row.provider == COPY and each.before and each.after]
    drifted = [each for each in copies if each.verdict == CHANGED]
    if drifted:
        typical = statistics.median(map(growth, drifted))
        yield (
            f"The copy itself took another time in {len(drifted)} of {len(copies)} cases (typically {typical:+.0%}): "
            "the machine was in another state. Trust ratios before times."
        )


def newest(path: Path, args: argparse.Namespace) -> list[Row]:
    """The newest answers of a file to the questions asked for, without what only restates them."""
    return [
        row
        for row in latest_rows(read_rows(path))
        if row.metric not in DERIVED
        and (not args.provider or row.provider in args.provider)
        and cases.wanted(row, args)
    ]


def about(path: Path, rows: Sequence[Row]) -> str:
    """What a file is about, for someone who compared the wrong ones."""
    topics = sorted({f"{row.kind} rows of {row.device}" for row in rows}) or ["no such row"]
    return f"{path} has {', '.join(topics)}"


HEAD = ["", "case", "shape", "provider", "metric", "before", "after", "change"]


def topic(each: Change) -> str:
    """The title of the table a change belongs to."""
    row = each.row
    return f"{row.device}: {table.titled(row.approximate, row.dtype, row.direction)}"


def line(each: Change) -> list[str]:
    """A change as cells of the table."""
    row = each.row
    sizes = "x".join(map(str, row.shape))
    change = f"{growth(each):+.1%}" if growth(each) else ""
    return [each.verdict, row.case, sizes, row.provider, row.metric, shown(each.before), shown(each.after), change]


def version(row: Row | None) -> str:
    """The Triton version a row was made with, and whether its compiler was kept from fusing."""
    if row is None:
        return "none"
    return row.versions.get("triton", "none") + " without FP fusion" * (row.versions.get("fp_fusion") == "off")


def shown(row: Row | None) -> str:
    """An answer in few words."""
    if row is None:
        return "-"
    if row.value is None:
        return row.status
    return table.duration(row.value) if row.metric == TIME else f"{row.value:.5g}"


def growth(each: Change) -> float:
    """By how much the new value exceeds the old one, as a share of it; 0 where that says nothing."""
    if each.before is None or each.after is None or not each.before.value or each.after.value is None:
        return 0.0
    return each.after.value / each.before.value - 1
