"""The integers that AMD's scalar unit computes: enough of them to know how branches go.

What the vector unit computes is unknown, but for comparisons and divisions of scalars, which it takes part in.
"""

from __future__ import annotations

import operator
import re
import struct
from collections.abc import Callable, Mapping, Sequence

from perf.static.machine.code import Instruction, State, Word

MASK = 2**32 - 1
EVERY_LANE = 2**64 - 1

_REGISTER = re.compile(
    r"(?P<file>[sv])(?:(?P<one>\d+)|\[(?P<first>\d+):(?P<last>\d+)\])$|(?P<mask>vcc|exec)(?P<half>_lo|_hi)?$"
)
_SCALAR = re.compile(r"s_(?P<name>\w+?)_(?P<kind>[biu])(?P<bits>32|64)$")
_VECTOR_COMPARISON = re.compile(r"v_cmp_(?P<relation>eq|ne|lt|le|gt|ge)_(?P<kind>[iu])(?P<bits>32|64)")
_NOT_KNOWN: Mapping[str, Word] = {}


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


def meaning_of(instruction: Instruction) -> Callable[[State], Mapping[str, Word]]:
    """A function of the state to those of an instruction's results that are known, by register."""
    opcode, operands = instruction.opcode, instruction.operands
    if opcode.startswith("s_load_dword"):
        return lambda state: _load(operands, state)
    if opcode.startswith("v_"):
        return lambda state: _vector(opcode, operands, state)
    match = _SCALAR.match(opcode)
    if match is None:
        return lambda state: _NOT_KNOWN
    name, bits = match["name"].replace("cmpk", "cmp"), int(match["bits"])
    signed = match["kind"] == "i"
    compares = name.startswith(("cmp", "bitcmp"))
    results = [] if compares else registers_of(operands[0])
    sources = operands if compares or name in ("addk", "mulk") else operands[1:]

    def meaning(state: State) -> Mapping[str, Word]:
        values = [_value(each, bits, state) for each in sources]
        if name.endswith("saveexec"):
            return _save_mask(name, results, values[0], state)
        known = [value for value in values if value is not None]
        if name == "or" and (1 << bits) - 1 in known:  # lanes are given back, whichever were missing
            return {**_words(results, EVERY_LANE), "scc": 1}
        if len(known) < len(values):
            return _NOT_KNOWN
        if name in ("cselect", "addc", "subb") and state.get("scc") is None:
            return _NOT_KNOWN
        numbers = [_signed(value, bits) if signed else value for value in known]
        relation = _RELATIONS.get(name.removeprefix("cmp_"))
        if relation is not None:
            return {"scc": int(relation(*numbers))}
        compute = _COMPUTE.get(name)
        if compute is None:
            return _NOT_KNOWN
        value, flag = compute(numbers, bits, state.get("scc") or 0)
        flag = int(value & (1 << bits) - 1 != 0) if flag is None else flag
        return {**_words(results, value), "scc": flag}

    return meaning


def _value(operand: str, bits: int, state: State) -> Word:
    """A source as an unsigned number of so many bits."""
    names = registers_of(operand)
    if not names:
        try:
            return int(operand, 0) & (1 << bits) - 1
        except ValueError:
            return None
    value = 0
    for i, name in enumerate(names):
        word = state.get(name)
        if word is None:
            return None
        value |= word << 32 * i
    return value


def _words(registers: Sequence[str], value: int) -> dict[str, Word]:
    return {name: value >> 32 * i & MASK for i, name in enumerate(registers)}


def _load(operands: Sequence[str], state: State) -> Mapping[str, Word]:
    """Arguments, which `entry` put at address 0; any other address is a pointer's and unknown."""
    base = _value(operands[1], 64, state)
    offset = _value(operands[2], 32, state)
    if base is None or offset is None:
        return _NOT_KNOWN
    return {name: state.get(f"[{base + offset + 4 * i}]") for i, name in enumerate(registers_of(operands[0]))}


def _save_mask(name: str, saved: Sequence[str], mask: Word, state: State) -> Mapping[str, Word]:
    before = _value("exec", 64, state)
    if before is None:
        return _NOT_KNOWN
    if mask is None:
        return _words(saved, before)
    after = {
        "and": mask & before, "or": mask | before, "andn2": mask & ~before, "xor": mask ^ before,
    }.get(name.removesuffix("_saveexec"))  # fmt: skip
    if after is None:
        return _NOT_KNOWN
    return {**_words(saved, before), **_words(registers_of("exec"), after), "scc": int(after != 0)}


