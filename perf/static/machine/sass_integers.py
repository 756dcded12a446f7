"""The integers that NVIDIA machine code computes: enough of them to know how its branches go.

SASS has no public manual. What an instruction means is read off the code that ptxas makes of known PTX; the result of
one that is not here is unknown, as data are.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, Sequence

from perf.static.machine.code import Instruction, State, Word

MASK = 2**32 - 1
TRUE = ("PT", "UPT")
ZERO = ("RZ", "URZ", "SRZ")
GRID = ("SR_CTAID.X", "SR_CTAID.Y", "SR_CTAID.Z")

_SOURCE = re.compile(r"(?P<sign>[-~]?)\|?(?:(?P<file>U?R)(?P<number>\d+)|(?P<literal>0x[0-9a-f]+)|(?P<bank>c\[.*\]))")


class Unknown(Exception):
    """A source is not known before the kernel runs."""


def meaning_of(
    instruction: Instruction, results: Sequence[str], sources: Sequence[str], width: int
) -> Callable[[State], Sequence[Word]]:
    """A function of the state to the words of all results, one after the other; the last may be missing: not known."""
    name, *modifiers = instruction.opcode.split(".")
    if name in ("S2R", "S2UR", "CS2R"):
        return lambda state: [0 if sources[0] in ZERO else state.get(sources[0])] * width
    if name in ("LDC", "ULDC", "LDCU"):
        constants = [_source(sources[0], place) for place in range(width)]
        return lambda state: [constant(state) for constant in constants]
    meaning = _MEANING.get(name) or _MEANING.get(name.removeprefix("U"))
    if meaning is None:
        return lambda state: ()
    values = Values(frozenset(modifiers), tuple(results), tuple(sources))

    def words(state: State) -> Sequence[Word]:
        values.state = state
        try:
            return meaning(values)
        except Unknown:
            return ()

    return words


class Values:
    """What one instruction works on. Asking for something that isn't known raises `Unknown`."""

    state: State

    def __init__(self, modifiers: frozenset[str], results: tuple[str, ...], sources: tuple[str, ...]) -> None:
        self.modifiers = modifiers
        self.results = results
        self.sources = sources
        self._words = [(_source(each, 0), _source(each, 1)) for each in sources]

    def raw(self, place: int, offset: int = 0) -> int:
        """A source (`offset` 1: the register after it); a negated one is not reduced to 32 bits."""
        word = self._words[place][offset](self.state)
        if word is None:
            raise Unknown
        return word

    def word(self, place: int) -> int:
        return self.raw(place) & MASK

    def number(self, place: int) -> int:
        """A source, signed unless the modifiers say otherwise."""
        return self.word(place) if "U32" in self.modifiers else _signed(self.word(place))

    def pair(self, place: int) -> int:
        return self.raw(place, 1) << 32 | self.word(place)

    def predicate(self, place: int) -> int:
        word = predicate(self.sources[place], self.state)
        if word is None:
            raise Unknown
        return word

    def carries(self, first: int) -> int:
        """The sum of the predicates that an extended addition takes in."""
        return sum(self.predicate(i) for i in range(first, len(self.sources))) if "X" in self.modifiers else 0

    def literal(self, place: int) -> int:
        return int(self.sources[place], 16)


def _add(of: Values) -> Sequence[Word]:
    total = of.raw(0) + of.raw(1) + of.raw(2) + of.carries(3)
    return total & MASK, int(total >> 32 >= 1), int(total >> 32 >= 2)


def _multiply(of: Values) -> Sequence[Word]:
    product = of.number(0) * of.number(1)
    if "WIDE" in of.modifiers:
        total = product + of.pair(2)
        return total & MASK, total >> 32 & MASK
    if "HI" in of.modifiers:
        return [(product + of.pair(2)) >> 32 & MASK]
    return [product + of.raw(2) + of.carries(3) & MASK]


def _shift_and_add(of: Values) -> Sequence[Word]:
    if "HI" not in of.modifiers:
        total = (of.word(0) << of.literal(2) & MASK) + of.raw(1)
    elif "SX32" in of.modifiers:
        total = (_signed(of.word(0)) << of.literal(2) >> 32 & MASK) + of.raw(1) + of.carries(3)
    else:
        total = ((of.word(2) << 32 | of.word(0)) << of.literal(3) >> 32 & MASK) + of.raw(1) + of.carries(4)
    return total & MASK, total >> 32


def _shift(of: Values) -> Sequence[Word]:
    both = of.word(2) << 32 | of.word(0)
    if of.modifiers & {"S32", "S64"}:
        both = _signed(both, 64)
    amount = of.word(1) & 63
    both = both << amount if "L" in of.modifiers else both >> amount
    return [both >> (32 if "HI" in of.modifiers else 0) & MASK]


def _logic(of: Values) -> Sequence[Word]:
    """Bit by bit, from a table of eight: bit 4a + 2b + c of it is the result for the bits a, b, c."""
    a, b, c, table = of.word(0), of.word(1), of.word(2), of.literal(3)
    result = 0
    for i in range(8):
        if table >> i & 1:
            result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c) & MASK
    return [int(result != 0), result] if is_predicate(of.results[0]) else [result]


def _logic_of_predicates(of: Values) -> Sequence[Word]:
    return [of.literal(3) >> (4 * of.predicate(0) + 2 * of.predicate(1) + of.predicate(2)) & 1]


