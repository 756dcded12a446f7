"""Which modules are a GELU written out in Python, proven by their code.

A module counts if its `forward` is one expression of its input in constants, arithmetic and a few functions of PyTorch,
perhaps of the output of one of its layers. Such code has no branch, state, attribute, randomness or side effect, so
that it computes the same function always and everywhere. Which function, a few values in float64 tell.
"""

from __future__ import annotations

import dis
import math
import sys
from collections.abc import Collection
from types import FunctionType, SimpleNamespace
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .gelu import Approximate, gelu

NAMESPACES = (torch, math, F, nn, torch.special)
FUNCTIONS = frozenset(
    ["erf", "erfc", "tanh", "sigmoid", "exp", "pow", "square", "sqrt", "mul", "add", "sub", "div", "pi", "gelu"]
)
"""Functions and constants that the code may name, of a tensor or of one of NAMESPACES."""

SUBMODULES = ("nn", "functional", "special")

HARMLESS = frozenset([
    "RESUME", "CACHE", "NOP", "NOT_TAKEN", "EXTENDED_ARG", "PUSH_NULL", "PRECALL",
    "CALL", "CALL_FUNCTION", "CALL_METHOD", "RETURN_VALUE",
    "LOAD_CONST", "LOAD_SMALL_INT", "LOAD_GLOBAL", "LOAD_ATTR", "LOAD_METHOD",
    "LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_FAST_LOAD_FAST", "LOAD_FAST_BORROW_LOAD_FAST_BORROW",
    "STORE_FAST", "STORE_FAST_LOAD_FAST", "UNARY_NEGATIVE", "BINARY_OP",
    "BINARY_ADD", "BINARY_SUBTRACT", "BINARY_MULTIPLY", "BINARY_TRUE_DIVIDE", "BINARY_POWER",
])  # fmt: skip
"""The instructions that such code consists of, in all versions of Python: none jumps, stores or passes keywords."""

FAR = [-1e4, -99.0, -20.0, 20.0, 99.0, 1e4]
PROBE = torch.tensor([*(step / 100 for step in range(-800, 801)), *FAR], dtype=torch.float64, device="cpu")
"""Where code is asked for its formula: in the middle any two formulas differ by more than 4e-4 somewhere."""

ROUNDING = 1e-6
"""More than what constants in fp32 or with ten digits change, relative where a value is above 1."""


KNOWN: dict[tuple[str, str], Approximate] = {("transformers.models.bloom.modeling_bloom", "BloomGelu"): "tanh"}
"""Modules and classes whose code is not of this kind: BLOOM's has a backward pass of its own."""


class WrittenOut(NamedTuple):
    """A formula, and the name of the child whose output it is of, or "" if it is of the module's input."""

    formula: Approximate
    child: str


def formula_of(module: nn.Module) -> WrittenOut | None:
    """The GELU that a module computes, if its code proves that it computes nothing else."""
    forward = vars(type(module)).get("forward", type(module).forward)
    if not isinstance(forward, FunctionType) or "forward" in vars(module):
        return None
    for (library, name), formula in KNOWN.items():
        if getattr(getattr(sys.modules.get(library), name, None), "forward", None) is forward:
            return WrittenOut(formula, "")
    own, *inputs = forward.__code__.co_varnames[: forward.__code__.co_argcount]
    if len(inputs) != 1 or forward.__code__.co_kwonlyargcount or forward.__code__.co_flags & 0b1100:
        return None
    attributes = _attributes_of(forward, own)
    if attributes is None or len(attributes) > 1:
        return None
    (child,) = attributes or ("",)
    if (child and child not in module._modules) or not _is_pure(forward, {child}):
        return None
    proven = _compare(forward, child)
    return None if proven is None else WrittenOut(proven, child)


def _compare(forward: FunctionType, child: str) -> Approximate | None:
    """The formula whose values the code computes. What it takes is NaN where there is a child, whose output is not."""
    taken = torch.full_like(PROBE, math.nan) if child else PROBE

    def called(argument: Tensor) -> Tensor:
        if argument is not taken:
            raise ValueError("the layer is not given the module's input")
        return PROBE

    try:
        with torch.no_grad():
            y = forward(SimpleNamespace(**{child: called}) if child else None, taken)
    except Exception:  # whatever it needs, a tensor is not enough
        return None
    formula: Approximate
    for formula in get_args(Approximate):
        truth = gelu(PROBE, approximate=formula)
        close = isinstance(y, Tensor) and y.shape == truth.shape
        if close and bool(((y - truth).abs() < ROUNDING * truth.abs().clamp_min(1)).all()):
            return formula
    return None


def _attributes_of(function: FunctionType, own: str) -> list[str] | None:
    """What the code takes of `self`, in order; None if it does anything else with it."""
    instructions = [each for each in dis.get_instructions(function) if each.opname != "CACHE"]
    found = []
    for index, each in enumerate(instructions):
        if each.argval == own and each.opname.startswith("LOAD_FAST"):
            following = instructions[index + 1]
            if following.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                return None
            found.append(following.argval)
        elif isinstance(each.argval, tuple) and own in each.argval:
            return None
    return found


def _is_pure(function: FunctionType, also: Collection[str] = ()) -> bool:
    """Whether the code is an expression in constants, PyTorch's functions and functions that are pure themselves."""
    code = function.__code__
    if code.co_freevars or code.co_cellvars:
        return False
    for each in dis.get_instructions(function):
        if each.opname not in HARMLESS:
            return False
        if each.opname == "BINARY_OP" and each.argrepr not in ("+", "-", "*", "/", "**"):  # in place, or a part
            return False
        if each.opname == "LOAD_GLOBAL" and not _is_known(each.argval, function.__globals__.get(each.argval), function):
            return False
        if each.opname in ("LOAD_ATTR", "LOAD_METHOD") and each.argval not in (*FUNCTIONS, *SUBMODULES, *also):
            return False
    return True


def _is_known(name: str, meant: object, within: FunctionType) -> bool:
    """Whether a global variable is a namespace, one of its functions, or a function that is pure itself."""
    if any(meant is namespace for namespace in NAMESPACES):
        return True
    if name in FUNCTIONS and any(getattr(namespace, name, within) is meant for namespace in NAMESPACES):
        return True
    return isinstance(meant, FunctionType) and meant is not within and _is_pure(meant)
