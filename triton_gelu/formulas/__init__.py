"""GELU's formulas: an input times a gate, written once for kernels and once in PyTorch."""

from typing import Literal, get_args

Approximate = Literal["tanh", "none", "sigmoid"]
FORMULAS = get_args(Approximate)


def check_approximate(approximate):
    if approximate not in FORMULAS:
        raise ValueError(f"approximate must be one of {', '.join(map(repr, FORMULAS))}, got {approximate!r}")
