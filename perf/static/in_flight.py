"""Bytes in flight: how much of its tensors a thread has asked memory for before it waits, as machine code has it.

A load is out from its issue until the first instruction that waits for it: on NVIDIA one whose wait mask names the
scoreboard that the load was given, on AMD a wait for the counter of memory operations. A round is a wait that ends
loads issued since the last one. Little's law bounds what is streamed over the rounds that it takes; the peak is the
most that is out at any wait. Both are of the tensors that stream through the kernel, not of a bias, which caches serve.
Which tensor a load is of is followed from the kernel's parameters through the arithmetic of its address.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from perf.static.machine.code import Code, Issued, Load
from perf.static.machine.issue_order import Planned, Trips

MOST_STEPS = 16  # to follow: a loop has found its rhythm by then
STREAMS = 0.5  # of the largest tensor that is loaded: whatever is smaller is read again and again
NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class InFlight:
    """Of one thread, over `steps` whole tiles: bytes that it loads of what streams, rounds, and the peak in bytes."""

    streamed: int
    rounds: int
    peak: int
    steps: int

    @property
    def held(self) -> float:
        """Bytes that are out at a time."""
        return self.streamed / max(self.rounds, 1)

    @property
    def rounds_a_step(self) -> float:
        return self.rounds / self.steps


def followed(code: Code, issued: Issued, steps: int, streams: frozenset[int]) -> InFlight:
    """Follow what a warp issues; `streams` are the places of the streamed tensors among the kernel's parameters."""
    origins: dict[str, frozenset[int]] = {}
    out = code.isa.outstanding()
    streamed = held = peak = rounds = 0
    for place in _places(issued):
        instruction, used = code.instructions[place], code.used[place]
        over = [load for load in out.ended_by(instruction) if load.size]
        if over:
            peak = max(peak, held)
            rounds = max(rounds, *(load.round for load in over))
            held -= sum(load.size for load in over)
        come_from = frozenset().union(*(origins.get(name, frozenset()) for name in used.reads))
        space, size = code.accesses[place]
        if space == "load":
            size *= bool(come_from & streams)
            streamed, held = streamed + size, held + size
        if space == "spill":  # a register that is put down, or taken up again
            slot = next(each for each in instruction.operands if "[" in each)
            come_from |= origins.get(slot, frozenset())
            origins[slot] = come_from
        if space in ("load", "store"):
            out.issue(instruction, Load(size if space == "load" else 0, rounds + 1))
        else:
            out.issue(instruction, None)
        _write(origins, code, place, frozenset() if space == "load" else come_from)
    return InFlight(streamed, rounds, peak, steps)


def _places(issued: Issued) -> Iterator[int]:
    for start, end in issued.runs:
        yield from range(start, end)


def _write(origins: dict[str, frozenset[int]], code: Code, place: int, come_from: frozenset[int]) -> None:
    """Note which parameters the results of an instruction come from; under a guard they may be what they were."""
    instruction = code.instructions[place]
    at = code.isa.parameter(instruction)
    for word, name in enumerate(sorted(code.used[place].writes, key=_number)):
        known = come_from
        if at is not None and not code.isa.is_predicate(name):
            parameter = code.parameters.get(at + 4 * word)
            known = known if parameter is None else known | {parameter}
        origins[name] = known | origins.get(name, frozenset()) if instruction.guard else known


def _number(name: str) -> tuple[bool, int]:
    """Registers by number, predicates first."""
    found = NUMBER.search(name)
    return "P" not in name, int(found[0]) if found else 0


def streams(sizes: Sequence[int | None]) -> frozenset[int]:
    """Which of a kernel's parameters are tensors that stream, by the bytes of each that is a tensor that it loads."""
    most = max((size for size in sizes if size is not None), default=0)
    return frozenset(place for place, size in enumerate(sizes) if size is not None and size >= STREAMS * most)


def whole(trips: Trips) -> tuple[Trips, int]:
    """The same program, as if all its tiles were whole, and how many it has; of long loops a few trips."""
    loops = tuple(_whole(loop) for loop in trips.loops)
    steps = sum(_steps(loop) for loop in loops)
    return replace(trips, loops=loops, masked=None if trips.masked is None else False), max(steps, 1)


def _whole(loop: Planned) -> Planned:
    few = replace(loop, trips=min(max(loop.trips, 1), MOST_STEPS))
    if not loop.inner:
        return few
    first, *others = loop.inner  # the first takes whole tiles, the others what is left
    return replace(few, trips=1, inner=(_whole(first), *(replace(each, trips=0) for each in others)))


def _steps(loop: Planned) -> int:
    return loop.trips * (sum(map(_steps, loop.inner)) if loop.inner else 1)
