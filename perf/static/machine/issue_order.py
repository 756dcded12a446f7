"""The instructions that one warp issues, in order, from control flow and the launch's loop counts.

Nothing is computed. How often a loop is gone through, and whether a tile lies wholly inside its tensor, is known from
the launch plan (`Trips`); here the loops and branches of the code are matched with that:

* A branch that leaves a loop leaves it after as many trips as were planned; one that skips loops skips those of none.
* At a branch that hangs on a thread's number or on data the threads of a warp may part: both ways are followed, the
  lower address first, until they meet again.
* Of what is left, the choice between whole and masked tiles, each way is tried. Those count that load no less than a
  tile, and not twice; and of them the shortest is that of whole tiles, and the longest that of masked ones. Where
  nothing was planned to be chosen (a division of numbers that may have 64 bits), the shortest is taken, too.

What does not match is refused: a compiler may one day unroll a loop, and then somebody has to teach this how.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from perf.static.machine.code import Code, Issued, Untraceable
from perf.static.machine.control_flow import Block, Flow, Loop

MOST_RUNS = 1_000_000
WIDE_ENOUGH = 16  # bytes a thread: of smaller tiles several threads may load the same
NOT_TWICE = 1.5  # times the least a way may load: the bias can be read by other threads where tiles are masked


@dataclass(frozen=True)
class Planned:
    """A loop of the source: how often a program goes through it, and the loops inside, in their order.

    Of two loops in a row that do the same, the first takes whole tiles and the second those with masks.
    `loads` is the bytes that the threads of a program load in one trip, inner loops apart, at least; 0: not known.
    """

    trips: int
    inner: tuple[Planned, ...] = ()
    loads: int = 0


@dataclass(frozen=True)
class Trips:
    """What the launch plan says of one program: its loops and, where it chooses one of two ways, which.

    `masked` is None where there is nothing to choose; `loads` the bytes that the threads of a program load at least.
    """

    loops: tuple[Planned, ...] = ()
    masked: bool | None = None
    loads: int = 0


@dataclass(frozen=True)
class Follower:
    """A kernel's code, ready to be followed by programs whose trips differ. A loop is named by its first block."""

    code: Code
    threads: int

    @cached_property
    def flow(self) -> Flow:
        return Flow(self.code)

    @cached_property
    def branches(self) -> tuple[Block, ...]:
        """The blocks after which one of two may follow."""
        return tuple(block for block, ways in self.flow.after.items() if len(ways) == 2)

    @cached_property
    def loops(self) -> tuple[Loop, ...]:
        """All loops, inner ones first."""
        return tuple(sorted(_every(self.flow.loops), key=lambda loop: len(loop.blocks)))

    @cached_property
    def leaving(self) -> Mapping[Block, tuple[Loop, Block]]:
        """By branch the loop that it leaves one way and stays in the other, and the way out."""
        found = {}
        for block in self.branches:
            loop = next((loop for loop in self.loops if block in loop.blocks), None)
            out = [way for way in self.flow.after[block] if loop and way not in loop.blocks]
            if loop and len(out) == 1:
                found[block] = (loop, out[0])
        return found

    @cached_property
    def skipping(self) -> Mapping[Block, tuple[list[Loop], Block]]:
        """By branch the loops that it goes to one way and not the other, and that way."""
        found = {}
        for block in self.branches:
            entered = [(self._entered(block, way), way) for way in self.flow.after[block]]
            some = [(loops, way) for loops, way in entered if loops]
            if block not in self.leaving and len(some) == 1:
                found[block] = some[0]
        return found

    def _entered(self, block: Block, way: Block) -> list[Loop]:
        """The outermost loops that begin after a branch if it goes this way."""
        blocks = self.flow.side(block, way)
        found = [loop for loop in self.loops if loop.header in blocks and block not in loop.blocks]
        return [loop for loop in found if not any(loop.blocks < other.blocks for other in found)]

    @cached_property
    def parting(self) -> frozenset[Block]:
        """The branches at which the threads of a warp may part."""
        return self.flow.parting - self.leaving.keys() - self.skipping.keys()

    @cached_property
    def ending(self) -> frozenset[Block]:
        """The blocks after which some threads end, and others go on."""
        ends = {block for block in self.branches if self.flow.last(block) in self.code.ends}
        return frozenset(ends - self.leaving.keys() - self.skipping.keys())

    @cached_property
    def choices(self) -> tuple[Block, ...]:
        """The branches that neither leave a loop, nor skip one, nor part or end threads."""
        known = self.leaving.keys() | self.skipping.keys() | self.parting | self.ending
        return tuple(block for block in self.branches if block not in known)

    def follow(self, trips: Trips) -> Issued:
        """What a warp of a program issues. Raises `Untraceable` where the code is not what was planned."""
        planned = dict(self._matched(self.flow.loops, trips.loops))
        tries = product((0, 1), repeat=len(self.choices))
        ways = [self._issued(planned, dict(zip(self.choices, taken, strict=True))) for taken in tries]
        loaded = [self._loaded(way) for way in ways]
        least = min((each for each in loaded if each >= trips.loads), default=math.inf)
        fit = [way for way, each in zip(ways, loaded, strict=True) if least <= each <= NOT_TWICE * least]
        if not fit:
            raise Untraceable(f"a program has to load {trips.loads} bytes, and the code loads {max(loaded)} at most")
        lengths = [sum(end - start for start, end in way.runs) for way in fit]
        return fit[lengths.index((max if trips.masked else min)(lengths))]

    def _matched(self, found: Sequence[Loop], planned: Sequence[Planned]) -> Iterator[tuple[Block, int]]:
        """Each loop of the code, by its first block, with its trips: as many loops as were planned, in that order."""
        if len(found) != len(planned):
            raise Untraceable(f"{len(planned)} loops were planned, and the code has {len(found)} in a row")
        for loop, plan in zip(found, planned, strict=True):
            loaded = self._loaded_in(loop.blocks.difference(*(inner.blocks for inner in loop.inner)))
            most = 2 * plan.loads if plan.loads >= WIDE_ENOUGH * self.threads else math.inf
            if plan.loads and not plan.loads <= loaded < most:
                branch = self.code.instructions[self.flow.last(max(loop.blocks))]
                raise Untraceable(
                    f"a trip of a loop was planned to load {plan.loads} bytes, and loads {loaded}: "
                    f"is it unrolled? It ends with {branch}"
                )
            yield loop.header, plan.trips
            yield from self._matched(loop.inner, plan.inner)

    def _loaded_in(self, blocks: Iterable[Block]) -> int:
        """The bytes that the threads of a program load in blocks, each issued once."""
        places = (place for block in blocks for place in range(self.flow.starts[block], self.flow.starts[block + 1]))
        found = (self.code.accesses[place] for place in places)
        return self.threads * sum(width for space, width in found if space == "load")

    def _loaded(self, way: Issued) -> int:
        """The bytes that the threads of a program load."""
        accesses = self.code.accesses
        found = ((accesses[place], often) for place, often in way.times().items())
        return self.threads * sum(width * often for (space, width), often in found if space == "load")

    def _issued(self, planned: Mapping[Block, int], taken: Mapping[Block, int]) -> Issued:
        """What is issued with so many trips of each loop, one of two ways taken at each choice."""
        headers = {loop.header: loop for loop in self.loops}
        begun: Counter[Block] = Counter()  # trips of each loop since it was entered
        runs: list[tuple[int, int]] = []
        previous = self.flow.end
        waiting = {0}
        while (here := min(waiting)) != self.flow.end:
            waiting.remove(here)
            if here in headers:
                begun[here] = begun[here] + 1 if previous in headers[here].blocks else 1
            start, end = self.flow.starts[here], self.flow.starts[here + 1]
            if runs and runs[-1][1] == start:
                start, _ = runs.pop()
            runs.append((start, end))
            if len(runs) > MOST_RUNS:
                raise Untraceable(f"the code does not end, after {len(runs)} runs of instructions")
            waiting.update(self._following(here, planned, begun, taken))
            previous = here
        return Issued(tuple(runs))

    def _following(
        self, block: Block, planned: Mapping[Block, int], begun: Mapping[Block, int], taken: Mapping[Block, int]
    ) -> Sequence[Block]:
        """What comes after a block: of two ways one, or both where threads part."""
        ways = self.flow.after[block]
        if block in self.leaving:
            loop, out = self.leaving[block]
            trips = planned[loop.header]
            is_done = begun[loop.header] > trips if self._tests_first(loop, block) else begun[loop.header] >= trips
            return [way for way in ways if (way == out) == is_done]
        if block in self.skipping:
            loops, way_in = self.skipping[block]
            is_entered = any(planned[loop.header] for loop in loops)
            return [way for way in ways if (way == way_in) == is_entered]
        if block in self.ending:
            return ways[:1]
        if block in taken:
            return [ways[taken[block]]]
        if len(ways) == 2:
            goes = self.code.isa.assumed(self.code.instructions[self.flow.last(block)])
            return ways if goes is None else [ways[goes]]
        return ways

    def _tests_first(self, loop: Loop, block: Block) -> bool:
        """Whether a loop is left at its start, before what it does."""
        return block == loop.header and any(
            self.code.accesses[place][0]
            for other in loop.blocks - {block}
            for place in range(self.flow.starts[other], self.flow.starts[other + 1])
        )


def _every(loops: Sequence[Loop]) -> Iterator[Loop]:
    for loop in loops:
        yield loop
        yield from _every(loop.inner)
