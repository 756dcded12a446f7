"""NVIDIA machine code (SASS): its instructions as `nvdisasm` prints them, what executes them, and what they access."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from perf.static.machine.code import Code, Instruction, Load, Registers, Untraceable, words

_LINE = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(?:@(?P<guard>!?U?P\w)\s+)?(?P<opcode>[A-Z][\w.]*)(?P<operands>[^;]*);")
_CONTROL = re.compile(r"\s*/\* 0x(?P<word>[0-9a-f]{16}) \*/\s*$")
_LABEL = re.compile(r"\s*(\.L_\w+):")
_CONSTANT = re.compile(r"\bc\[0x0\]\[(0x[0-9a-f]+)\]")
_REGISTER = re.compile(r"\b(U?[RP])(\d+)\b(\.64|\.F32x2)?")

_BRANCHES = ("BRA", "CALL", "JMP")
_ENDS = ("EXIT", "RET")
_TRUE = ("PT", "UPT")
_OF_A_THREAD = ("SR_TID", "SR_LANEID", "SR_EQMASK", "SR_LTMASK", "SR_LEMASK", "SR_GTMASK", "SR_GEMASK")
_WITHOUT_RESULT = (
    "ST", "STG", "STS", "STL", "STSM", "RED", "LDGSTS", "BAR", "BSSY", "BSYNC", "BREAK", "NOP", "MEMBAR", "DEPBAR",
    "LDGDEPBAR", "WARPSYNC", "YIELD", "ERRBAR", "CCTL", "NANOSLEEP", "FENCE", *_BRANCHES, *_ENDS,
)  # fmt: skip
_WITH_PREDICATES = ("IADD3", "UIADD3", "LEA", "ULEA", "IMAD", "UIMAD", "VIMNMX", "UVIMNMX")
_IN_PAIRS = ("FADD2", "FMUL2", "FFMA2", "DADD", "DMUL", "DFMA")
_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
_SPACES = {
    "LDG": "load", "LD": "load", "LDGSTS": "load", "STG": "store", "ST": "store",
    "LDS": "shared", "STS": "shared", "LDL": "spill", "STL": "spill",
}  # fmt: skip

_HEADINGS = {
    "fma": "FFMA FMUL FADD FFMA2 FMUL2 FADD2 FSWZADD FHADD FHFMA FHMUL HFMA2 HADD2 HMUL2 HMNMX2 HSET2 HSETP2 DADD DFMA",
    "alu": "FMNMX FMNMX3 FSEL FSET FSETP FCHK LOP3 PLOP3 PRMT SEL SHF SHL SHR MOV CS2R VOTE P2R R2P BMSK",
    "integer": "IADD IADD3 IMAD LEA ISETP IMNMX VIADD VIADDMNMX VIMNMX VIMNMX3 IABS SGXT POPC FLO BREV IDP",
    "mufu": "MUFU",
    "conversion": "F2F F2FP F2I F2IP I2F I2FP I2IP FRND",
    "memory": "LDG STG LDS STS LDL STL LD ST LDC LDSM STSM LDGSTS ATOM ATOMG ATOMS RED SHFL S2R",
    "uniform": "R2UR S2UR LDCU VOTEU REDUX CREDUX UP2UR UR2UP",
    "control": (
        "BRA EXIT BAR BSSY BSYNC BREAK CALL RET NOP MEMBAR DEPBAR LDGDEPBAR WARPSYNC YIELD ERRBAR CCTL JMP NANOSLEEP "
        "FENCE BMOV PREEXIT ELECT"
    ),
}
_HEADING = {name: heading for heading, names in _HEADINGS.items() for name in names.split()}

# The unit of a heading, and of single instructions that differ. An integer multiplication takes the FMA pipe, half of
# it since sm_86; the two results of a packed instruction take two lanes. Who packs and unpacks 16-bit floats (F2FP,
# HADD2.F32) differs from GPU to GPU, too (perf/static/gpus.py).
_UNIT = {
    "fma": ("fma", 1), "alu": ("alu", 1), "integer": ("alu", 1), "mufu": ("xu", 1), "conversion": ("xu", 1),
    "FFMA2": ("fma", 2), "FMUL2": ("fma", 2), "FADD2": ("fma", 2), "IMAD": ("imad", 1), "IDP": ("imad", 1),
    "F2FP": ("pack", 1), "HADD2": ("half", 1), "I2FP": ("alu", 1), "POPC": ("xu", 1), "FLO": ("xu", 1),
    "BREV": ("xu", 1),
}  # fmt: skip


def code(listing: str, elf: str) -> Code:
    """A kernel from what `nvdisasm -c -hex` and `cuobjdump -elf` print."""
    start = int(_found(r"PARAM_CBANK.*?Value:\s+0x\w+ 0x(\w+)", elf), 16) & 0xFFFF if "PARAM_CBANK" in elf else 0
    places = re.findall(r"Ordinal : 0x(\w+)\s+Offset\s+: 0x(\w+)\s+Size\s+: 0x(\w+)", elf)
    return Code(
        isa=Sass(),
        instructions=parse(listing),
        registers=int(_found(r"register count: (\d+)", elf)),
        stack=int(_found(r"min stack size: (0x[0-9a-f]+)", elf), 16),
        listing=listing,
        parameters=words((start + at, size) for _, at, size in sorted([int(x, 16) for x in each] for each in places)),
    )


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.DOTALL)
    if match is None:
        raise Untraceable(f"the assembler's report has changed: nothing like {pattern!r} in it")
    return match[1]


def parse(listing: str) -> tuple[Instruction, ...]:
    """The instructions of a listing by `nvdisasm -c -hex` of one kernel, without the padding after its end.

    Behind each follow the words that it is encoded in; the upper one has its scoreboards.
    """
    places: dict[str, int] = {}
    lines: list[re.Match[str]] = []
    control: dict[int, int] = {}
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            places[label[1]] = len(lines)
        elif match := _LINE.match(line):
            lines.append(match)
        elif word := _CONTROL.match(line):
            control[len(lines) - 1] = int(word["word"], 16)
    program = [_scoreboards(_instruction(line, places), control.get(i)) for i, line in enumerate(lines)]
    while program and (program[-1].opcode == "NOP" or program[-1].target == len(program) - 1):
        program.pop()
    return tuple(program)


def _scoreboards(instruction: Instruction, word: int | None) -> Instruction:
    """An instruction with the scoreboards that it sets and waits for: bits 46 to 48 and 52 to 57 of its upper word."""
    if word is None:
        return instruction
    sets, mask = word >> 46 & 7, word >> 52 & 63
    waits = frozenset(number for number in range(6) if mask >> number & 1)
    return replace(instruction, sets=None if sets == 7 else sets, waits=waits)


def _instruction(line: re.Match[str], places: Mapping[str, int]) -> Instruction:
    text = line["operands"].replace(".reuse", "")
    operands = tuple(each.strip() for each in re.split(r",(?![^\[(]*[\])])", text) if each.strip())
    guard = line["guard"] or ""
    if _name(line["opcode"]) not in _BRANCHES:
        return Instruction(line["opcode"], operands, guard)
    label = re.search(r"`\((\.L_\w+)\)", text)
    if label is None:
        raise Untraceable(f"a jump to a place that is not in the code: {line['opcode']}{text}")
    condition = next((each for each in operands if re.fullmatch(r"!?U?P\d", each)), guard)
    return Instruction(line["opcode"], operands, condition, places[label[1]])


class Scoreboards:
    """The `Outstanding` of NVIDIA GPUs: a load is there once nobody waits for its scoreboard any more.

    Copies to shared memory (cp.async) end by groups: LDGDEPBAR closes one, DEPBAR leaves so many of them open.
    """

    def __init__(self) -> None:
        self.by_scoreboard: dict[int, list[Load]] = defaultdict(list)
        self.copies: list[Load] = []
        self.groups: list[list[Load]] = []

    def ended_by(self, instruction: Instruction) -> list[Load]:
        over = [load for number in instruction.waits for load in self.by_scoreboard.pop(number, [])]
        if _name(instruction.opcode) == "DEPBAR" and len(instruction.operands) == 2:
            left = len(self.groups) - int(instruction.operands[1], 16)
            over += [load for group in self.groups[: max(left, 0)] for load in group]
            self.groups = self.groups[max(left, 0) :]
        return over

    def issue(self, instruction: Instruction, load: Load | None) -> None:
        name = _name(instruction.opcode)
        if name == "LDGDEPBAR":
            self.groups.append(self.copies)
            self.copies = []
        elif name == "LDGSTS" and load is not None:
            self.copies.append(load)
        elif load is not None and instruction.sets is not None:
            self.by_scoreboard[instruction.sets].append(load)


class Sass:
    """The `InstructionSet` of NVIDIA GPUs. A predicate is the word 0 or 1."""

    def registers(self, instruction: Instruction) -> Registers:
        results, sources = _places(instruction)
        if _name(instruction.opcode) in ("IMAD", "UIMAD") and re.search(r"\.(WIDE|HI)", instruction.opcode):
            widths = [1, 1, 2]  # of factors and addend
        else:
            widths = [2 if ".64" in instruction.opcode else 1] * len(sources)
        reads = [name for each, width in zip(sources, widths, strict=False) for name in _registers(each, width)]
        reads += _registers(instruction.guard, 1)
        writes = [name for each in results for name in _registers(each, _width(instruction))]
        return Registers(frozenset(reads), frozenset(writes))

    def ends(self, instruction: Instruction) -> bool:
        return _name(instruction.opcode) in _ENDS

    def assumed(self, instruction: Instruction) -> bool | None:
        return None

    def varies(self, instruction: Instruction) -> bool:
        name = _name(instruction.opcode)
        asks = any(operand.startswith(_OF_A_THREAD) for operand in instruction.operands)
        return asks or name in ("SHFL", "ATOM", "ATOMG", "ATOMS") or (name in _SPACES and name not in _WITHOUT_RESULT)

    def may_vary(self, register: str) -> bool:
        return not register.startswith("U")

    def heading(self, instruction: Instruction) -> str:
        name = _name(instruction.opcode)
        if instruction.opcode.startswith("HADD2.F32"):
            return "conversion"
        heading = _HEADING.get(name) or ("uniform" if name.startswith("U") else None)
        if heading is None:
            raise Untraceable(f"nobody said what this instruction counts as: {instruction}")
        return heading

    def busy(self, instruction: Instruction) -> Mapping[str, float]:
        taken = {"issue": 1.0}
        name = _name(instruction.opcode)
        unit, lanes = _UNIT.get(name) or _UNIT.get(self.heading(instruction)) or ("", 0)
        if unit:
            taken[unit] = lanes
        if unit == "imad":
            taken["fma"] = lanes
        space, width = self.access(instruction)
        if space or name == "SHFL":
            taken["lsu"] = max(1, width / 4)
        return taken

    def outstanding(self) -> Scoreboards:
        return Scoreboards()

    def parameter(self, instruction: Instruction) -> int | None:
        found = next((match for each in instruction.operands if (match := _CONSTANT.search(each))), None)
        return int(found[1], 16) if found else None

    def is_predicate(self, register: str) -> bool:
        return is_predicate(register)

    def access(self, instruction: Instruction) -> tuple[str, int]:
        name, *modifiers = instruction.opcode.split(".")
        space = _SPACES.get(name, "")
        return space, next((_BYTES[each] for each in modifiers if each in _BYTES), 4) if space else 0


def _name(opcode: str) -> str:
    return opcode.partition(".")[0]


def _places(instruction: Instruction) -> tuple[list[str], list[str]]:
    """The operands that are results, and those that are sources."""
    sources = list(instruction.operands)
    name = _name(instruction.opcode)
    if name in _WITHOUT_RESULT:
        return [], sources
    results: list[str] = []
    while sources and is_predicate(sources[0]) and len(results) < 2:
        results.append(sources.pop(0))
    if not name.endswith(("SETP", "SETP2", "PLOP3")) and sources:
        results.append(sources.pop(0))
        while name in _WITH_PREDICATES and sources and is_predicate(sources[0]):
            results.append(sources.pop(0))
    return results, sources


def _width(instruction: Instruction) -> int:
    """Registers a result fills."""
    name, *modifiers = instruction.opcode.split(".")
    if name in _IN_PAIRS or (name == "CS2R" and "32" not in modifiers):
        return 2
    if "WIDE" in modifiers or (name in ("IADD", "MOV") and "64" in modifiers):
        return 2
    loads = name.startswith(("LD", "ULDC", "S2"))
    return max(1, next((_BYTES[each] // 4 for each in modifiers if each in _BYTES), 1)) if loads else 1


def _registers(operand: str, width: int) -> list[str]:
    """The registers an operand stands for, those in brackets included; a plain one is the first of `width`."""
    found = []
    for file, number, double in _REGISTER.findall(operand):
        count = 1 if file.endswith("P") else max(width, 2 if double else 1)
        found += [f"{file}{int(number) + i}" for i in range(count)]
    return found


def is_predicate(operand: str) -> bool:
    return re.fullmatch(r"U?P[0-9T]", operand) is not None
