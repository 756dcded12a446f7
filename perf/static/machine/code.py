"""Following machine code without running it: the instructions one warp issues, in order.

Only what decides a branch is computed, from the arguments of the launch and the place of the program in the grid. All
else (the index of a thread, loaded data, addresses) is unknown, `None`. Where a branch hangs on something unknown, the
threads of a warp may part: both ways are followed, the lower address first, until they meet again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

Word = int | None
State = dict[str, Word]
Effect = Callable[[State], None]

MOST_RUNS = 1_000_000


class Untraceable(Exception):
    """The machine code does something that nobody taught us to follow; the message names the instruction."""


@dataclass(frozen=True)
class Instruction:
    """`target` is the place of the instruction a branch goes to; `guard` the predicate it is executed under."""

    opcode: str
    operands: tuple[str, ...] = ()
    guard: str = ""
    target: int | None = None

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}".strip()


@dataclass(frozen=True)
class Registers:
    """Names of the 32-bit registers and predicates an instruction reads and writes."""

    reads: frozenset[str]
    writes: frozenset[str]


class InstructionSet(Protocol):
    """What has to be known of a GPU's instructions to follow and to count them."""

    def registers(self, instruction: Instruction) -> Registers: ...

    def effect(self, instruction: Instruction) -> Effect:
        """What an instruction does to a state, as far as that is known."""

    def holds(self, guard: str, state: State) -> bool | None:
        """Whether a guard is true, if that is known; an empty one is."""

    def ends(self, instruction: Instruction) -> bool:
        """Whether a thread ends here."""

    def assumed(self, instruction: Instruction) -> bool | None:
        """Which way an unknown branch goes if it asks for any thread that is active; `None`: threads may part."""

    def heading(self, instruction: Instruction) -> str:
        """What an instruction is counted as, for people to read."""

    def busy(self, instruction: Instruction) -> Mapping[str, float]:
        """Lanes of each unit (the names of `GPU.lanes` and `GPU.does`) that one thread's instruction takes."""

    def access(self, instruction: Instruction) -> tuple[str, int]:
        """ "load" or "store" (global), "shared", "spill" or "", and the bytes a thread moves."""


@dataclass(frozen=True)
class Code:
    """One kernel's machine code, and what the assembler says of it. `entry` is the state a program starts in."""

    isa: InstructionSet
    instructions: tuple[Instruction, ...]
    entry: Callable[[tuple[int, int, int]], State]
    registers: int
    stack: int
    listing: str

    @cached_property
    def used(self) -> tuple[Registers, ...]:
        """The registers of each instruction."""
        return tuple(self.isa.registers(each) for each in self.instructions)

    @cached_property
    def accesses(self) -> tuple[tuple[str, int], ...]:
        """Where each instruction reaches and how wide, as `InstructionSet.access` says."""
        return tuple(self.isa.access(each) for each in self.instructions)

    @cached_property
    def ends(self) -> frozenset[int]:
        return frozenset(place for place, each in enumerate(self.instructions) if self.isa.ends(each))

    @cached_property
    def effects(self) -> Mapping[int, Effect]:
        """By place, the effects of the instructions that some later branch or end depends on."""
        places = range(len(self.instructions))
        wanted = [frozenset[str]() for _ in (*places, None)]  # registers, before each place
        found: dict[int, Effect] = {}
        while True:
            before = list(wanted)
            for place in reversed(places):
                each, used = self.instructions[place], self.used[place]
                after = wanted[place + 1] if each.target is None or each.guard else frozenset()
                if each.target is not None:
                    after |= wanted[each.target]
                if each.target is not None or place in self.ends:
                    wanted[place] = after | used.reads
                elif used.writes & after:
                    wanted[place] = after - (frozenset() if each.guard else used.writes) | used.reads
                    found.setdefault(place, self.isa.effect(each))
                else:
                    wanted[place] = after
            if wanted == before:
                return found

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """For each place the first at or after it where there is something to compute or to decide."""
        stops = [len(self.instructions)]
        for place in reversed(range(len(self.instructions))):
            target = self.instructions[place].target
            here = place in self.effects or place in self.ends or target is not None
            stops.append(place if here else stops[-1])
        return tuple(reversed(stops))


@dataclass(frozen=True)
class Walk:
    """What a warp issues, as runs of consecutive places (start, end), and the branches where its threads may part."""

    runs: tuple[tuple[int, int], ...]
    parted: frozenset[int]

    def times(self) -> Counter[int]:
        """How often the instruction at each place is issued."""
        times: Counter[int] = Counter()
        for (start, end), often in Counter(self.runs).items():
            times.update(dict.fromkeys(range(start, end), often))
        return times


def walk(code: Code, program_id: tuple[int, int, int] = (0, 0, 0)) -> Walk:
    """Follow one program from its first instruction until every thread has ended."""
    end = len(code.instructions)
    paths: dict[int, State] = {0: code.entry(program_id)}
    runs: list[tuple[int, int]] = []
    parted: set[int] = set()
    while paths:
        start = here = min(paths)
        if here == end or len(runs) > MOST_RUNS:
            raise Untraceable(f"the code does not end, after {len(runs)} runs of instructions")
        state = paths.pop(here)
        following: int | None = None
        while following is None:
            meeting = min(paths, default=end)
            here = min(code.stops[here], meeting)
            if here == meeting:
                following = here
                break
            instruction = code.instructions[here]
            holds = code.isa.holds(instruction.guard, state)
            if holds is None and instruction.target is not None:
                parted.add(here)
                holds = code.isa.assumed(instruction)
            here += 1
            if instruction.target is None and here - 1 not in code.ends:
                _apply(code.effects[here - 1], state, holds)
            elif instruction.target is None:
                if holds:
                    break
            elif holds:
                following = instruction.target
            elif holds is None:
                if instruction.target < here:
                    raise Untraceable(f"the length of a loop is unknown: {instruction}")
                _join(paths, instruction.target, dict(state))
        runs.append((start, here))
        if following is not None:
            _join(paths, following, state)
    return Walk(tuple(runs), frozenset(parted))


def _apply(effect: Effect, state: State, holds: bool | None) -> None:
    if holds is None:
        before = dict(state)
        effect(state)
        _forget_differences(state, before)
    elif holds:
        effect(state)


def _join(paths: dict[int, State], place: int, state: State) -> None:
    if place in paths:
        _forget_differences(state, paths[place])
    paths[place] = state


def _forget_differences(state: State, other: State) -> None:
    for name in state.keys() | other.keys():
        if state.get(name) != other.get(name):
            state[name] = None
