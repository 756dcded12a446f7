"""Whether what a call returns is multiplied and goes nowhere else, proven by the code of the callers.

A GELU that is a factor is best left to the product, which reads its argument once and writes once. Only the code after
the call can promise that nobody else will see the GELU. So it is read: from the call on, along the one way that it can
take, until the value on Python's stack, or in a variable that is read once, is an operand of `*`, or is returned to the
caller, where the same is asked. A jump, a further use, or an instruction that is not known here is no proof.

Code does not tell whether what a call returns is what the function below it on the stack has returned: something in C
may be between, such as `map`. So `fuse` has to have seen the value arrive, and then trusts these calls.
"""

from __future__ import annotations

import dis
import inspect
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from types import CodeType, FrameType
from typing import Any, NamedTuple

from torch.autograd import Function

PRODUCT, RETURNED, ELSEWHERE = "product", "returned", "elsewhere"

NOTHING = frozenset(["NOP", "RESUME", "CACHE", "PRECALL", "KW_NAMES", "EXTENDED_ARG", "NOT_TAKEN"])

POPS: dict[str, Callable[[int], int]] = {
    **dict.fromkeys(["LOAD_CONST", "LOAD_SMALL_INT", "LOAD_GLOBAL", "LOAD_DEREF", "PUSH_NULL"], lambda arg: 0),
    **dict.fromkeys(["LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_FAST_CHECK"], lambda arg: 0),
    **dict.fromkeys(["LOAD_FAST_LOAD_FAST", "LOAD_FAST_BORROW_LOAD_FAST_BORROW"], lambda arg: 0),
    **dict.fromkeys(["LOAD_ATTR", "LOAD_METHOD", "UNARY_NEGATIVE"], lambda arg: 1),
    **dict.fromkeys(["STORE_FAST", "STORE_FAST_LOAD_FAST"], lambda arg: 1),
    **dict.fromkeys(["BINARY_OP", "BINARY_SUBSCR", "BINARY_ADD", "BINARY_MULTIPLY"], lambda arg: 2),
    **dict.fromkeys(["BUILD_TUPLE", "BUILD_SLICE"], lambda arg: arg),
    "BINARY_SLICE": lambda arg: 3,
    "CALL_FUNCTION": lambda arg: arg + 1,
    **dict.fromkeys(["CALL", "CALL_METHOD", "CALL_FUNCTION_KW"], lambda arg: arg + 2),
    "CALL_KW": lambda arg: arg + 3,
}
"""How many values an instruction takes off the stack, in all versions of Python, by its argument."""

MOST = 4096
APPLY = Function.apply.__code__
"""Calls a forward without gradients, which what it returns has nevertheless."""

GENERATORS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Link(NamedTuple):
    """A call that hands on what it returns, in a form that can be pickled: the function, the place, what it runs."""

    function: str
    line: int
    offset: int
    checksum: int


_trusted: set[Link] = set()
_own: set[CodeType] = set()
_kept: dict[tuple[int, int], tuple[CodeType, str]] = {}


def trust(links: Collection[Link]) -> None:
    """Note calls from which a value has been seen to arrive at a product."""
    if not _trusted.issuperset(links):
        _trusted.update(links)
        _kept.clear()


def trust_function(function: Any) -> None:
    """Note a function that returns what the function that it calls returns, as its code says."""
    _own.add(function.__code__)


def links_to_product(frame: FrameType | None) -> frozenset[Link] | None:
    """The calls from one that this frame waits for to a product of its value, if its code proves that it is the use."""
    links = []
    while frame is not None:
        links.append(_link(frame.f_code, frame.f_lasti))
        found = _follow(frame.f_code, frame.f_lasti)
        if found != RETURNED:
            return frozenset(links) if found == PRODUCT else None
        frame = frame.f_back
    return None


