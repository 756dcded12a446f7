"""AMD machine code (CDNA): its instructions as LLVM prints them, what executes them, and what they access.

Manual: "AMD Instinct MI300" instruction set architecture, reference guide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from perf.static.machine.code import Code, Instruction, Load, Registers, words

_LINE = re.compile(
    r"(?:(?P<label>\.LBB\w+):|\s+(?P<opcode>(?:s|v|ds|buffer|global|flat|scratch)_\w+)\s*(?P<rest>[^;]*))"
)
_CONDITIONS = {
    "scc0": "!scc", "scc1": "scc", "vccz": "!vcc", "vccnz": "vcc", "execz": "!exec", "execnz": "exec",
}  # fmt: skip
_BYTES = {
    "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16, "b8": 1, "b16": 2, "b32": 4, "b64": 8, "b96": 12,
    "b128": 16, "ubyte": 1, "sbyte": 1, "byte": 1, "u8": 1, "ushort": 2, "sshort": 2, "short": 2, "u16": 2,
}  # fmt: skip
ASKS_FOR_ANY = {"s_cbranch_execz": False, "s_cbranch_execnz": True}  # which way they go if a thread is active
_REGISTER = re.compile(
    r"(?P<file>[sv])(?:(?P<one>\d+)|\[(?P<first>\d+):(?P<last>\d+)\])$|(?P<mask>vcc|exec)(?P<half>_lo|_hi)?$"
)
_PARAMETER = re.compile(r"\.offset:\s+(\d+)\s+\.size:\s+(\d+)")
_WAIT = re.compile(r"\bvmcnt\((\d+)\)")
_KERNEL_ARGUMENTS = "s[0:1]"  # where they lie, at a kernel's start
_WITHOUT_RESULT = re.compile(r"\w+_(store|write)_|s_(waitcnt|barrier|nop|endpgm|branch|cbranch|setprio|sleep|sethalt)")
_CONTROL = re.compile(r"s_(waitcnt|barrier|nop|endpgm|c?branch|setprio|sleep)")
_KEEPS_SCC = re.compile(r"s_(mov|brev|load|mul|cselect)")
_TRANSCENDENTAL = re.compile(r"v_(exp|log|rcp|rsq|sqrt|sin|cos)_")
_QUARTER_RATE = re.compile(r"v_(exp|log|rcp|rsq|sqrt|sin|cos|mul_lo|mul_hi)_")
_HEADINGS = (
    ("control", _CONTROL),
    ("uniform", re.compile(r"s_")),
    ("memory", re.compile(r"(buffer|global|flat|scratch|ds)_")),
    ("mufu", _TRANSCENDENTAL),
    ("conversion", re.compile(r"v_cvt_")),
    ("fma", re.compile(r"v_(pk_)?(fma|fmac|fmaak|fmamk|mul|add|sub|subrev|mac|mad)_(f16|f32|f64|legacy|mix)")),
    ("integer", re.compile(r"v_(\w+_)?(u32|i32|u64|i64|u24|i24)(_|$)")),
    ("alu", re.compile(r"v_")),
)


def code(assembly: str) -> Code:
    """A kernel from LLVM's assembly."""
    metadata = assembly.partition(".amdgpu_metadata")[2]
    return Code(
        isa=Amdgcn(),
        instructions=parse(assembly),
        registers=int(re.findall(r"\.vgpr_count:\s+(\d+)", metadata)[0]),
        stack=int(re.findall(r"\.private_segment_fixed_size:\s+(\d+)", metadata)[0]),
        listing=assembly,
        parameters=words((int(at), int(size)) for at, size in _PARAMETER.findall(metadata.partition(".args:")[2])),
    )


def parse(assembly: str) -> tuple[Instruction, ...]:
    """The instructions of one kernel."""
    places: dict[str, int] = {}
    lines: list[tuple[str, str]] = []
    for line in assembly.splitlines():
        match = _LINE.match(line)
        if match is not None and match["label"]:
            places[match["label"]] = len(lines)
        elif match is not None:
            lines.append((match["opcode"], match["rest"]))
    program = []
    for opcode, rest in lines:
        operands = tuple(each.strip() for each in rest.split(",") if each.strip())
        if opcode.startswith(("s_branch", "s_cbranch")):
            guard = _CONDITIONS.get(opcode.rpartition("_")[2], "")
            program.append(Instruction(opcode, operands, guard, places[operands[0]]))
        else:
            program.append(Instruction(opcode, operands))
    return tuple(program)