def _vector(opcode: str, operands: Sequence[str], state: State) -> Mapping[str, Word]:
    """Moves, comparisons and choices of scalars, and the reciprocal that an integer division starts from."""
    if opcode.startswith("v_cndmask_b32"):
        choices: dict[Word, str] = {0: operands[1], EVERY_LANE: operands[2]}
        chosen = _value(choices.get(_value(operands[3], 64, state), ""), 32, state)
        return _NOT_KNOWN if chosen is None else _words(registers_of(operands[0]), chosen)
    compared = _VECTOR_COMPARISON.match(opcode)
    bits = 64 if (compared and compared["bits"] == "64") or "_b64" in opcode else 32
    values = [_value(each, bits, state) for each in operands[1:]]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return _NOT_KNOWN
    if compared:
        a, b = (_signed(value, bits) if compared["kind"] == "i" else value for value in known)
        return _words(registers_of(operands[0]), EVERY_LANE if _RELATIONS[compared["relation"]](a, b) else 0)
    compute = next((each for name, each in _VECTOR.items() if opcode.startswith(name)), None)
    return _NOT_KNOWN if compute is None else _words(registers_of(operands[0]), compute(*known))


def _add(values: Sequence[int], bits: int, carry: int) -> tuple[int, Word]:
    total = sum(values)
    return total, int(total >> bits != 0) if total >= 0 else 0


def _subtract(values: Sequence[int], bits: int, carry: int) -> tuple[int, Word]:
    return values[0] - values[1], int(values[0] < values[1])


def _bit_field(values: Sequence[int], bits: int, carry: int) -> tuple[int, Word]:
    value, place = values
    offset, width = place & bits - 1, place >> 16 & 127
    field = value >> offset & (1 << width) - 1
    return (_signed(field, width) if value < 0 and width else field), None


def _least(values: Sequence[int], bits: int, carry: int) -> tuple[int, Word]:
    return min(values), int(values[0] <= values[1])


def _most(values: Sequence[int], bits: int, carry: int) -> tuple[int, Word]:
    return max(values), int(values[0] >= values[1])


_RELATIONS: Mapping[str, Callable[[int, int], bool]] = {
    "eq": operator.eq, "lg": operator.ne, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt,
    "ge": operator.ge,
}  # fmt: skip
_Compute = Callable[[Sequence[int], int, int], tuple[int, Word]]
_COMPUTE: Mapping[str, _Compute] = {
    "mov": lambda v, bits, scc: (v[0], scc),
    "movk": lambda v, bits, scc: (v[0], scc),
    "brev": lambda v, bits, scc: (int(f"{v[0]:0{bits}b}"[::-1], 2), scc),
    "add": _add,
    "addk": _add,
    "addc": lambda v, bits, scc: _add((*v, scc), bits, 0),
    "sub": _subtract,
    "subb": lambda v, bits, scc: _subtract((v[0], v[1] + scc), bits, 0),
    "mul": lambda v, bits, scc: (v[0] * v[1], scc),
    "mulk": lambda v, bits, scc: (v[0] * v[1], scc),
    "mul_hi": lambda v, bits, scc: (v[0] * v[1] >> 32, scc),
    "lshl": lambda v, bits, scc: (v[0] << (v[1] & bits - 1), None),
    "lshr": lambda v, bits, scc: (v[0] >> (v[1] & bits - 1), None),
    "ashr": lambda v, bits, scc: (v[0] >> (v[1] & bits - 1), None),
    "lshl1_add": lambda v, bits, scc: _add((v[0] << 1 & MASK, v[1]), bits, 0),
    "lshl2_add": lambda v, bits, scc: _add((v[0] << 2 & MASK, v[1]), bits, 0),
    "lshl3_add": lambda v, bits, scc: _add((v[0] << 3 & MASK, v[1]), bits, 0),
    "lshl4_add": lambda v, bits, scc: _add((v[0] << 4 & MASK, v[1]), bits, 0),
    "and": lambda v, bits, scc: (v[0] & v[1], None),
    "or": lambda v, bits, scc: (v[0] | v[1], None),
    "xor": lambda v, bits, scc: (v[0] ^ v[1], None),
    "andn2": lambda v, bits, scc: (v[0] & ~v[1], None),
    "orn2": lambda v, bits, scc: (v[0] | ~v[1], None),
    "not": lambda v, bits, scc: (~v[0], None),
    "abs": lambda v, bits, scc: (abs(v[0]), None),
    "bfe": _bit_field,
    "min": _least,
    "max": _most,
    "cselect": lambda v, bits, scc: (v[0] if scc else v[1], scc),
    "bitcmp0": lambda v, bits, scc: (0, int(not v[0] >> v[1] & 1)),
    "bitcmp1": lambda v, bits, scc: (0, v[0] >> v[1] & 1),
}
_VECTOR: Mapping[str, Callable[..., int]] = {
    "v_readfirstlane_b32": lambda word: word,
    "v_mov_b": lambda word: word,
    "v_cvt_f32_u32": lambda word: _bits(float(word)),
    "v_rcp_": lambda word: _bits(1 / _float(word)),
    "v_mul_f32": lambda a, b: _bits(_float(a) * _float(b)),
    "v_cvt_u32_f32": lambda word: int(_float(word)),
}


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def _float(word: int) -> float:
    value: float = struct.unpack("<f", struct.pack("<I", word))[0]
    return value


def _bits(value: float) -> int:
    word: int = struct.unpack("<I", struct.pack("<f", value))[0]
    return word
