"""Machine code as a list of instructions, and what has to be known of a GPU's instructions to follow and count them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol


class Untraceable(Exception):
    """The machine code does something that nobody taught us to follow; the message names the instruction."""


@dataclass(frozen=True)
class Instruction:
    """`target` is the place of the instruction a branch goes to; `guard` the predicate it is executed under.

    `sets` is the scoreboard that its result is announced on, and `waits` those that it waits for, where there are any.
    """

    opcode: str
    operands: tuple[str, ...] = ()
    guard: str = ""
    target: int | None = None
    sets: int | None = None
    waits: frozenset[int] = frozenset()

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}".strip()


@dataclass(frozen=True)
class Registers:
    """Names of the 32-bit registers and predicates an instruction reads and writes."""

    reads: frozenset[str]
    writes: frozenset[str]


@dataclass(frozen=True)
class Load:
    """Bytes that a thread has asked memory for, and the round in which it did; 0 bytes where nobody counts them."""

    size: int
    round: int


class Outstanding(Protocol):
    """What has been asked of memory and is not there yet."""

    def ended_by(self, instruction: Instruction) -> Sequence[Load]:
        """What has to be there before an instruction is issued, and from then on is."""

    def issue(self, instruction: Instruction, load: Load | None) -> None:
        """Issue an instruction, which asks for something of memory where `load` is not None."""


class InstructionSet(Protocol):
    """What has to be known of a GPU's instructions to follow and to count them."""

    def registers(self, instruction: Instruction) -> Registers: ...

    def varies(self, instruction: Instruction) -> bool:
        """Whether an instruction gives each thread something of its own, whatever it reads: its number, or data."""

    def may_vary(self, register: str) -> bool:
        """Whether a register, or a branch's condition, can differ from thread to thread."""

    def ends(self, instruction: Instruction) -> bool:
        """Whether a thread ends here."""

    def assumed(self, instruction: Instruction) -> bool | None:
        """Which way an unknown branch goes if it asks for any thread that is active; `None`: threads may part."""

    def heading(self, instruction: Instruction) -> str:
        """What an instruction is counted as, for people to read."""

    def busy(self, instruction: Instruction) -> Mapping[str, float]:
        """Lanes of each unit (as `Architecture.lanes` and `does` name them) that one thread's instruction takes."""

    def outstanding(self) -> Outstanding:
        """Nothing is, at a kernel's start."""

    def parameter(self, instruction: Instruction) -> int | None:
        """Where an instruction reads the kernel's parameters: the first of as many 32-bit words as it has results."""

    def is_predicate(self, register: str) -> bool:
        """Whether a register holds a condition."""

    def access(self, instruction: Instruction) -> tuple[str, int]:
        """ "load" or "store" (global), "shared", "spill" or "", and the bytes a thread moves."""


@dataclass(frozen=True)
class Code:
    """One kernel's machine code, and what the assembler says of it.

    `parameters` has the number of a parameter for the place, in bytes, of each of its 32-bit words.
    """

    isa: InstructionSet
    instructions: tuple[Instruction, ...]
    registers: int
    stack: int
    listing: str
    parameters: Mapping[int, int] = field(default_factory=dict)

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


@dataclass(frozen=True)
class Issued:
    """What a warp issues, as runs of consecutive places (start, end)."""

    runs: tuple[tuple[int, int], ...]

    def times(self) -> Counter[int]:
        """How often the instruction at each place is issued."""
        times: Counter[int] = Counter()
        for (start, end), often in Counter(self.runs).items():
            times.update(dict.fromkeys(range(start, end), often))
        return times


def words(places: Iterable[tuple[int, int]]) -> dict[int, int]:
    """The parameter of each 32-bit word, from where in memory each parameter begins and its size, in order."""
    return {start + at: number for number, (start, size) in enumerate(places) for at in range(0, size, 4)}