class MemoryCounter:
    """The `Outstanding` of CDNA: loads and stores end in order, and a wait leaves so many of them."""

    def __init__(self) -> None:
        self.operations: list[Load] = []

    def ended_by(self, instruction: Instruction) -> list[Load]:
        found = _WAIT.search(" ".join(instruction.operands)) if instruction.opcode == "s_waitcnt" else None
        over = max(len(self.operations) - int(found[1]), 0) if found else 0
        ended, self.operations = self.operations[:over], self.operations[over:]
        return ended

    def issue(self, instruction: Instruction, load: Load | None) -> None:
        if load is not None:
            self.operations.append(load)


class Amdgcn:
    """The `InstructionSet` of AMD's CDNA GPUs. Masks of a wave are pairs of words."""

    def registers(self, instruction: Instruction) -> Registers:
        opcode, operands = instruction.opcode, list(instruction.operands)
        if instruction.target is not None:
            return Registers(frozenset(registers_of(instruction.guard.removeprefix("!"))), frozenset())
        results = [] if _WITHOUT_RESULT.match(opcode) else operands[:1]
        if "_co_" in opcode:
            results = operands[:2]
        sources = operands[len(results) :]
        if re.match(r"s_(cmp|cmpk|bitcmp)", opcode):
            results, sources = [], operands
        reads = {name for each in sources for name in registers_of(each)}
        writes = {name for each in results for name in registers_of(each)}
        if opcode.startswith("s_") and not _CONTROL.match(opcode) and not _KEEPS_SCC.match(opcode):
            writes |= {"scc"}
        if re.match(r"s_(cselect|addc|subb)", opcode):
            reads |= {"scc"}
        if "saveexec" in opcode:
            reads |= {*registers_of("exec")}
            writes |= {*registers_of("exec")}
        if re.match(r"s_(addk|mulk)", opcode):
            reads |= writes - {"scc"}
        return Registers(frozenset(reads), frozenset(writes))

    def ends(self, instruction: Instruction) -> bool:
        return instruction.opcode == "s_endpgm"

    def assumed(self, instruction: Instruction) -> bool | None:
        return ASKS_FOR_ANY.get(instruction.opcode)

    def varies(self, instruction: Instruction) -> bool:
        return instruction.opcode in ASKS_FOR_ANY

    def may_vary(self, register: str) -> bool:
        return False  # a branch asks the scalar unit: threads part only where it asks for any that is active

    def heading(self, instruction: Instruction) -> str:
        return next(heading for heading, pattern in _HEADINGS if pattern.match(instruction.opcode))

    def busy(self, instruction: Instruction) -> Mapping[str, float]:
        heading = self.heading(instruction)
        if heading == "control":
            return {}
        if heading == "uniform":
            return {"salu": 1}
        if heading == "memory":
            space, width = self.access(instruction)
            return {"lds" if space == "shared" else "vmem": max(1, width / 4)}
        return {"valu": 4 if _QUARTER_RATE.match(instruction.opcode) else 1}

    def outstanding(self) -> MemoryCounter:
        return MemoryCounter()

    def parameter(self, instruction: Instruction) -> int | None:
        operands = instruction.operands
        if not instruction.opcode.startswith("s_load_dword") or operands[1:2] != (_KERNEL_ARGUMENTS,):
            return None
        return int(operands[2], 0)

    def is_predicate(self, register: str) -> bool:
        return register.startswith(("vcc", "exec", "scc"))

    def access(self, instruction: Instruction) -> tuple[str, int]:
        unit, _, rest = instruction.opcode.partition("_")
        if unit not in ("buffer", "global", "flat", "scratch", "ds"):
            return "", 0
        width = next((_BYTES[each] for each in rest.split("_") if each in _BYTES), 0)
        if unit == "ds":
            return "shared", width
        return "spill" if unit == "scratch" else "store" if "store" in rest else "load", width


def registers_of(operand: str) -> list[str]:
    """The 32-bit registers an operand stands for."""
    operand = operand.strip("|-")
    if operand == "scc":
        return ["scc"]
    match = _REGISTER.match(operand)
    if match is None:
        return []
    if match["mask"]:
        return [match["mask"] + half for half in ([match["half"]] if match["half"] else ("_lo", "_hi"))]
    first = int(match["one"] or match["first"])
    return [f"{match['file']}{i}" for i in range(first, int(match["last"] or first) + 1)]