def is_factor(frame: FrameType | None) -> bool:
    """The same of calls that are trusted: whether their value becomes an operand of a product, and nothing else."""
    while frame is not None:
        code = frame.f_code
        kept = _kept.get((id(code), frame.f_lasti)) or _keep(code, frame.f_lasti)
        if kept[1] != RETURNED:
            return kept[1] == PRODUCT
        frame = frame.f_back
    return False


def _keep(code: CodeType, offset: int) -> tuple[CodeType, str]:
    if len(_kept) >= MOST:
        _kept.clear()
    found = _follow(code, offset) if code in _own or _link(code, offset) in _trusted else ELSEWHERE
    kept = _kept[id(code), offset] = code, found  # the code is kept, so that its id is
    return kept


def _link(code: CodeType, offset: int) -> Link:
    return Link(code.co_name, code.co_firstlineno, offset, zlib.crc32(code.co_code))


def _follow(code: CodeType, offset: int) -> str:
    """What becomes of the value that the call at this offset returns."""
    if code is APPLY:
        return ELSEWHERE
    instructions = list(dis.get_instructions(code))
    start = max(index for index, each in enumerate(instructions) if each.offset <= offset)
    if not instructions[start].opname.startswith("CALL") or "locals" in code.co_names or code.co_flags & GENERATORS:
        return ELSEWHERE
    above = 0  # values on the stack over ours
    rest = iter(instructions[start + 1 :])
    for each in rest:
        name, arg = each.opname, each.arg or 0
        if name in NOTHING:
            continue
        pops = POPS[name](arg) if name in POPS else None
        if pops is not None and pops <= above:
            above += _pushed(each) - pops
        elif name == "BINARY_MULTIPLY" or (name == "BINARY_OP" and each.argrepr == "*"):
            return PRODUCT
        elif name == "RETURN_VALUE":
            return RETURNED
        elif name in ("STORE_FAST", "STORE_FAST_LOAD_FAST"):
            found = _until_loaded(instructions, rest, each)
            if found is None:
                return ELSEWHERE
            above = found
        else:
            return ELSEWHERE
    return ELSEWHERE


def _pushed(instruction: dis.Instruction) -> int:
    """How many values an instruction that is in POPS puts on the stack."""
    name = instruction.opname
    if name in ("LOAD_GLOBAL", "LOAD_ATTR", "LOAD_METHOD"):  # perhaps what a call of it needs, too
        return dis.stack_effect(instruction.opcode, instruction.arg) + POPS[name](0)
    return len(_variables(instruction)[1]) if "_FAST" in name else 1


def _variables(instruction: dis.Instruction) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The variables that an instruction writes and those that it reads, the last one uppermost on the stack."""
    name, value = instruction.opname, instruction.argval
    names = value if isinstance(value, tuple) else (value,)
    if "_FAST" not in name:
        return (), ()
    if name == "STORE_FAST_LOAD_FAST":
        return names[:1], names[1:]
    return ((), names) if name.startswith("LOAD") else (names, ())


def _until_loaded(
    instructions: Sequence[dis.Instruction], rest: Iterator[dis.Instruction], store: dis.Instruction
) -> int | None:
    """Goes on to where the variable is read that `store` writes: how many values lie over it then.

    None if it is read more often, or there is more than one way to go.
    """
    variable = _variables(store)[0][0]
    loops = any(each.opcode in JUMPS and each.argval <= each.offset for each in instructions)
    reachable = [each for each in instructions if loops or each.offset > store.offset]
    if sum(_variables(each)[1].count(variable) for each in reachable) != 1 or variable in _variables(store)[1]:
        return None
    for each in rest:
        stored, loaded = _variables(each)
        if variable in loaded and each.opname in POPS:
            return len(loaded) - 1 - loaded.index(variable)
        if each.is_jump_target or each.opcode in JUMPS or each.opname in ENDS or variable in (*stored, *loaded):
            return None
    return None


ENDS = ("RETURN_VALUE", "RAISE_VARARGS", "RERAISE", "YIELD_VALUE")
JUMPS = frozenset([*dis.hasjrel, *dis.hasjabs])