def _compare(of: Values) -> Sequence[Word]:
    a, b = of.number(0), of.number(1)
    relation = next(each for each in ("LT", "LE", "EQ", "NE", "GE", "GT") if each in of.modifiers)
    found = {"LT": a < b, "LE": a <= b, "EQ": a == b, "NE": a != b, "GE": a >= b, "GT": a > b}[relation]
    if "EX" in of.modifiers and a == b:  # the upper halves of 64 bits are equal: the lower ones decided
        found = bool(of.predicate(3))
    other = bool(of.predicate(2))
    if "OR" in of.modifiers:
        return int(found or other), int(not found or other)
    if "XOR" in of.modifiers:
        return int(found != other), int(found == other)
    return int(found and other), int(not found and other)


def _select(of: Values) -> Sequence[Word]:
    return [of.word(0) if of.predicate(2) else of.word(1)]


def _least(of: Values) -> Sequence[Word]:
    return [(min if of.predicate(2) else max)(of.number(0), of.number(1)) & MASK]


def _least_of_sum(of: Values) -> Sequence[Word]:
    total = of.word(0) + of.word(1) & MASK
    total = total if "U32" in of.modifiers else _signed(total)
    return [(min if of.predicate(3) else max)(total, of.number(2)) & MASK]


def _extend_sign(of: Values) -> Sequence[Word]:
    bits = of.word(1)
    cut = of.word(0) & (1 << bits) - 1
    return [cut if "U32" in of.modifiers else _signed(cut, bits) & MASK]


def _permute(of: Values) -> Sequence[Word]:
    source = (of.word(2) << 32 | of.word(0)).to_bytes(8, "little")
    return [int.from_bytes(bytes(source[of.word(1) >> 4 * i & 7] for i in range(4)), "little")]


def _two_halves(of: Values) -> Sequence[Word]:
    """HFMA2 as a way to load a constant: -0 * 0 plus two fp16 numbers."""
    if len(of.sources) != 4 or of.sources[:2] != ("-RZ", "RZ"):
        raise Unknown
    high, low = (struct.unpack("<H", struct.pack("<e", float(each)))[0] for each in of.sources[2:])
    return [high << 16 | low]


def _reciprocal(of: Values) -> Sequence[Word]:
    """Where an integer division starts; what follows corrects its error, whatever that is."""
    if "RCP" not in of.modifiers:
        raise Unknown
    return [_bits(1 / _float(of.word(0)))]


_MEANING: Mapping[str, Callable[[Values], Sequence[Word]]] = {
    "IADD3": _add,
    "VIADD": lambda of: [of.raw(0) + of.raw(1) & MASK],
    "IMAD": _multiply,
    "LEA": _shift_and_add,
    "SHF": _shift,
    "LOP3": _logic,
    "PLOP3": _logic_of_predicates,
    "ISETP": _compare,
    "SEL": _select,
    "IMNMX": _least,
    "VIMNMX": _least,
    "VIADDMNMX": _least_of_sum,
    "MOV": lambda of: [of.word(0)],
    "R2UR": lambda of: [of.word(0)],
    "IABS": lambda of: [abs(_signed(of.word(0)))],
    "SGXT": _extend_sign,
    "PRMT": _permute,
    "HFMA2": _two_halves,
    "I2F": lambda of: [_bits(float(of.number(0)))],
    "I2FP": lambda of: [_bits(float(of.number(0)))],
    "F2I": lambda of: [int(_float(of.word(0))) & MASK],
    "MUFU": _reciprocal,
}


def is_predicate(operand: str) -> bool:
    return re.fullmatch(r"U?P[0-9T]", operand) is not None


def predicate(operand: str, state: State) -> Word:
    """The value of a predicate, negated or not."""
    name = operand.removeprefix("!")
    word = 1 if name in TRUE else state.get(name)
    return word if word is None or name == operand else 1 - word


def _source(operand: str, offset: int) -> Callable[[State], Word]:
    """Reads a source or, with an `offset`, the register or constant so many after it (the upper half of a literal)."""
    if operand.lstrip("-~").partition(".")[0] in ZERO:
        return lambda state: MASK if operand.startswith("~") else 0
    source = _SOURCE.match(operand)
    if source is None:
        return lambda state: None
    sign = source["sign"]
    if source["literal"]:
        literal = int(source["literal"], 16)
        half = (-literal if sign else literal) >> 32 * offset & MASK
        return lambda state: half
    if source["file"]:
        name = f"{source['file']}{int(source['number']) + offset}"
    else:
        bank, place = re.findall(r"0x[0-9a-f]+", source["bank"])
        name = f"c[{bank}][{int(place, 16) + 4 * offset:#x}]"

    def read(state: State) -> Word:
        word = state.get(name)
        if word is None or not sign:
            return word
        return ~word & MASK if sign == "~" else (~word & MASK) + 1  # so that the carry out of a - b says a >= b

    return read


def _signed(word: int, bits: int = 32) -> int:
    return word - 2**bits if word >> (bits - 1) else word


def _float(word: int) -> float:
    value: float = struct.unpack("<f", struct.pack("<I", word))[0]
    return value


def _bits(value: float) -> int:
    word: int = struct.unpack("<I", struct.pack("<f", value))[0]
    return word
