"""AMD machine code (CDNA): its instructions as LLVM prints them, what executes them, and what they access.

Manual: "AMD Instinct MI300" instruction set architecture, reference guide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from perf.static.machine.amdgcn_integers import MASK, meaning_of, registers_of
from perf.static.machine.code import Code, Effect, Instruction, Registers, State, Word

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


def code(assembly: str, arguments: Sequence[Word]) -> Code:
    """A kernel from LLVM's assembly; `arguments` in order, `None` for a pointer."""
    metadata = assembly.partition(".amdgpu_metadata")[2]
    words: dict[int, int] = {}
    places = re.findall(r"\.offset:\s+(\d+)\s+\.size:\s+(\d+)", metadata)
    for argument, (offset, size) in zip(arguments, places, strict=False):  # Triton adds scratch space at the end
        if argument is not None:
            words |= {int(offset) + at: argument >> 8 * at & MASK for at in range(0, int(size), 4)}

    def setting(name: str) -> int:
        return int(re.findall(rf"\.amdhsa_{name} (\d+)", assembly)[0])

    scalars = setting("user_sgpr_count")
    preloaded = range(scalars - setting("user_sgpr_kernarg_preload_length"), scalars)
    first = 4 * setting("user_sgpr_kernarg_preload_offset")
    axes = [axis for axis in range(3) if setting(f"system_sgpr_workgroup_id_{'xyz'[axis]}")]

    def entry(program_id: tuple[int, int, int]) -> State:
        state: State = {"exec_lo": MASK, "exec_hi": MASK, "s0": 0, "s1": 0}  # arguments lie at address 0
        state.update((f"[{offset}]", word) for offset, word in words.items())
        state.update((f"s{place}", words.get(first + 4 * i)) for i, place in enumerate(preloaded))
        state.update((f"s{scalars + i}", program_id[axis]) for i, axis in enumerate(axes))
        return state

    return Code(
        isa=Amdgcn(),
        instructions=parse(assembly),
        entry=entry,
        registers=int(re.findall(r"\.vgpr_count:\s+(\d+)", metadata)[0]),
        stack=int(re.findall(r"\.private_segment_fixed_size:\s+(\d+)", metadata)[0]),
        listing=assembly,
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


class Amdgcn:
    """The `InstructionSet` of AMD's CDNA GPUs. Masks of a wave are pairs of words; all lanes start active."""

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
        return {"s_cbranch_execz": False, "s_cbranch_execnz": True}.get(instruction.opcode)

    def holds(self, guard: str, state: State) -> bool | None:
        words = [state.get(name) for name in registers_of(guard.removeprefix("!"))]
        if any(words):
            return not guard.startswith("!")
        return (not guard or None) if None in words or not guard else guard.startswith("!")

    def effect(self, instruction: Instruction) -> Effect:
        meaning = meaning_of(instruction)
        writes = self.registers(instruction).writes

        def effect(state: State) -> None:
            known = meaning(state)
            state.update((name, known.get(name)) for name in writes)

        return effect

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

    def access(self, instruction: Instruction) -> tuple[str, int]:
        unit, _, rest = instruction.opcode.partition("_")
        if unit not in ("buffer", "global", "flat", "scratch", "ds"):
            return "", 0
        width = next((_BYTES[each] for each in rest.split("_") if each in _BYTES), 0)
        if unit == "ds":
            return "shared", width
        return "spill" if unit == "scratch" else "store" if "store" in rest else "load", width
