"""Machine code as a list of instructions, and what has to be known of a GPU's instructions to follow and count them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol


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

    def access(self, instruction: Instruction) -> tuple[str, int]:
        """ "load" or "store" (global), "shared", "spill" or "", and the bytes a thread moves."""


@dataclass(frozen=True)
class Code:
    """One kernel's machine code, and what the assembler says of it."""

    isa: InstructionSet
    instructions: tuple[Instruction, ...]
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
